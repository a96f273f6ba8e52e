"""The trainer in one process: exact resumes, bad steps, budgets, and what may not change weights.

Whole runs of a tiny model on a few generated rows. Processes, signals and exit codes are in
test_cli.py. Numbers such as FAULT 16 refer to the list of faults the project was designed against.
"""

import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from reso_llm.config import (
    KuramotoConfig,
    PrimeEmbeddingConfig,
    ResoLLMConfig,
    TemporalSMFConfig,
    control_of,
)
from reso_llm.data.errors import DataError
from reso_llm.stages.embedding import factor_rows
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training import learner as learning
from reso_llm.training import meter, saving, validation
from reso_llm.training import run as training_run
from reso_llm.training import trainer as training
from reso_llm.training.config import OptimConfig, TrainConfig
from reso_llm.training.learner import Learner
from reso_llm.training.objective import StepObjective
from reso_llm.training.optim import learning_rate_factor
from reso_llm.training.run import train
from reso_llm.training.sharding import own_part
from reso_llm.training.trainer import Trainer
from run_core import run
from run_core.checkpoint import CheckpointError, load_checkpoint
from run_core.files import seal
from run_core.run import TrainingError, changed_keys
from run_core.runlog import read_metrics

TINY = ResoLLMConfig(
    vocab_size=261,
    dim=32,
    num_layers=2,
    num_heads=2,
    max_seq_len=32,
    dropout=0.1,
    prime_embedding=PrimeEmbeddingConfig(num_places=3),
    kuramoto=KuramotoConfig(num_oscillators=4),
    temporal_smf=TemporalSMFConfig(num_heads=2, num_channels=2),
)  # fmt: skip; the full stack; 261: the control tokens and the bytes
CONTROL = control_of(TINY)
NEVER = 10**6


def rows(count=40, seed=0):
    """Guanaco-style rows, all different."""
    words = ["the", "sea", "red", "fox", "runs", "over", "old", "hills", "sings", "nobody", "all"]
    generator = random.Random(seed)
    for number in range(count):
        ask, say = (" ".join(generator.choices(words, k=6)) for _ in range(2))
        yield {"text": f"### Human: {ask} {number}?### Assistant: {say}."}


def write_rows(path, *values):
    path.write_text("".join(json.dumps(row) + "\n" for row in values))
    return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads only get in each other's way at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make(tmp_path, cache, monkeypatch):
    """Configurations of tiny runs: 6 steps, no validation before the end, no picture."""
    monkeypatch.setenv("RESO_CACHE", str(cache))
    monkeypatch.setattr(training.RunLog, "plot", lambda self: None)
    data = write_rows(tmp_path / "rows.jsonl", *rows())

    def make(out="run", **changes):
        settings = dict(
            data=data, val_fraction=0.2, out=str(tmp_path / out), steps=6, batch_size=2,
            validate_every=NEVER, save_every=NEVER, log_every=1, keep_last=100,
            sample_prompt="", wandb="disabled", device="cpu", model=TINY,
        )  # fmt: skip
        return TrainConfig(**settings | changes)

    return make


@pytest.fixture
def messages():
    return []


def quiet(message):
    """Messages nobody reads."""


def stop_after(monkeypatch, step, number=signal.SIGTERM):
    """The process gets a signal, once, in `step`."""
    original, signals = Trainer.train_step, [number]

    def train_step(self):
        if self.counters.step == step - 1 and signals:
            os.kill(os.getpid(), signals.pop())
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def final_state(config):
    """Everything the newest checkpoint holds that a further step depends on."""
    newest = run.newest_checkpoint(config.out, pytest.fail)
    tensors, documents = load_checkpoint(newest, ("model", "optimizer"))
    counters = documents["training.json"]["counters"]
    del counters["seconds"]
    return tensors, documents["training.json"]["state"], counters


def assert_same(one, other):
    for part in ("model", "optimizer"):  # the optimizer part holds the generators' state as well
        assert one[0][part].keys() == other[0][part].keys()
        for name, tensor in one[0][part].items():
            assert (tensor.double() - other[0][part][name].double()).abs().max() == 0.0, name
    assert one[1:] == other[1:]


def metrics(config):
    """The rows of metrics.jsonl without what a clock decides."""
    timed = ("seconds", "tokens_per_second")
    kept = read_metrics(Path(config.out, "metrics.jsonl"))
    return [{k: v for k, v in row.items() if k not in timed} for row in kept]


# --- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"grad_accumulation": 3},
        {"steps": None, "tokens": 6 * 2 * 32},
        {"replies_only": True},
        {"validate_every": 2, "sample_prompt": "Hi"},
        # Its head lies in memory input by input, and AdamW's state of it has to as well.
        {"model": dataclasses.replace(TINY, tie_embeddings=False)},
        {"model": CONTROL},
        {"model": dataclasses.replace(TINY, attention_window=5)},
    ],
    ids=["plain", "accumulation", "tokens", "replies", "validating", "untied", "control", "window"],
)
def test_six_steps_are_three_and_save_and_load_and_three(make, monkeypatch, changes):
    """FAULT 16: dropout, optimizer, schedule, order of the data and metrics go on exactly."""
    whole, halves = make("whole", **changes), make("halves", **changes)
    assert train(whole, report=quiet).step == 6
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        summary = train(halves, report=quiet)
    assert (summary.step, summary.stopped_by, summary.validation) == (3, "SIGTERM", None)
    torch.manual_seed(99)  # whatever the process did in between
    random.seed(99)
    summary = train(halves, resume=True, report=quiet)
    assert (summary.step, summary.stopped_by) == (6, None)
    assert_same(final_state(whole), final_state(halves))
    assert metrics(whole) == metrics(halves)


def test_ten_random_resume_points_differ_by_exactly_zero(make, tmp_path):
    """FAULT 16: in the middle of an epoch and after the first one."""
    data = write_rows(tmp_path / "few.jsonl", *rows(12))
    whole = make("whole", data=data, steps=30, save_every=1)
    train(whole, report=quiet)
    expected = final_state(whole)
    assert max(row.get("epoch", 0) for row in metrics(whole)) > 2
    for step in random.Random(16).sample(range(1, 30), 10):
        half = make("half", data=data, steps=30, save_every=NEVER)
        shutil.copytree(whole.out, half.out)
        for path in Path(half.out, "checkpoints").iterdir():
            if int(path.name[-8:]) > step:
                shutil.rmtree(path)
        train(half, resume=True, report=quiet)
        assert_same(expected, final_state(half))
        assert metrics(whole) == metrics(half)
        shutil.rmtree(half.out)


def test_dropout_is_on_and_its_generator_is_part_of_the_state(make):
    """Guards the tests above: with dropout off they would not see a lost generator."""
    train(make("with"), report=quiet)
    train(make("without", model=dataclasses.replace(TINY, dropout=0.0)), report=quiet)
    one, other = (final_state(make(name))[0]["model"] for name in ("with", "without"))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_that_is_resumed_changes_nothing_and_reports_its_score(make):
    config = make()
    first = train(config, report=quiet)
    state, before = final_state(config), metrics(config)
    again = train(config, resume=True, report=quiet)
    assert again.validation == first.validation
    assert_same(final_state(config), state)
    assert metrics(config) == before


def test_a_run_goes_on_with_a_larger_budget(make):
    train(make(), report=quiet)
    assert train(make(steps=8), resume=True, report=quiet).step == 8
    steps = [row["step"] for row in metrics(make()) if "loss_nats" in row]
    assert steps == list(range(1, 9))


def test_another_configuration_is_refused_by_the_names_of_its_keys(make):
    train(make(), report=quiet)
    wider = dataclasses.replace(TINY, dim=64)
    with pytest.raises(TrainingError) as error:
        train(make(model=wider, seed=5, log_every=3), resume=True, report=quiet)
    text = str(error.value)
    assert "model.dim (32 -> 64)" in text
    assert "seed (0 -> 5)" in text
    assert "log_every" not in text
    assert "--out" in text


def test_a_run_saved_before_a_key_came_resumes_with_its_default(make, monkeypatch):
    """Old runs go on: their configuration lacks the keys that came after them."""
    train(make(), report=quiet)
    original = saving.load_checkpoint

    def older(*args, **options):
        tensors, documents = original(*args, **options)
        config = documents["training.json"]["config"]
        del config["keep_memory"], config["init_from"], config["optim"]["polar_steps"]
        return tensors, documents

    monkeypatch.setattr(saving, "load_checkpoint", older)
    assert train(make(steps=7), resume=True, report=quiet).step == 7
    with pytest.raises(TrainingError, match=r"optim\.polar_steps \(5 -> 3\)"):
        train(make(optim=OptimConfig(polar_steps=3)), resume=True, report=quiet)


def test_changed_keys_names_nested_and_missing_keys():
    assert changed_keys(
        {"a": {"b": 1}, "steps": 3}, {"a": {"b": 2}, "c": 0, "steps": 4}, {"steps"}
    ) == [
        "a.b (1 -> 2)",
        "c (None -> 0)",
    ]
    # Only the whole path makes a key resumable, not its last word.
    assert changed_keys({"model": {"steps": 1}}, {"model": {"steps": 2}}, {"steps"}) == [
        "model.steps (1 -> 2)"
    ]


def test_changed_data_is_refused(make, tmp_path):
    config = make()
    train(config, report=quiet)
    write_rows(tmp_path / "rows.jsonl", *rows(seed=1))
    with pytest.raises(TrainingError, match=r"content of .*rows\.jsonl changed"):
        train(config, resume=True, report=quiet)


def test_a_run_says_what_it_read_and_is_found_from_anywhere(make, tmp_path, monkeypatch, messages):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "mine.jsonl", *({"q": f"{i}?", "a": f"{i}!"} for i in range(40)))
    config = make(data="mine.jsonl", columns="prompt=q,reply=a", steps=2)
    train(config, report=messages.append)
    path = str(tmp_path / "mine.jsonl")
    said = messages.index(f"read {path}")
    assert messages[said + 1] == "40 conversations with 80 turns (40 replies, 0 system messages)"
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["data"], saved["columns"]) == (path, "prompt=q,reply=a")
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(make(data=saved["data"], columns=saved["columns"], steps=3), resume=True, report=quiet)


def test_a_directory_and_resume_must_agree(make):
    with pytest.raises(TrainingError, match="holds no run to resume; leave out --resume"):
        train(make(), resume=True, report=quiet)
    train(make(), report=quiet)
    with pytest.raises(TrainingError, match="already holds a run; add --resume"):
        train(make(), report=quiet)


def test_a_run_killed_before_its_first_checkpoint_starts_again(make, monkeypatch, messages):
    def die(*args):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "_prepare", die)
        with pytest.raises(RuntimeError, match="killed"):
            train(make(), report=quiet)
    assert train(make(), resume=True, report=messages.append).step == 6
    assert f"{make().out} has no checkpoint yet: starting from step 0" in messages


# --- damaged checkpoints ------------------------------------------------------------------------


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_corrupt_newest_checkpoint_is_set_aside_and_the_one_before_used(make, messages):
    """FAULT 4, 5: one message names it, and the end is the same."""
    whole, hurt = make("whole", save_every=2), make("hurt", save_every=2)
    train(whole, report=quiet)
    train(hurt, report=quiet)
    damage(run.checkpoint_path(hurt.out, 6) / "model.safetensors")
    train(hurt, resume=True, report=messages.append)
    named = [m for m in messages if "set aside as corrupt-step_00000006" in m]
    assert len(named) == 1
    assert "model.safetensors" in named[0]
    assert any("resuming from" in m and "step 4" in m for m in messages)
    assert_same(final_state(whole), final_state(hurt))


def test_all_corrupt_is_an_error_and_never_a_silent_restart(make):
    """FAULT 5."""
    config = make(save_every=3)
    train(config, report=quiet)
    for step in (3, 6):
        damage(run.checkpoint_path(config.out, step) / "optimizer.safetensors")
    for resume in (True, False):
        with pytest.raises((CheckpointError, TrainingError)):
            train(config, resume=resume, report=quiet)


def test_a_swapped_tokenizer_is_refused(make, tmp_path):
    """FAULT 24: even with a manifest that fits it."""
    config = make(model=dataclasses.replace(TINY, vocab_size=280))
    train(config, report=quiet)
    path = run.newest_checkpoint(config.out, pytest.fail)
    other = training_run.ResoTokenizer.train(["zebras jump " * 9, "zero zones"], 280)
    (path / "tokenizer.json").write_text(other.to_json())
    body = json.loads((path / "MANIFEST.json").read_text())
    del body["sha256"]
    data = (path / "tokenizer.json").read_bytes()
    body["files"]["tokenizer.json"] |= {
        "size": len(data), "sha256": hashlib.sha256(data).hexdigest()
    }  # fmt: skip
    (path / "MANIFEST.json").write_bytes(seal(body))
    with pytest.raises(TrainingError, match=r"tokenizer\.json is not the tokenizer"):
        train(config, resume=True, report=quiet)


# --- budgets ----------------------------------------------------------------------------------


class FakeTime:
    """A clock that only moves when told."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A pass takes 1 s and a validation 5 s; `.factors` are the learning-rate factors used."""
    clock, factors = FakeTime(), []
    backward, score, set_rate = (
        Learner.backward, validation.score_split, learning.set_learning_rate
    )  # fmt: skip

    def slow_backward(self, *args):
        clock.now += 1
        return backward(self, *args)

    def slow_score(*args, **options):
        clock.now += 5
        return score(*args, **options)

    def spy(optimizers, factor):
        factors.append((clock.now - 1000, factor))
        set_rate(optimizers, factor)

    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(Learner, "backward", slow_backward)
    monkeypatch.setattr(validation, "score_split", slow_score)
    monkeypatch.setattr(learning, "set_learning_rate", spy)
    clock.factors = factors
    return clock


@pytest.mark.parametrize("validate_every", [NEVER, 5])
def test_minutes_end_near_their_time_and_the_schedule_reaches_zero(make, clock, validate_every):
    config = make(steps=None, minutes=1.0, validate_every=validate_every)
    summary = train(config, report=quiet)
    assert 60 <= summary.seconds <= 60 + 6  # a step and a validation
    assert summary.step == 60 if validate_every == NEVER else 28 <= summary.step <= 36
    for at, factor in clock.factors:  # validating counts: the schedule is that of the clock
        assert factor == pytest.approx(learning_rate_factor(config.optim, at / 60))
    assert clock.factors[-1][1] <= 6 / 60 / config.optim.decay_fraction


def test_minutes_count_the_time_before_a_resume(make, clock, monkeypatch):
    config = make(steps=None, minutes=1.0)
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        assert train(config, report=quiet).seconds == pytest.approx(20)
    clock.now = 90_000.0  # the next day
    assert train(config, resume=True, report=quiet).step == 60


@pytest.mark.parametrize(
    ("budget", "step"), [({"tokens": 300}, 5), ({"steps": 4, "tokens": 999}, 4)]
)
def test_the_first_budget_used_up_ends_the_run(make, budget, step):
    assert train(make(**{"steps": None} | budget), report=quiet).step == step  # 64 tokens a step


def test_the_schedule_of_a_steps_budget_warms_up_and_falls_to_zero(make, monkeypatch):
    seen, original = [], learning.set_learning_rate
    monkeypatch.setattr(
        learning, "set_learning_rate", lambda o, f: (seen.append(f), original(o, f))
    )
    optim = OptimConfig(warmup_fraction=0.2, decay_fraction=0.5)
    train(make(steps=10, optim=optim), report=quiet)
    assert seen == pytest.approx([0, 0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


# --- steps that are not finite ------------------------------------------------------------------

BAD_PARAMETER = "blocks.1."


def poison(monkeypatch, kind, bad_steps, name=None):
    """At `bad_steps` the loss is nan or inf, or one gradient (of parameter `name`) is nan."""
    original, train_step, steps = Learner.backward, Trainer.train_step, []

    def counted(self):
        steps.append(self.counters.step + 1)
        train_step(self)

    def backward(self, *args):
        loss = original(self, *args)
        if steps[-1] not in bad_steps:
            return loss
        if kind != "gradient":
            return float(kind)
        grad = dict(self.model.named_parameters())[name].grad
        grad[(0,) * grad.ndim] = math.nan
        return loss

    monkeypatch.setattr(Learner, "backward", backward)
    monkeypatch.setattr(Trainer, "train_step", counted)


def state_hash(learner):
    """Of this process's parts of parameters and optimizer state, the learning rates left out."""
    digest = hashlib.sha256()
    tensors = list(learner.model.state_dict().values())
    for optimizer in learner.optimizers.values():
        for state in optimizer.state_dict()["state"].values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    for tensor in tensors:
        digest.update(own_part(tensor).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def hashes(monkeypatch):
    """state_hash before and after each step."""
    pairs, original = [], Learner.step

    def step(self, progress):
        before = state_hash(self)
        try:
            return original(self, progress)
        finally:
            pairs.append((before, state_hash(self)))

    monkeypatch.setattr(Learner, "step", step)
    return pairs


def one_matrix(config):
    names = [n for n, p in learning.ResoLLMModel(config).named_parameters() if p.ndim == 2]
    return next(name for name in names if name.startswith(BAD_PARAMETER))


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    make, monkeypatch, hashes, messages, kind
):
    """FAULT 9."""
    name = one_matrix(TINY)
    poison(monkeypatch, kind, {3, 5}, name)
    train(make(max_bad_steps=2), report=messages.append)  # two, but not in a row
    unchanged = [before == after for before, after in hashes]
    assert unchanged == [False, False, True, False, True, False]
    what = "the loss" if kind != "gradient" else f"the gradient of {name}"
    assert [m for m in messages if "skipped" in m] == [
        f"step 3 skipped: {what} is not finite", f"step 5 skipped: {what} is not finite"
    ]  # fmt: skip
    rows = [row for row in metrics(make()) if "loss_nats" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert [row["loss_nats"] is None for row in rows] == unchanged


def test_one_bad_pass_of_several_skips_the_whole_step(make, monkeypatch, hashes):
    original, calls = Learner.backward, []

    def backward(self, *args):
        calls.append(original(self, *args))
        return math.nan if len(calls) == 5 else calls[-1]  # the middle pass of step 2

    monkeypatch.setattr(Learner, "backward", backward)
    train(make(grad_accumulation=3), report=quiet)
    assert [before == after for before, after in hashes] == [False, True] + [False] * 4


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_steps_that_stay_bad_stop_the_run_which_can_go_on(make, monkeypatch, kind):
    """FAULT 9: only finite checkpoints exist, and lower learning rates are accepted."""
    config = make(steps=12, save_every=2, max_bad_steps=4)
    name = one_matrix(TINY)
    with monkeypatch.context() as patch:
        poison(patch, kind, range(4, 99), name)
        with pytest.raises(TrainingError) as error:
            train(config, report=quiet)
    text = str(error.value)
    assert "step 7 skipped" in text
    assert "4 in a row" in text
    assert (name in text) == (kind == "gradient")
    assert metrics(config)[-1]["skipped_steps"] == 4
    for path in Path(config.out, "checkpoints").iterdir():
        for part in load_checkpoint(path, ("model", "optimizer"))[0].values():
            assert all(t.isfinite().all() for t in part.values())
    calmer = dataclasses.replace(config, optim=OptimConfig(matrix_lr=0.001))
    seen = []
    original = learning.set_learning_rate

    def spy(optimizers, factor):
        original(optimizers, factor)
        seen.append(optimizers["muon"].param_groups[0]["lr"] / factor)

    monkeypatch.setattr(learning, "set_learning_rate", spy)
    assert train(calmer, resume=True, report=quiet).step == 12
    assert seen == pytest.approx([0.001] * len(seen))
    assert metrics(config)[-1]["final_bits_per_byte"] > 0


def test_weights_that_are_not_finite_are_never_saved(make, monkeypatch):
    """The value table's row of a byte that never occurs: the loss does not see it."""
    config, original = make(save_every=2), Trainer.train_step

    def train_step(self):
        original(self)
        if self.counters.step == 4:
            table = self.learner.model.value_tables[0].weight
            table.data[-1] = math.nan

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(TrainingError, match=r"step 4: .*value_tables.* is not finite"):
        train(config, report=quiet)
    assert os.listdir(Path(config.out, "checkpoints")) == ["step_00000002"]


# --- what may not change the weights ------------------------------------------------------------


def weights(config, **options):
    train(config, report=quiet, **options)
    return final_state(config)[0]


def test_a_seed_gives_the_same_weights_and_another_seed_others(make):
    first, again, other = (
        weights(make(name, seed=seed))["model"] for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_validation_and_sampling_do_not_change_training(make):
    """Also not the generators, which the optimizer part holds."""
    plain = weights(make("plain", save_every=1))
    busy = weights(make("busy", validate_every=1, sample_prompt="Hello?", sample_length=5))
    for part in plain:
        for name in plain[part]:
            assert torch.equal(plain[part][name], busy[part][name]), name


def broken_wandb(where):
    """A module `wandb` whose init, log or finish raises."""

    def act(name, result=None):
        def action(*args, **options):
            if name == where:
                raise RuntimeError(f"{name} failed")
            return result

        return action

    run = types.SimpleNamespace(log=act("log"), finish=act("finish"))
    settings = types.SimpleNamespace
    return types.SimpleNamespace(
        Settings=settings, setup=act("setup"), login=act("login", True), init=act("init", run)
    )


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_wandb_costs_one_message_and_nothing_else(make, monkeypatch, messages, where):
    """FAULT 31."""
    expected = weights(make("without"))
    monkeypatch.setitem(sys.modules, "wandb", broken_wandb(where))
    config = make("with", wandb="offline")
    train(config, report=messages.append)
    assert len([m for m in messages if m.startswith("wandb: ")]) == 1
    found = final_state(config)[0]
    for part in expected:
        assert all(torch.equal(expected[part][n], found[part][n]) for n in expected[part])
    assert metrics(config) == metrics(make("without"))


# --- replies only, accumulation, best -------------------------------------------------------------


def test_replies_only_takes_the_mean_over_the_replies_targets(make, monkeypatch):
    """Against cross entropy written out, and: another user's text changes no target's weight."""
    seen = []
    original = Learner.backward

    def backward(self, objective, index):
        self.model.eval()  # without dropout the loss can be written out
        inputs, targets, reply, _ = objective.batches[index]
        logits = self.model(inputs).logits
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        nats = nats.view_as(targets)
        loss = original(self, objective, index)
        expected = nats[reply].mean() if self.config.replies_only else nats.mean()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        seen.append(reply.float().mean().item())
        return loss

    monkeypatch.setattr(Learner, "backward", backward)
    all_text, replies = (
        weights(make("all", model=CONTROL))["model"],
        weights(make("r", model=CONTROL, replies_only=True))["model"],
    )
    assert 0 < np.mean(seen) < 1
    assert any(not torch.equal(all_text[name], replies[name]) for name in replies)


def test_replies_only_never_sees_the_other_targets(make, monkeypatch):
    expected = weights(make("one", replies_only=True))["model"]
    original = learning.BatchStream.next

    def scrambled(self):
        batch = original(self)
        others = (batch.targets + 7) % 261
        return batch._replace(targets=torch.where(batch.reply, batch.targets, others))

    monkeypatch.setattr(learning.BatchStream, "next", scrambled)
    found = weights(make("other", replies_only=True))["model"]
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_replies_only_on_plain_text_is_refused(make, tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("It was a dark and stormy night. " * 40)
    with pytest.raises(TrainingError, match=r"replies_only is set, but .*plain\.txt has no"):
        train(make(data=str(path), replies_only=True), report=quiet)


@pytest.mark.parametrize("replies_only", [False, True])
def test_eight_windows_in_any_passes_are_one_step(make, monkeypatch, replies_only):
    """Some passes have no reply. Goals and the count are the whole step's.

    Both optimizers magnify rounding, so the first step's gradient is compared, in float64.
    """
    monkeypatch.setattr(Learner, "clip", lambda self, loss: "nothing: the gradients are compared")
    monkeypatch.setattr(learning.ResoLLMModel, "zero_grad", lambda self, **options: None)
    steps = []
    for batch, passes in ((8, 1), (4, 2), (1, 8)):
        model = dataclasses.replace(TINY, dropout=0.0)
        config = make(batch_size=batch, grad_accumulation=passes, model=model)
        config = dataclasses.replace(config, replies_only=replies_only)
        learner = learner_of(config)
        with torch.no_grad():
            learner.model.goal.weight.normal_(generator=torch.Generator().manual_seed(0))
        learner.model.double()
        hide_replies(learner, monkeypatch)
        loss = learner.step(1.0).loss_nats
        gradients = {n: p.grad for n, p in learner.model.named_parameters() if p.grad is not None}
        steps.append((loss, gradients, learner.stream.position))
    assert gradients["goal.weight"].abs().max() > 0
    loss, one, position = steps[0]
    for other_loss, other, other_position in steps[1:]:
        assert other_loss == pytest.approx(loss, rel=1e-12)
        assert other_position == position
        assert other.keys() == one.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-7, atol=1e-12)


def hide_replies(learner, monkeypatch):
    """Three windows of eight have no reply, whatever they hold."""
    original = learner.stream.next

    def windows():
        first = learner.stream.position
        batch = original()
        places = torch.arange(first, first + len(batch.reply)) % 8
        return batch._replace(reply=batch.reply & ~(places.unsqueeze(1) % 3 == 0))

    monkeypatch.setattr(learner.stream, "next", windows)


def learner_of(config):
    """A learner before its first step."""
    tokenizer = training_run._tokenizer(config, None, None, quiet)
    data = training_run._prepare(config, tokenizer, quiet)
    return Learner(config, data, torch.device("cpu"))


def test_a_step_trains_on_windows_that_know_of_their_documents(make):
    """Guards a past that is counted and not handed on: the loss is that of a reader."""
    learner = learner_of(make(batch_size=8, model=dataclasses.replace(TINY, dropout=0.0)))
    data, model = learner.past, learner.model
    position = learner.stream.position
    batches, generator = learner.read()
    learner.stream.position = position
    expected, unaware = (
        StepObjective(model, batches, generator, past=past).pass_loss(0).item()
        for past in (data, None)
    )
    assert abs(expected - unaware) > 1e-3
    assert learner.step(1.0).loss_nats == pytest.approx(expected, rel=1e-5)


LONG_USER = Path(__file__).resolve().parents[4] / "shared" / "cases" / "longuser.jsonl"


@pytest.mark.skipif(not LONG_USER.exists(), reason="the shared cases are not beside the repository")
def test_long_questions_train_on_their_short_answers(make, monkeypatch):
    """Most windows have no reply: no step without one, and no unknown number is shown."""
    messages, rows = [], {}
    monkeypatch.setattr(meter, "SECONDS_BETWEEN_LINES", 0.0)
    for batch, passes in ((8, 1), (1, 8)):
        config = make(
            f"{batch}", data=str(LONG_USER), replies_only=True, batch_size=batch, steps=4,
            grad_accumulation=passes, model=dataclasses.replace(TINY, dropout=0.0),
        )  # fmt: skip
        train(config, report=messages.append)
        rows[batch] = [row for row in metrics(config) if "loss_nats" in row]
    assert min(row["loss_nats"] for row in rows[8]) > 0.01
    for one, several in zip(rows[8], rows[1], strict=True):
        assert one["tokens"] == several["tokens"]
        assert one["loss_nats"] == pytest.approx(several["loss_nats"], rel=1e-3)
    shown = [message for message in messages if "tok/s" in message]
    assert shown
    assert not any("nan" in text or "bits/byte" in text for text in shown)
    assert all("loss" in text for text in shown)


def test_windows_without_a_reply_are_passed_over_and_none_at_all_is_an_error(make, monkeypatch):
    config = make(replies_only=True, batch_size=1, grad_accumulation=2)
    learner = learner_of(config)
    original, kept = learner.stream.next, []

    def windows():
        batch = original()
        return batch if batch.starts.item() in kept else batch._replace(reply=batch.reply & False)

    monkeypatch.setattr(learner.stream, "next", windows)
    order = [learner.stream._start_of(place) for place in range(8)]
    kept.append(order[5])
    result = learner.step(0.5)
    assert learner.stream.position == 6
    assert result.tokens == 6 * 32
    assert result.loss_nats > 1
    kept.clear()
    with pytest.raises(TrainingError, match="no token of a reply"):
        learner.step(0.5)


@pytest.fixture
def scores(monkeypatch):
    """Validations give these bits per byte, one after the other."""
    values, original = [], validation.score_split

    def score(model, split, **options):
        real = original(model, split)
        bits = values.pop(0) if values else 9.0
        return dataclasses.replace(real, nats=bits * math.log(2) * real.bytes)

    monkeypatch.setattr(validation, "score_split", score)
    return values


def test_the_factors_of_the_tokens_are_trained_and_saved(make):
    """Guards a run whose embedding never hears of its tokenizer: that is silent, not an error."""
    config = make()
    train(config, report=quiet)
    newest = run.newest_checkpoint(config.out, pytest.fail)
    tensors, documents = load_checkpoint(newest)
    names = ResoTokenizer.from_json(documents["tokenizer.json"]).names
    factors = tensors["model"]["embedding.factors"].tolist()
    for name, row in zip(names, factors, strict=True):
        assert [f for f in row if f] == factor_rows(name, TINY.prime_embedding.num_places)
    table = tensors["model"]["embedding.factor_table"]
    assert table.any()
    assert not table[0].any()


def test_the_best_checkpoint_is_recorded_and_kept(make, scores):
    scores += [3.0, 1.0, 2.0, 4.0, 5.0]
    config = make(steps=5, validate_every=1, save_every=1, keep_last=1)
    train(config, report=quiet)
    assert run.best_checkpoint(config.out).name == "step_00000002"
    left = sorted(path.name for path in Path(config.out, "checkpoints").iterdir())
    assert left == ["step_00000002", "step_00000005"]
    record = json.loads(Path(config.out, "best.json").read_text())
    assert record["validation_bits_per_byte"] == pytest.approx(1.0)


def test_the_best_is_recorded_also_when_a_kill_came_before_the_record(make, scores, monkeypatch):
    scores += [3.0, 1.0, 4.0, 5.0]
    config = make(steps=4, validate_every=1)
    original = run.record_best

    def die(out, step, bits):
        if step == 2:
            raise KeyboardInterrupt
        original(out, step, bits)

    with monkeypatch.context() as patch:
        patch.setattr(run, "record_best", die)
        with pytest.raises(KeyboardInterrupt):
            train(config, report=quiet)
    assert run.best_checkpoint(config.out).name == "step_00000001"
    train(config, resume=True, report=quiet)
    assert run.best_checkpoint(config.out).name == "step_00000002"


# --- refusals before the first step ---------------------------------------------------------------


def test_a_tokenizer_larger_than_the_model_is_refused(make):
    with pytest.raises(TrainingError, match=r"set model\.vocab_size to at least"):
        train(make(tokenizer="default"), report=quiet)


def test_a_file_that_is_no_tokenizer_is_one_message(make, tmp_path):
    (tmp_path / "t.json").write_text("{}")
    for name in ("t.json", "missing.json"):
        with pytest.raises(TrainingError, match=name):
            train(make(tokenizer=str(tmp_path / name)), report=quiet)


def test_data_shorter_than_a_window_is_one_message(make, tmp_path):
    data = write_rows(tmp_path / "short.jsonl", {"text": "ab"}, {"text": "cd"})
    with pytest.raises(DataError, match="one window of context 32 needs 33"):
        train(make(data=data), report=quiet)


def test_a_stage_that_is_not_built_is_one_message(make, monkeypatch):
    def refuse(config):
        raise ValueError("config enables agency, which this version does not have yet")

    monkeypatch.setattr(learning, "ResoLLMModel", refuse)
    with pytest.raises(TrainingError, match="enables agency"):
        train(make(), report=quiet)


def test_a_run_directory_that_cannot_be_made_is_one_message(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"run directory .*file/run: Not a directory"):
        train(make(out="file/run"), report=quiet)


def test_home_is_written_in_full_from_python_too(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    train(dataclasses.replace(make(steps=1), out="~/run"), report=quiet)
    assert (tmp_path / "home" / "run" / "checkpoints").is_dir()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("key", ["batch_size", "grad_accumulation"])
def test_a_step_that_no_memory_holds_is_refused_before_it_begins(make, key):
    config = make(steps=1, **{key: 10**12})
    with pytest.raises(MemoryError, match=f"{key} = 1,000,000,000,000"):
        train(config, report=quiet)
    assert not Path(config.out).exists()


def test_a_device_that_is_not_here_is_one_message(make):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(TrainingError, match="no CUDA device"):
        train(make(device="cuda"), report=quiet)


def test_the_run_directory_holds_what_is_needed_to_repeat_the_run(make):
    config = make(validate_every=3)
    train(config, report=quiet)
    record = json.loads(Path(config.out, "environment.json").read_text())
    assert {"commit", "command", "packages", "seed", "processor"} <= record.keys()
    assert Path(config.out, "config.yaml").is_file()
    assert not [path for path in Path(config.out).rglob(".t*")]
