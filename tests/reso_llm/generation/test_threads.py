"""One engine in several threads: each text is what it is alone, and a goal stays in its call."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import FULL

from reso_llm.inference import ResoLLMInference

THREADS = 4


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    model = tiny_model(stages=FULL, vocab_size=264, max_seq_len=32)
    return ResoLLMInference(model, byte_tokenizer, model.config)


def comparable(result):
    """A result without its time."""
    return result.to_dict() | {"generation_time_ms": 0}


def in_threads(function, arguments):
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, arguments))


@pytest.mark.parametrize("batched", [False, True])
def test_texts_equal_those_written_one_after_the_other(engine, batched):
    """Guards hooks on shared modules: a pass of one thread was counted as another's attention."""

    def write(seed):
        if batched:  # by the model itself, where attention received takes a pass at the end
            results = engine.generate_batch(
                ["Once", f"upon {seed}"], 24, seed=seed, temperature=3.0
            )
            return list(map(comparable, results))
        return comparable(engine.generate(f"Once {seed}", 24, seed=seed, temperature=3.0))

    seeds = range(12)
    assert in_threads(write, seeds) == [write(seed) for seed in seeds]


def test_a_goal_of_one_call_does_not_reach_another(engine):
    def write(seed):
        if seed % 2:
            return comparable(
                engine.generate_with_goal("Once", f"goal {seed}", 24, seed=seed, temperature=3.0)
            )
        return comparable(engine.generate("Once", 24, seed=seed, temperature=3.0))

    seeds = range(12)
    apart = [write(seed) for seed in seeds]
    together = in_threads(write, seeds)
    assert together == apart
    assert [list(result["goal_progress"]) for result in together[:2]] == [[], ["goal 1"]]
    assert engine.model.get_active_goals() == ()


def test_memory_and_clock_are_guarded(engine):
    def use(number):
        engine.model.update_memory(f"Mara {number} keeps the map.")
        engine.generate("Where", 4, seed=number)
        return engine.model.recall("map")

    assert all(in_threads(use, range(24)))
    session = engine.model.session
    assert session.clock == 24.0
    assert len(session.episodes) == 24


def test_a_session_is_copied_without_its_lock(engine):
    engine.model.update_memory("Mara keeps the map.")
    for twin in (
        copy.deepcopy(engine.model.session),
        pickle.loads(pickle.dumps(engine.model.session)),
    ):
        twin.advance()
        assert (twin.clock, engine.model.session.clock) == (1.0, 0.0)
        assert [m.text for m in twin.episodes.moments] == ["Mara keeps the map."]
