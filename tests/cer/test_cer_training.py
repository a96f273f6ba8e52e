"""Tasks, losses and the trainer of reactors, and `train.py` with a reactor's configuration."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cer import losses, tasks, training
from cer import run as reactor_run
from cer.losses import LossWeights
from cer.run import RESUMABLE
from cer.tasks import Distributions, TaskConfig
from cer.training import CERTrainConfig, ReactorConfig, Trainer
from entropy_core.information import entropy_nats_from_probs, kl_nats_from_probs
from reso import train as script
from run_core import exits, runlog
from run_core.checkpoint import load_checkpoint
from run_core.run import TrainingError, changed_keys, checkpoint_path, resolve
from run_core.runlog import read_metrics

V = 8
KL_ONLY = LossWeights(entropy=0.0, mass=0.0, commutation=0.0)
TINY = CERTrainConfig(
    reactor=ReactorConfig(hidden_dim=8, num_layers=1, num_heads=2, num_refinement_steps=2,
                          num_oscillators=2, target_entropy=1.2),
    task=TaskConfig(num_outcomes=V, num_positions=3),
    steps=6, batch_size=8, val_size=16, log_every=1, validate_every=2, save_every=3,
    wandb="disabled",
)  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(**changes):
    return dataclasses.replace(TINY, **changes)


def trained(config):
    """A trainer at the last step of its configuration, without a run directory."""
    trainer = Trainer(config)
    while trainer.step < config.steps:
        trainer.train_step()
    return trainer


def quiet(message):
    """Messages that no test reads."""


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# --- tasks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_families_are_distributions_all_around_the_circle(family):
    p = tasks.draw_family(family, 400, 16, seeded())
    assert p.shape == (400, 16)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(400))
    torch.testing.assert_close(p.mean(0), torch.full((16,), 1 / 16), atol=0.03, rtol=0)
    assert entropy_nats_from_probs(p).std() > 0.05


def test_families_have_their_shapes():
    peaked, uniform, zipf, gaussian = (
        tasks.draw_family(f, 50, 16, seeded()) for f in tasks.FAMILIES[:4]
    )
    assert ((peaked.amax(-1) >= 0.7 - 1e-6) & (peaked.amax(-1) <= 0.99 + 1e-6)).all()
    on = uniform > 0
    assert (on.sum(-1) >= 2).all()
    torch.testing.assert_close(uniform, on / on.sum(-1, keepdim=True))
    ranked = zipf.sort(descending=True).values
    exponent = (ranked[:, :1] / ranked).log()[:, 1:] / torch.arange(2.0, 17).log()
    torch.testing.assert_close(exponent, exponent[:, :1].expand_as(exponent), atol=1e-4, rtol=0)
    centred = torch.stack([p.roll(-int(p.argmax())) for p in gaussian])
    torch.testing.assert_close(centred[:, 1:8], centred[:, 9:].flip(-1), atol=1e-4, rtol=1e-3)
    assert (centred[:, :-1].diff()[:, :7] <= 1e-6).all()


def test_a_mixture_has_two_parts():
    """One part alone would leave outcomes off the arc at 0; every second part covers them."""
    assert (tasks.draw_family("mixture", 200, 16, seeded()) > 0).all()
    assert (tasks.draw_family("uniform", 200, 16, seeded()) == 0).any()


def test_turning_moves_every_outcome():
    p = torch.eye(5)[[0, 1, 4]]
    turned = tasks.turn(p, torch.tensor([2, -2, 1]))
    assert turned.argmax(-1).tolist() == [2, 4, 0]


def test_observations_are_histograms_of_the_distribution():
    p = tasks.draw_family("mixture", 3, V, seeded())
    x = tasks.observe(p, 10, seeded())
    torch.testing.assert_close(x.sum(-1), torch.ones(3))
    torch.testing.assert_close(x * 10, (x * 10).round())
    many = tasks.observe(p, 20_000, seeded())
    torch.testing.assert_close(many, p, atol=0.015, rtol=0)


def test_denoising_shows_independent_views_of_one_target():
    batch = Distributions(TINY.task).batch(200, seeded())
    assert batch.x.shape == batch.target.shape == (200, 3, V)
    assert torch.equal(batch.target[:, 0], batch.target[:, 2])
    assert not torch.equal(batch.x[:, 0], batch.x[:, 2])
    error = (batch.x - batch.target).mean(0).abs().max()
    assert error < 0.05


def test_prediction_asks_for_the_distribution_after_the_last():
    config = dataclasses.replace(TINY.task, task="predict", num_draws=4000)
    batch = Distributions(config).batch(64, seeded())
    assert batch.target.shape == (64, 1, V)
    first, last = (batch.x[:, s].argmax(-1) for s in (0, 2))
    peaks = batch.target[:, 0].amax(-1) > 0.6  # where the histogram's peak is certain
    assert peaks.sum() > 10
    speed = (batch.target[:, 0].argmax(-1) - last) % V
    assert torch.equal(((last - first) % V)[peaks], (2 * speed % V)[peaks])
    assert len(set(speed[peaks].tolist())) > 3


def dump(tmp_path, array, name="probabilities"):
    path = tmp_path / "dump.npz"
    np.savez(path, **{name: array})
    return str(path)


def markov(R=10, T=6):
    rng = np.random.default_rng(0)
    p = rng.random((R, T, V)).astype(np.float32)
    return p / p.sum(-1, keepdims=True)


def test_a_dumped_file_is_split_and_read_in_order(tmp_path):
    p = markov()
    path = dump(tmp_path, p)
    config = TaskConfig("predict", path, num_outcomes=V, num_positions=2, val_fraction=0.2)
    data = Distributions(config)
    rows = torch.from_numpy(p)
    for held_out, allowed in ((False, rows[:8]), (True, rows[8:])):
        targets = data.batch(64, seeded(), held_out=held_out).target[:, 0]
        near = (targets[:, None, None] - allowed[:, 2:]).abs().amax(-1).flatten(1)
        assert (near.amin(-1) < 1e-6).all()
        assert len(set(near.argmin(-1).tolist())) > 5


def test_a_dumped_file_trains(tmp_path):
    path = dump(tmp_path, markov())
    config = tiny(task=dataclasses.replace(TINY.task, data=path, task="predict"), steps=2)
    assert math.isfinite(trained(config).validate().kl_nats[0])


@pytest.mark.parametrize(
    ("array", "name", "message"),
    [
        (markov(), "other", r"no \.npz with an array"),
        (markov()[:, :, :4], "probabilities", "must be"),
        (markov(T=1), "probabilities", "must be"),
        (2 * markov(), "probabilities", "not a distribution"),
        (markov(R=1), "probabilities", "at least 2 sequences"),
    ],
)
def test_unfit_files_are_refused(tmp_path, array, name, message):
    config = TaskConfig("predict", dump(tmp_path, array, name), num_outcomes=V, num_positions=2)
    with pytest.raises(ValueError, match=message):
        Distributions(config)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_text("no zip")
    for missing in (path, tmp_path / "none.npz"):
        with pytest.raises(ValueError, match=r"no \.npz"):
            tasks.load_distributions(missing, V, 1)


# --- losses -----------------------------------------------------------------------------------


def test_the_divergence_is_the_mean_over_pairs():
    answers = [logits(2, 3, V, seed=s) for s in range(3)]
    p = [a.softmax(-1) for a in answers]
    expected = 0.0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        m = (p[i] + p[j]) / 2
        js = (p[i] * (p[i] / m).log()).sum(-1) / 2 + (p[j] * (p[j] / m).log()).sum(-1) / 2
        expected = expected + js.mean() / 3
    torch.testing.assert_close(losses.divergence_nats(answers), expected)


def test_convergence_is_one_for_equal_and_zero_for_disjoint_answers():
    one, other = torch.full((2, 1, V), -60.0), torch.full((2, 1, V), -60.0)
    one[..., 0], other[..., 1] = 60.0, 60.0
    assert losses.convergence_score([one, one]).item() == pytest.approx(1)
    assert losses.convergence_score([one, other]).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        losses.convergence_score([one])


def test_terms_are_their_definitions():
    trainer = Trainer(TINY)
    batch = trainer.data.batch(8, seeded())
    reactor = trainer.reactors[0]
    said = reactor(batch.x).reactions
    q, p = said.softmax(-1), batch.target
    terms = losses.reactor_losses(reactor, batch, said, LossWeights(), seeded(3))
    torch.testing.assert_close(terms.kl_nats, kl_nats_from_probs(p, q).mean())
    gap = entropy_nats_from_probs(q) - entropy_nats_from_probs(p)
    torch.testing.assert_close(terms.entropy, gap.square().mean())
    gap = p.square().sum(-1) - q.square().sum(-1)
    torch.testing.assert_close(terms.mass, gap.square().mean())
    cost = losses.commutation(reactor, batch.x[:2], std=0.5, num_draws=2, generator=seeded(3))
    torch.testing.assert_close(terms.commutation_nats, cost.mu_nats.mean())
    weights = LossWeights(entropy=2.0, mass=3.0, commutation=5.0)
    expected = terms.kl_nats + 2 * terms.entropy + 3 * terms.mass + 5 * terms.commutation_nats
    torch.testing.assert_close(losses.total_loss(terms, weights), expected)
    assert losses.reactor_losses(reactor, batch, said, KL_ONLY, seeded())[1:] == (None,) * 3


def test_the_loss_of_a_prediction_reads_the_last_position():
    config = tiny(task=dataclasses.replace(TINY.task, task="predict"))
    trainer = Trainer(config)
    batch = trainer.data.batch(4, seeded())
    said = trainer.reactors[0](batch.x).reactions
    terms = losses.reactor_losses(trainer.reactors[0], batch, said, KL_ONLY, seeded())
    expected = kl_nats_from_probs(batch.target[:, 0], said[:, -1].softmax(-1)).mean()
    torch.testing.assert_close(terms.kl_nats, expected)


@pytest.mark.parametrize("term", ["kl_nats", "entropy", "mass", "commutation_nats", "coupling"])
def test_every_term_reaches_every_weight(term):
    """Guards the published control, which cuts the gradient to all but the output projection."""
    trainer = Trainer(tiny(num_reactors=2))
    batch = trainer.data.batch(8, seeded())
    answers = [reactor(batch.x).reactions for reactor in trainer.reactors]
    if term == "coupling":
        losses.divergence_nats(answers).backward()
    else:
        for reactor, said in zip(trainer.reactors, answers, strict=True):
            terms = losses.reactor_losses(reactor, batch, said, LossWeights(), seeded())
            getattr(terms, term).backward()
    for name, p in trainer.reactors.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


# --- training -----------------------------------------------------------------------------------

PLOT = runlog.RunLog.plot


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """A picture costs more than the rest of these runs."""
    monkeypatch.setattr(runlog.RunLog, "plot", lambda self, curves: None)


def test_training_beats_the_mean_predictor_on_held_out_examples():
    config = tiny(steps=40, loss=KL_ONLY, learning_rate=2e-2, batch_size=16, val_size=128)
    before = Trainer(config).validate().kl_nats[0]
    trainer = trained(config)
    target = training.held_out_batch(config, trainer.data).target
    constant = kl_nats_from_probs(target, target.mean((0, 1)).expand_as(target)).mean().item()
    assert trainer.validate().kl_nats[0] < 0.7 * constant < before


def spied_batches(config, monkeypatch):
    """Every batch a run draws, and whether it was held out."""
    found, real = [], Distributions.batch

    def spy(data, size, generator, *, held_out=False):
        batch = real(data, size, generator, held_out=held_out)
        found.append((batch, held_out))
        return batch

    monkeypatch.setattr(Distributions, "batch", spy)
    trainer = trained(config)
    for _ in range(2):
        trainer.validate()
    return found


def test_every_step_sees_new_examples_and_validation_others_always_the_same(monkeypatch):
    same_size = tiny(val_size=TINY.batch_size)  # else no two batches could be equal
    found = spied_batches(same_size, monkeypatch)
    steps = [batch.x for batch, held_out in found if not held_out]
    validations = [batch.x for batch, held_out in found if held_out]
    assert (len(steps), len(validations)) == (6, 2)
    distinct = [*steps, validations[0]]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(distinct, 2))
    assert all(torch.equal(x, validations[0]) for x in validations)


def test_seeds_share_neither_examples_nor_weights(monkeypatch):
    """Guards seeds packed above bit 31, which torch's CPU generator ignores without a word."""
    drawn = [spied_batches(tiny(seed=s, steps=3), monkeypatch)[0][0].x for s in (0, 1, 2**31)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    made = [r for s in (0, 1) for r in training.make_reactors(tiny(seed=s, num_reactors=2))]
    weights = [reactor.output.weight for reactor in made]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(weights, 2))


def test_a_file_is_validated_on_the_sequences_held_out(tmp_path, monkeypatch):
    p = torch.from_numpy(markov())
    task = dataclasses.replace(TINY.task, data=dump(tmp_path, p.numpy()), val_fraction=0.2)
    for batch, held_out in spied_batches(tiny(task=task, steps=2), monkeypatch):
        allowed = (p[8:] if held_out else p[:8]).reshape(-1, V)
        gaps = (batch.target[:, 0, None] - allowed).abs().amax(-1)
        assert (gaps.amin(-1) < 1e-6).all()


def test_the_last_step_is_validated_and_saved_whenever_it_comes(tmp_path):
    config = tiny(steps=5, log_every=3, out=str(tmp_path / "run"))
    result = reactor_run.train(config, report=quiet)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "kl_nats" in row] == [3, 5]
    assert [row["step"] for row in rows if "validation_kl_nats_0" in row] == [2, 4, 5]
    assert rows[-1]["validation_kl_nats"] == pytest.approx(result.validation.kl_nats[0])
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step_00000003", "step_00000005"]


def test_several_reactors_differ_at_the_start_and_coupling_brings_them_together():
    apart = trained(tiny(num_reactors=3, steps=12, loss=KL_ONLY, learning_rate=1e-2)).validate()
    coupling = dataclasses.replace(KL_ONLY, coupling=5.0)
    coupled = Trainer(tiny(num_reactors=3, steps=12, loss=coupling, learning_rate=1e-2))
    rows = [coupled.train_step() for _ in range(12)]
    together = coupled.validate()
    start = Trainer(tiny(num_reactors=3)).validate().convergence
    assert start < apart.convergence < together.convergence
    assert len(together.kl_nats) == 3
    row = together.to_row()
    assert row["convergence"] == together.convergence
    assert row["validation_kl_nats"] == pytest.approx(sum(together.kl_nats) / 3)
    assert 0 < rows[-1]["coupling_nats"] < math.log(2)
    assert "convergence" not in trained(tiny(steps=1)).validate().to_row()


def test_a_run_is_a_function_of_its_configuration_alone():
    torch.manual_seed(1)
    one = trained(TINY)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = trained(TINY)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(one.reactors.parameters(), two.reactors.parameters(), strict=True):
        assert torch.equal(a, b)
    other = trained(tiny(seed=1))
    assert not torch.equal(one.reactors[0].output.weight, other.reactors[0].output.weight)


def test_a_run_rises_and_falls_and_clips_each_reactor():
    trainer = Trainer(tiny(steps=40))
    found = []
    for trainer.step in (0, 1, 2, 20, 39):
        trainer._backward(1e6 * trainer.reactors[0].output.weight.square().sum())
        trainer._update()
        found.append(trainer.optimizer.param_groups[0]["lr"] / trainer.config.learning_rate)
        grads = [p.grad for p in trainer.reactors[0].parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads).item()
        assert norm == pytest.approx(2 / (1 + math.sqrt(5)), rel=1e-4)
    assert found == pytest.approx([0.5, 0.975, 0.95, 0.5, 1 / 40])


@pytest.mark.parametrize("place", ["a reaction", "a gradient"])
def test_what_is_not_finite_stops_the_run_before_the_step(place):
    trainer = Trainer(tiny(loss=KL_ONLY))
    output = trainer.reactors[0].output
    if place == "a reaction":
        with torch.no_grad():
            output.bias[0] = math.nan
    else:
        output.bias.register_hook(lambda gradient: gradient * math.inf)
    before = output.weight.clone()
    with pytest.raises(FloatingPointError, match=f"step 1: {place}"):
        trainer.train_step()
    assert torch.equal(output.weight, before)


def test_rows_come_before_their_checkpoint(tmp_path, monkeypatch):
    """A kill between the two would else leave a step without its row."""
    out, found, real = tmp_path / "run", [], reactor_run.save_checkpoint

    def save(run_dir, step, **parts):
        found.append((step, {row["step"] for row in read_metrics(out / "metrics.jsonl")}))
        return real(run_dir, step, **parts)

    monkeypatch.setattr(reactor_run, "save_checkpoint", save)
    reactor_run.train(tiny(out=str(out)), report=quiet)
    assert found == [(3, {1, 2, 3}), (6, {1, 2, 3, 4, 5, 6})]


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny(steps=0),
        lambda: tiny(learning_rate=0.0),
        lambda: tiny(seed=-1),
        lambda: tiny(loss=LossWeights(coupling=1.0)),
        lambda: LossWeights(mass=-1.0),
        lambda: TaskConfig(task="guess"),
        lambda: TaskConfig(num_outcomes=4),
        lambda: TaskConfig(val_fraction=1.0),
        lambda: tasks.draw_family("cauchy", 1, V, seeded()),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match=r"must be|needs|need a"):
        make()


# --- train.py -----------------------------------------------------------------------------------


def call(monkeypatch, *args):
    """Exit status of train.py called with `args`."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        exits.run(script.main)
    return caught.value.code


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "cer.yaml"
    path.write_text(yaml.safe_dump(TINY.to_dict() | {"out": str(tmp_path / "run")}))
    return path


def weights_of(run):
    return load_checkpoint(resolve(run))[0]["model"]


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_three_steps_saved_and_three_more_are_six_steps(config_file, tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert call(monkeypatch, "--config", config_file, "--out", whole) == 0
    assert "6 steps, validation KL" in capsys.readouterr().out
    real, calls = training.Trainer.train_step, []

    def dies(trainer):
        calls.append(1)
        if len(calls) == 6:
            raise OSError("killed")
        return real(trainer)

    monkeypatch.setattr(training.Trainer, "train_step", dies)
    assert call(monkeypatch, "--config", config_file, "--out", parts) == 1
    assert steps_of(parts)[-1] == 5
    monkeypatch.setattr(training.Trainer, "train_step", real)
    assert call(monkeypatch, "--out", parts, "--resume") == 0
    assert steps_of(parts) == steps_of(whole)
    one, two = weights_of(whole), weights_of(parts)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_directory_is_not_overwritten_or_resumed_differently(
    config_file, monkeypatch, capsys, tmp_path
):
    out = tmp_path / "run"
    assert call(monkeypatch, "--config", config_file, "--out", tmp_path / "no", "--resume") == 1
    assert "no run to resume" in capsys.readouterr().err
    assert call(monkeypatch, "--config", config_file, "steps=2") == 0
    assert (out / "environment.json").is_file()
    assert call(monkeypatch, "--config", config_file) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert call(monkeypatch, "--out", out, "--resume", "loss.mass=7") == 1
    assert "loss.mass (0.1 -> 7" in capsys.readouterr().err
    assert call(monkeypatch, f"--out={out}", "--resume", "steps=3") == 0


def test_a_signal_saves_after_its_step_and_old_checkpoints_go(config_file, tmp_path, monkeypatch):
    real = training.Trainer.train_step

    def signalled(trainer):
        if trainer.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(trainer)

    monkeypatch.setattr(training.Trainer, "train_step", signalled)
    before = signal.getsignal(signal.SIGTERM)
    assert call(monkeypatch, "--config", config_file, "save_every=1") == 0
    assert signal.getsignal(signal.SIGTERM) == before
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert left == ["step_00000003", "step_00000004"]


def final_hash(run, step=6):
    data = (checkpoint_path(run, step) / "model.safetensors").read_bytes()
    return hashlib.sha256(data).hexdigest()


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path):
    """kill -9 in steps, in saving and in pruning; each time the run is resumed."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = dict(steps=12, save_every=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the killed process: sums of more threads differ in their bits
    try:
        reactor_run.train(tiny(**options, out=str(whole)), report=quiet)
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-c", KILLED, json.dumps(options | {"out": str(parts)})]
    root = str(Path(script.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends[-1] == 0
    assert set(ends[:-1]) == {-signal.SIGKILL}
    assert len(ends) > 3
    assert steps_of(parts) == steps_of(whole)
    assert final_hash(parts, 12) == final_hash(whole, 12)


# Imports once; each run is a fork that kills itself at a call drawn at random.
KILLED = """
import json, os, random, signal, sys
import torch._dynamo  # the first optimizer of a process imports it
sys.path.insert(0, "tests/cer")
from test_cer_training import reactor_run, tiny, runlog
options, calls, ends = json.loads(sys.argv[1]), [0], []
def dies(function, last):
    def call(*args, **named):
        calls[0] += 1
        if calls[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **named)
    return call
def child(seed):
    last = random.Random(seed).randrange(20, 70)
    runlog.RunLog.plot = lambda self, curves: None
    for owner, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (reactor_run, "_save"),
                        (reactor_run.Trainer, "train_step"), (reactor_run, "prune")):
        setattr(owner, name, dies(getattr(owner, name), last))
    resume = os.path.exists(os.path.join(options["out"], "config.yaml"))
    reactor_run.train(tiny(**options), resume=resume, report=lambda message: None)
    os._exit(0)
while ends[-1:] != [0] and len(ends) < 60:
    pid = os.fork() or child(len(ends))
    ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert ends[-1] in (0, -signal.SIGKILL), ends
print(json.dumps(ends))
"""


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_a_flipped_bit_sets_the_checkpoint_aside_and_the_end_is_the_same(
    config_file, tmp_path, monkeypatch, capsys, part
):
    out = tmp_path / "run"
    assert call(monkeypatch, "--config", config_file) == 0
    expected = final_hash(out)
    path = checkpoint_path(out, 6) / part
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    capsys.readouterr()
    assert call(monkeypatch, f"--out={out}", "--resume") == 0
    shown = capsys.readouterr().out
    assert "set aside as corrupt-step_00000006" in shown
    assert part in shown
    assert final_hash(out) == expected


def test_a_run_draws_its_loss(config_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runlog.RunLog, "plot", PLOT)
    drawn, real = [], runlog.draw_losses

    def draw(training, validation, labels, title):
        drawn.append((training, validation, labels, title))
        return real(training, validation, labels, title)

    monkeypatch.setattr(runlog, "draw_losses", draw)
    assert call(monkeypatch, "--config", config_file, "num_reactors=2") == 0
    assert capsys.readouterr().err == "training\n"  # a bar is for a terminal
    training_curve, validation_curve, labels, title = drawn[-1]
    assert training_curve[0] == [1, 2, 3, 4, 5, 6]
    assert validation_curve[0] == [2, 4, 6]
    assert all(value > 0 for value in training_curve[1] + validation_curve[1])
    assert "KL" in labels[1]
    assert title == "run"
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_kind_of_a_configuration_decides_what_is_trained(config_file, tmp_path):
    for options in (["--config", str(config_file)], [f"config={config_file}"], ["kind=reactor"]):
        config, _ = script.read_config(options)
        assert isinstance(config, CERTrainConfig)
        assert config.kind == "reactor"
    config, _ = script.read_config(["--config", "configs/small.yaml"])
    assert config.kind == "language_model"


def test_a_run_from_before_the_kind_was_written_is_resumed(monkeypatch, config_file, tmp_path):
    """Its config.yaml has a `reactor` section, its checkpoints name no kind."""
    assert call(monkeypatch, "--config", config_file, "steps=2") == 0
    saved = tmp_path / "run" / "config.yaml"
    lines = saved.read_text().splitlines(keepends=True)
    assert lines[0] == "kind: reactor\n"
    saved.write_text("".join(lines[1:]))
    config, resume = script.read_config(["--out", str(tmp_path / "run"), "--resume", "steps=3"])
    assert (config.kind, config.steps, resume) == ("reactor", 3, True)
    old = config.to_dict()
    del old["kind"]
    assert changed_keys(old, config.to_dict(), RESUMABLE) == []


def test_an_unknown_kind_is_one_line(monkeypatch, capsys):
    assert call(monkeypatch, "kind=robot") == 2
    assert "kind = robot: expected language_model or reactor" in capsys.readouterr().err


def test_the_shipped_configuration_is_a_reactor_of_full_size():
    path = str(script.Path(script.__file__).parent / "configs" / "cer.yaml")
    config, resume = script.read_config(["--config", path])
    assert not resume
    (reactor,) = training.make_reactors(config)
    assert 1.6e6 < sum(p.numel() for p in reactor.parameters()) < 1.7e6


# --- what a user may do to a run ----------------------------------------------------------------


def test_home_is_written_in_full(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    reactor_run.train(tiny(steps=1, out="~/run"), report=quiet)
    assert checkpoint_path(tmp_path / "home" / "run", 1).is_dir()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reactor": {"num_layers": 10**9}}, "parameters"),
        ({"reactor": {"hidden_dim": 16 * 10**6}}, "parameters"),
        ({"num_reactors": 10**9}, "parameters"),
        ({"batch_size": 10**12}, "batch_size"),
        ({"val_size": 10**12}, "val_size"),
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_built(tmp_path, changes, told):
    config = tiny(out=str(tmp_path / "run"))
    shape = dataclasses.replace(config.reactor, **changes.pop("reactor", {}))
    config = dataclasses.replace(config, reactor=shape, **changes)
    with pytest.raises(MemoryError, match=told):
        reactor_run.train(config, report=quiet)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_that_is_resumed_says_so_and_how_to_go_on(tmp_path):
    config, told = tiny(steps=2, out=str(tmp_path / "run")), []
    reactor_run.train(config, report=quiet)
    reactor_run.train(config, resume=True, report=told.append)
    assert "finished at step 2 (steps = 2)" in told[-1]
    assert "--resume --steps 4" in told[-1]


def test_a_signal_in_a_validation_gives_it_up_and_saves(tmp_path, monkeypatch):
    def endless(trainer):
        signal.raise_signal(signal.SIGTERM)
        while True:
            time.sleep(0.01)

    config, told = tiny(steps=9, validate_every=3, out=str(tmp_path / "run")), []
    monkeypatch.setattr(reactor_run.Trainer, "validate", endless)
    started = time.monotonic()
    result = reactor_run.train(config, report=told.append)
    assert time.monotonic() - started < 5
    assert (result.validation, result.step) == (None, 3)
    assert "stopped by SIGTERM at step 3" in told[-1]
    assert checkpoint_path(tmp_path / "run", 3).is_dir()


def test_a_signal_in_a_long_step_gives_it_up_and_the_resume_is_exact(tmp_path, monkeypatch):
    config = tiny(steps=5, out=str(tmp_path / "run"))
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    reactor_run.train(whole, report=quiet)
    original, told = Trainer._gradient, []

    def slow(trainer):
        row = original(trainer)
        if trainer.step == 2:
            signal.raise_signal(signal.SIGTERM)
            while True:
                time.sleep(0.01)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_gradient", slow)
        result = reactor_run.train(config, report=told.append)
    assert (result.step, result.validation) == (2, None)
    assert "stopped by SIGTERM at step 2" in told[-1]
    reactor_run.train(config, resume=True, report=quiet)
    assert final_hash(config.out, 5) == final_hash(whole.out, 5)


def test_several_processes_are_refused_before_the_run_is_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match="a reactor trains in one process"):
        reactor_run.train(tiny(out=str(out)))
    assert not out.exists()
