"""Training by several processes: what one process would do with the same batch, and one decision.

FAULT numbers refer to the list of faults the project was designed against. That torchrun itself
starts runs anew after a kill is measured by `benchmarks/studies/restarts.py`.
"""

import dataclasses
import math
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import end, run_processes, start_processes
from test_training import TINY, final_state, metrics, quiet, state_hash, stop_after, write_rows
from test_training import rows as guanaco_rows

from reso_llm.data.prepare import prepare
from reso_llm.stages.block import Block
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training.config import TrainConfig
from reso_llm.training.learner import Learner
from reso_llm.training.run import train
from reso_llm.training.sharding import own_part
from run_core import signals
from run_core.run import TrainingError
from run_core.world import ALONE, World, open_world

STEPS = 20
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The data, and a cache of their tokens, in a directory."""
    directory = tmp_path_factory.mktemp("processes")
    write_rows(directory / "rows.jsonl", *guanaco_rows(30))
    return directory


def config_of(files, **changes) -> TrainConfig:
    model = dataclasses.replace(TINY, dropout=0.0, max_seq_len=16)
    options = {
        "data": str(files / "rows.jsonl"), "out": str(files / "run"), "steps": STEPS,
        "batch_size": 4, "grad_accumulation": 2, "validate_every": 10**6, "save_every": 10**6,
        "sample_length": 2, "validate_tokens": 100, "wandb": "disabled",
    }  # fmt: skip
    return TrainConfig(**(options | {"model": model} | changes))


def learner_of(config: TrainConfig, files: Path, world: World) -> Learner:
    tokenizer = ResoTokenizer.train(["bytes alone"], 261)
    data = prepare(config.data, tokenizer, cache_dir=files / "cache")
    learner = Learner(config, data, CPU, world=world)
    learner.model.embedding.read_names(tokenizer.names)
    return learner


# --- the same weights -----------------------------------------------------------------------


def weights_after(
    rank: int, config: TrainConfig, files: Path, dtype: torch.dtype = torch.float64
) -> dict[str, np.ndarray] | None:
    """Weights after STEPS steps; both optimizers magnify the rounding of float32."""
    torch.set_default_dtype(dtype)
    with open_world(CPU) as world:
        learner = learner_of(config, files, world)
        for step in range(STEPS):
            learner.step(step / STEPS)
        model = learner.whole_model()
        if model is not None:
            return {name: p.detach().numpy() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def alone(files):
    """Weights of one process, with replies_only and without."""
    configs = {value: config_of(files, replies_only=value) for value in (False, True)}
    return {
        value: run_processes(1, weights_after, config, files)[0]
        for value, config in configs.items()
    }


@pytest.mark.parametrize(
    ("size", "replies_only", "memory"),
    [(2, True, {}), (4, False, {}), (2, True, {"shard": True, "activation_checkpointing": True})],
)
def test_processes_learn_what_one_does(files, alone, size, replies_only, memory):
    """Goals, counts of replies, spans of the memory and known pasts are of the whole batch.

    Of a sharded model the first process has all of the weights.
    """
    config = config_of(files, replies_only=replies_only, **memory)
    found = run_processes(size, weights_after, config, files)
    expected = alone[replies_only]
    assert abs(expected["goal.weight"]).max() > 0.01  # goals were learnt from
    if memory:
        assert found.pop() is None
    for one in found:
        for name, values in expected.items():
            assert abs(one[name] - values).max() < 1e-5, name


def test_processes_learn_bit_for_bit_what_one_does_in_as_many_passes(files):
    """In float32, where the order of a sum shows: three terms have more than one."""
    shared = config_of(files, batch_size=6, grad_accumulation=1)
    alone = config_of(files, batch_size=2, grad_accumulation=3)
    found = run_processes(3, weights_after, shared, files, torch.float32)
    found += run_processes(1, weights_after, alone, files, torch.float32)
    for name, values in found.pop().items():
        for one in found:
            assert np.array_equal(one[name], values), name


def test_recomputed_blocks_learn_the_same(files, monkeypatch):
    calls, forward = [], Block.forward

    def counted(self, *inputs):
        calls.append(self)
        return forward(self, *inputs)

    monkeypatch.setattr(Block, "forward", counted)
    learners = [
        learner_of(config_of(files, activation_checkpointing=value), files, ALONE)
        for value in (False, True)
    ]
    counts = []
    for learner in learners:
        calls.clear()
        learner.step(0.0)
        learner.step(0.5)
        counts.append(len(calls))
    assert counts == [8, 16]  # two steps of two passes through two blocks
    for one, other in zip(*(learner.model.parameters() for learner in learners), strict=True):
        assert torch.equal(one, other)


def test_rows_of_one_global_batch():
    assert [World(rank, 2).rows(6) for rank in range(2)] == [slice(0, 3), slice(3, 6)]
    assert ALONE.rows(5) == slice(0, 5)
    with pytest.raises(ValueError, match=r"batch_size = 6: expected a multiple of .* processes, 4"):
        World(1, 4).rows(6, "batch_size")


# --- the same checkpoints -------------------------------------------------------------------


def steps_of(rank: int, config: TrainConfig, cache: str, resume: bool) -> int:
    """The step that a run in float64 ends at."""
    torch.set_default_dtype(torch.float64)
    os.environ["RESO_CACHE"] = cache
    return train(config, resume=resume, report=quiet).step


def test_checkpoints_of_a_sharded_run_are_those_of_any(files, tmp_path):
    """Sharded or not, a run goes on from the other's checkpoint to the same weights."""
    cache = str(files / "cache")
    one = config_of(files, out=str(tmp_path / "run"), steps=2, sample_prompt="")
    run_processes(1, steps_of, one, cache, False)
    sharded = dataclasses.replace(one, shard=True, steps=4)
    assert run_processes(2, steps_of, sharded, cache, True) == [4, 4]
    shutil.copytree(one.out, tmp_path / "copy")
    copy = dataclasses.replace(one, out=str(tmp_path / "copy"), steps=6)
    assert run_processes(1, steps_of, copy, cache, True) == [6]
    assert run_processes(2, steps_of, dataclasses.replace(sharded, steps=6), cache, True) == [6, 6]
    states = [final_state(each) for each in (one, copy)]
    for part in ("model", "optimizer"):
        for name, tensor in states[0][0][part].items():
            if tensor.is_floating_point():  # the generators' state is not
                torch.testing.assert_close(tensor, states[1][0][part][name], rtol=1e-6, atol=1e-6)
    assert [counters["position"] for _, _, counters in states] == [48, 48]


# --- one decision ---------------------------------------------------------------------------


def bad_steps_of_the_second(rank: int, config: TrainConfig, cache: str):
    """A run in which process 1 alone has a NaN loss at step 2, and a NaN gradient at step 3."""
    os.environ["RESO_CACHE"] = cache
    messages, hashes = [], []
    step, backward = Learner.step, Learner.backward

    def hashed_step(self, progress):
        before = state_hash(self)
        result = step(self, progress)
        hashes.append((before, state_hash(self)))
        return result

    def bad_backward(self, objective, index):
        loss = backward(self, objective, index)
        if rank == 1 and len(hashes) == 1:
            return math.nan
        if rank == 1 and len(hashes) == 2:
            own_part(self.model.blocks[0].feed_forward.up.weight.grad)[0, 0] = math.nan
        return loss

    Learner.step, Learner.backward = hashed_step, bad_backward
    train(config, report=messages.append)
    return messages, hashes, torch.initial_seed()


@pytest.mark.parametrize("shard", [False, True])
def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_all(files, tmp_path, shard):
    """FAULT 10."""
    config = config_of(files, out=str(tmp_path / "run"), steps=4, shard=shard)
    task = bad_steps_of_the_second
    (messages, hashes, seed), (unreported, others, other_seed) = run_processes(
        2, task, config, str(files / "cache")
    )
    for pairs in (hashes, others):
        assert [before == after for before, after in pairs] == [False, True, True, False]
    assert (others == hashes) is not shard  # or each holds parts of its own
    assert [m for m in messages if "skipped" in m] == [
        "step 2 skipped: the loss is not finite",
        "step 3 skipped: the gradient of blocks.0.feed_forward.up.weight is not finite",
    ]
    assert unreported == []  # the first process alone reports
    assert seed != other_seed  # each drops out units of its own


def run_with_a_signal(rank: int, config: TrainConfig, cache: str, number: int):
    """A run in which process 1 alone gets a signal in step 3."""
    os.environ["RESO_CACHE"] = cache
    signals.GRACE_SECONDS = 60  # a slow machine does not give the step up
    if rank == 1:
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 3, number)
            summary = train(config)
    else:
        summary = train(config, report=quiet)
    return summary.step, summary.stopped_by


def test_a_signal_to_one_process_stops_all_and_one_process_goes_on(files, tmp_path, monkeypatch):
    """FAULTS 11 and 13: the place in the data is that of all, so their number may change."""
    config = config_of(files, out=str(tmp_path / "run"), steps=6, log_every=1)
    cache = str(files / "cache")
    found = run_processes(2, run_with_a_signal, config, cache, signal.SIGTERM)
    assert found == [(3, "SIGTERM")] * 2
    monkeypatch.setenv("RESO_CACHE", cache)
    places = []
    step = Learner.step

    def noting_step(self, progress):
        places.append(self.stream.position)
        return step(self, progress)

    monkeypatch.setattr(Learner, "step", noting_step)
    assert train(config, resume=True, report=quiet).step == 6
    assert places == [24, 32, 40]  # eight windows a step
    logged = [row["step"] for row in metrics(config) if "loss_nats" in row]
    assert logged == [1, 2, 3, 4, 5, 6]


def test_the_death_of_a_process_is_one_message_of_the_others(files, tmp_path):
    """FAULT 12 without a restart; nobody waits for the dead."""
    config = config_of(files, out=str(tmp_path / "run"), steps=50)
    task, cache = run_with_a_signal, str(files / "cache")
    processes, results = start_processes(2, task, config, cache, signal.SIGKILL)
    processes[1].join()
    died = time.monotonic()
    rank, error = results.get(timeout=30)
    assert time.monotonic() - died < 30
    assert rank == 0
    assert isinstance(error, TrainingError)
    assert "another process of this run has ended" in str(error)
    end(processes)
    assert processes[1].exitcode == -signal.SIGKILL


def test_a_restart_by_torchrun_goes_on_with_its_own_run_alone(files, tmp_path, monkeypatch):
    """FAULT 12. A run that another command began is refused as ever."""
    config = config_of(files, out=str(tmp_path / "run"), steps=4)
    monkeypatch.setenv("RESO_CACHE", str(files / "cache"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    with monkeypatch.context() as patch:
        patch.setattr(signals, "GRACE_SECONDS", 60)
        stop_after(patch, 2)
        assert train(config, report=quiet).step == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    with pytest.raises(TrainingError, match="already holds a run; add --resume"):
        train(config, report=quiet)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    assert train(config, report=quiet).step == 4
