"""A liquid layer in the reactor: what moves in an arm, and what is measured."""

import pytest
import torch

from benchmarks.studies.liquid_reactor import ARMS, differences, dressed, measured, study
from cer.tasks import TaskConfig
from cer.training import CERTrainConfig, ReactorConfig, make_reactors

CONFIG = CERTrainConfig(
    reactor=ReactorConfig(hidden_dim=32, num_layers=1, num_heads=2, num_oscillators=4,
                          target_entropy=2.0),
    task=TaskConfig(num_outcomes=16, num_positions=4), wandb="disabled",
)  # fmt: skip


def reactor_of(arm):
    return dressed(make_reactors(CONFIG)[0], arm, seed=0)


def inputs():
    return torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)).softmax(-1)


@pytest.mark.parametrize("arm", ARMS)
def test_frozen_phases_stay_and_others_move(arm):
    reactor, x = reactor_of(arm), inputs()
    first = reactor.init_state(len(x)).phases
    theta = reactor(x).state.phases[:, :4]
    assert torch.equal(theta, first[:, :4]) == arm.endswith("frozen")


def test_the_potentials_of_a_frozen_layer_move():
    state = reactor_of("liquid, frozen")(inputs()).state.phases
    assert state.shape == (3, 8)
    assert state[:, 4:].abs().min() > 0


def test_a_layer_learns_unless_its_phases_are_frozen():
    for arm, learns in (("liquid", True), ("liquid, frozen", False)):
        reactor = reactor_of(arm)
        reactor(inputs()).reactions.square().mean().backward()
        assert (reactor.liquid.frequency.grad is not None) == learns
        assert reactor.liquid.cell.slope.grad.abs().max() > 0


def test_the_default_control_is_on_the_set_point_and_a_weak_one_is_not_at_once():
    reactor = reactor_of("liquid")
    found = measured(reactor, inputs(), seed=0)
    assert found["default_error"] < 1e-5
    assert found["default_steps"] == 1
    assert found["weak_steps"] > 1
    assert found["moved"] > 0
    assert found == measured(reactor, inputs(), seed=0), "noise and limit are gone again"


def test_a_row_and_its_differences(monkeypatch):
    monkeypatch.setattr("benchmarks.studies.liquid_reactor.study_config", lambda *_: CONFIG)
    monkeypatch.setattr("benchmarks.studies.liquid_reactor.fit", fit_nothing)
    rows = [{"arm": arm, "seed": 0, **study(arm, 0, 1)} for arm in ("liquid", "none")]
    assert rows[0]["untrained"] == {k: v for k, v in rows[0]["trained"].items() if k != "kl"}
    found = differences(rows, "trained", "liquid", "none")
    assert found["kl"][0] == rows[0]["trained"]["kl"] - rows[1]["trained"]["kl"]


def fit_nothing(config, models):
    from cer.training import Trainer

    return Trainer(config, models)
