"""The parts of a token's time: they sum to the whole, hold what is slow, and leave no trace."""

import time

import numpy as np
import pytest
from conftest import FULL

from benchmarks.kit.profile import PARTS, TIMED, token_parts, token_time
from reso_llm.decoding.row import Row
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.text_stream import TextStream
from reso_llm.inference import ResoLLMInference
from reso_llm.stages import block
from reso_llm.stages.block import BlockStep
from reso_llm.stages.field import FieldStep

OPTIONS = GenerationOptions(max_length=12, temperature=0.0)


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    stages = tuple(stage for stage in FULL if stage != "stochastic_resonance")
    model = tiny_model(stages=stages, vocab_size=264, dim=128, max_seq_len=64)
    return ResoLLMInference(model, byte_tokenizer, model.config)


def test_the_parts_sum_to_the_whole(engine):
    parts = token_parts(engine, ["ab", "cd"], OPTIONS)
    assert sum(parts[part] for part in PARTS) == pytest.approx(parts["whole"])
    assert min(parts[part] for part in PARTS) > 0
    assert token_time(engine, ["ab", "cd"], OPTIONS) > 0


@pytest.mark.parametrize(
    ("owner", "name", "part"),
    [
        (TextStream, "add", "text"),
        (Row, "draw", "sampling"),
        (Row, "observe", "monitors"),
        (BlockStep, "__call__", "blocks"),
        (FieldStep, "__call__", "stages"),
        (np, "dot", "weights"),
        (block, "add_active", "weights"),
    ],
)
def test_what_is_slow_is_charged_to_its_part(engine, monkeypatch, owner, name, part):
    before, original = token_parts(engine, ["ab"], OPTIONS), getattr(owner, name)

    def slow(*args, **kwargs):
        time.sleep(0.02)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)
    after = token_parts(engine, ["ab"], OPTIONS)
    grown = {p: after[p] - before[p] for p in PARTS}
    assert max(grown, key=grown.get) == part
    assert grown[part] > 15


def test_the_timers_are_taken_off_again(engine, monkeypatch):
    owners = [(o, n) for parts in TIMED.values() for o, names in parts for n in names]
    owners += [(FieldStep, "__call__"), (np, "dot"), (np, "matmul")]
    before = [getattr(owner, name) for owner, name in owners]
    monkeypatch.setattr(TextStream, "close", None)  # a text that fails at its end
    with pytest.raises(TypeError):
        token_parts(engine, ["ab"], OPTIONS)
    assert [getattr(owner, name) for owner, name in owners] == before
