"""Fixtures shared by tests of the model: everything tiny, seeded, and made in milliseconds."""

import signal

import pytest
import torch

from reso_llm.config import ResoLLMConfig
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer

TINY = dict(
    vocab_size=61, dim=32, num_layers=2, num_heads=2, max_seq_len=12, num_value_embeddings=1
)


def make_tiny_config(**changes) -> ResoLLMConfig:
    return ResoLLMConfig(**(TINY | changes))


def make_tiny_model(seed: int = 0, **changes) -> ResoLLMModel:
    """A model in eval mode whose every parameter is moved off its start.

    Zero-initialised maps would otherwise hide whatever is wrong behind them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ResoLLMModel(make_tiny_config(**changes))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
    return model.eval()


@pytest.fixture
def tiny_config():
    return make_tiny_config


@pytest.fixture
def tiny_model():
    return make_tiny_model


@pytest.fixture(scope="session")
def byte_tokenizer() -> ResoTokenizer:
    """261 tokens: the five control tokens and the 256 bytes."""
    return ResoTokenizer.train(["bytes alone"], 261)


@pytest.fixture(autouse=True)
def interrupt_handler():
    """A script that ends gives Ctrl-C back to the system; here the process goes on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
