"""Fixtures shared by tests of the model: everything tiny, seeded, and made in milliseconds."""

import json
import signal
import sys

import numpy as np
import pytest
import torch

from benchmarks.kit import records
from reso_llm.config import (
    STAGES,
    TRAINED_STAGES,
    EchoConfig,
    KuramotoConfig,
    PrimeEmbeddingConfig,
    PRSCConfig,
    ResoLLMConfig,
    TemporalSMFConfig,
    control_of,
    with_stage,
)
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training.config import TrainConfig
from reso_llm.training.run import train
from run_core import exits
from run_core.checkpoint import save_directory


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


TINY = dict(
    vocab_size=61, dim=32, num_layers=2, num_heads=2, max_seq_len=12, num_value_embeddings=1
)
TINY_STAGES = dict(
    prime_embedding=PrimeEmbeddingConfig(num_places=4),
    kuramoto=KuramotoConfig(num_oscillators=3),
    prsc=PRSCConfig(max_order=3, max_slots=16),
    temporal_smf=TemporalSMFConfig(num_heads=2, num_channels=2),
    # The longest context comes again in a few tokens; own words count, but for less than others.
    echo=EchoConfig(max_order=3, own_weight=0.5),
)
FULL = tuple(s for s in STAGES if s in TRAINED_STAGES or getattr(ResoLLMConfig(), s).enabled)
"""The stages a new configuration has, and those trained ones that are off by default."""


def make_tiny_config(stages=(), **changes) -> ResoLLMConfig:
    """The plain control with some stages on, and those that they need."""
    config = control_of(ResoLLMConfig(**(TINY | TINY_STAGES | changes)))
    for stage in stages:
        config = with_stage(config, stage, True)
    return config


def make_tiny_model(seed: int = 0, stages=(), **changes) -> ResoLLMModel:
    """A model in eval mode whose every parameter is moved off its start, its memory fitted.

    Zero-initialised maps would otherwise hide whatever is wrong behind them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ResoLLMModel(make_tiny_config(stages, **changes))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
    model.embedding.read_names(names(model.config.vocab_size))
    model.fit_bindings(fitted_text(model.config.vocab_size))
    return model.eval()


def names(vocab_size: int) -> list[bytes]:
    """Names of tokens: none for control tokens, then words of one to four letters and a space."""
    draw = np.random.default_rng(0)
    words = (draw.integers(97, 123, draw.integers(1, 5)) for _ in range(vocab_size - 5))
    return [b""] * 5 + [b" " * (i % 2) + bytes(word.tolist()) for i, word in enumerate(words)]


def fitted_text(vocab_size: int, size: int = 400) -> np.ndarray:
    """Ids of which few are frequent, so that contexts come again; control tokens are rare."""
    draws = np.random.default_rng(0).random(size)
    return (vocab_size * (0.5 + draws**4)).astype(np.int64) % vocab_size


def save_tiny_llama(path, vocab_size: int, num_layers: int, context: int) -> None:
    """A random model of transformers, without its tokenizer; token 0 ends a text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=num_layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
        bos_token_id=0, eos_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(path)


def save_tiny_checkpoint(path, model: ResoLLMModel, tokenizer: ResoTokenizer) -> str:
    """A directory that the engine can load; its path."""
    documents = {
        "config.json": model.config.to_dict(),
        "tokenizer.json": tokenizer.to_json(),
        "training.json": {"tokenizer_fingerprint": tokenizer.fingerprint},
    }
    save_directory(path, tensors={"model": model.state_dict()}, documents=documents)
    return str(path)


def train_tiny(directory, texts, config: ResoLLMConfig) -> dict[str, str]:
    """The paths RUN of a finished training of two steps, and DATA of the rows it read."""
    data, out = directory / "rows.jsonl", directory / "run"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESO_CACHE", str(directory / "cache"))
        options = {"data": str(data), "out": str(out), "steps": 2, "wandb": "disabled"}
        train(TrainConfig(**options, model=config))
    return {"RUN": str(out), "DATA": str(data)}


def evaluate_status(monkeypatch, files, *args) -> int:
    """The exit status of evaluate.py; arguments that are names in `files` stand for the paths."""
    import evaluate

    monkeypatch.setattr(sys, "argv", ["evaluate.py", *(files.get(a, str(a)) for a in args)])
    with pytest.raises(SystemExit) as caught:
        exits.run(evaluate.main)
    return caught.value.code


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


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The directory of recorded rows: one of the test's own."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("RESO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def interrupt_handler():
    """A script that ends gives Ctrl-C back to the system; here the process goes on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
