"""A tiny checkpoint and its export, for the tests against other people's tools."""

import pytest
from conftest import FULL, make_tiny_model, save_tiny_checkpoint

from reso_llm.hf.export import export
from reso_llm.tokenizer import ResoTokenizer

MARKS = [pytest.mark.ecosystem, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint of a model with every stage, whose tokens are bytes."""
    tokenizer = ResoTokenizer.train(["bytes alone"], 261)
    model = make_tiny_model(stages=FULL, vocab_size=261, max_seq_len=64)
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "run", model, tokenizer)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return str(export(run, tmp_path_factory.mktemp("exported") / "out"))


@pytest.fixture
def model(exported):
    from transformers import AutoModelForCausalLM

    import reso_llm.hf.model  # noqa: F401

    return AutoModelForCausalLM.from_pretrained(exported)


@pytest.fixture
def tok(exported):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(exported)
