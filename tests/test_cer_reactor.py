"""The reactor: published numbers digit for digit, and the corrected control against its claims."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cer import CoherentEntropyReactor
from cer.blocks import SelfAttention, dropout
from entropy_core.control import CERAction
from entropy_core.information import entropy_nats

REFERENCE = Path(__file__).resolve().parents[2] / "shared/reference/cer_mirror_seeds_0_4.json"
NUMBERS = ("entropy", "mass", "phase", "sum_p", "max_prob", "max_entropy", "deficit")
SMALL = dict(input_dim=6, hidden_dim=16, output_dim=5, num_heads=2, num_oscillators=4)
# Our output of seed 1, PEAKED: (entropy, phase, max_prob, deficit) of each step.
RECORDED = (
    (4.867409, -0.178109, 0.036358, -2.088354),
    (4.467440, -0.378065, 0.067957, -1.760955),
    (4.067461, -0.548418, 0.133831, -1.393034),
    (3.771479, -0.643227, 0.265228, -1.168663),
    (3.306642, -0.581473, 0.398356, -0.598450),
    (2.817160, -0.418672, 0.513865, 0.181795),
)


def inputs(kind, shape=(4, 16, 128), scale=10.0):
    """PEAKED, UNIFORM or RANDOM (of the global generator) distributions."""
    if kind == "PEAKED":
        return (scale * F.one_hot(torch.zeros(shape[:2], dtype=torch.long), shape[2])).softmax(-1)
    return (torch.zeros(shape) if kind == "UNIFORM" else torch.randn(shape)).softmax(-1)


@pytest.fixture
def small():
    """A small corrected reactor whose every parameter is moved off its start."""

    def make(seed=0, **options):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            reactor = CoherentEntropyReactor(**(SMALL | dict(target_entropy=1.5) | options))
            with torch.no_grad():
                for p in reactor.parameters():
                    p.add_(0.1 * torch.randn_like(p))
        return reactor

    return make


def published(seed):
    """The three conditions of a seed: {name: ReactorOutput}, as the published script ran them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reactor = CoherentEntropyReactor(mode="published")
        return {kind: reactor(inputs(kind)) for kind in ("PEAKED", "UNIFORM", "RANDOM")}


# --- published --------------------------------------------------------------------------------


@pytest.mark.skipif(not REFERENCE.exists(), reason="no ../shared with the published trajectories")
@pytest.mark.parametrize("index", range(5))
def test_published_trajectories(index):
    reference = json.loads(REFERENCE.read_text())["seed_results"][index]
    ours = published(reference["seed"])
    assert [c["name"] for c in reference["conditions"]] == list(ours)
    for condition in reference["conditions"]:
        result = ours[condition["name"]]
        for expected, step in zip(condition["steps"], result.trajectory, strict=True):
            assert (step.layer_idx, step.step_idx) == (expected["layer"], expected["step"])
            assert step.control.name == expected["control"]
            assert step.drift_applied == expected["drift_applied"]
            for name in NUMBERS:
                assert getattr(step, name) == pytest.approx(expected[name], abs=5e-6)
        output_nats = entropy_nats(result.reactions).mean().item()
        assert output_nats == pytest.approx(condition["output_entropy"], abs=5e-6)
        assert result.mass.item() == pytest.approx(condition["steps"][-1]["mass"], abs=5e-6)


def test_published_seed_1_as_recorded():
    steps = published(1)["PEAKED"].trajectory
    for step, expected in zip(steps, RECORDED, strict=True):
        got = (step.entropy, step.phase, step.max_prob, step.deficit)
        assert got == pytest.approx(expected, abs=5e-6)
    assert [s.control.name for s in steps] == ["BRAKE"] * 5 + ["ESCAPE"]


def test_size():
    count = lambda r: sum(p.numel() for p in r.parameters())  # noqa: E731
    assert count(CoherentEntropyReactor(mode="published")) == 1_645_952
    assert count(CoherentEntropyReactor()) == 1_645_952 + 2 * 16


def test_published_phase_goes_on_until_the_history_is_reset():
    torch.manual_seed(0)
    reactor = CoherentEntropyReactor(mode="published").eval()
    x = inputs("UNIFORM", (2, 3, 128))
    first = reactor(x)
    second = reactor(x, first.state)
    for _ in range(2):
        reactor.react(x)
    assert reactor.get_trajectory() == first.trajectory + second.trajectory
    assert second.trajectory[0].phase != first.trajectory[0].phase
    reactor.reset_history()
    assert reactor.get_trajectory() == ()
    assert reactor.react(x)[1] == first.mass


def test_published_randomness_is_the_generators():
    torch.manual_seed(0)
    reactor = CoherentEntropyReactor(mode="published", target_entropy=5.5)  # always escapes
    x = inputs("PEAKED", (2, 3, 128))
    run = lambda seed: reactor(x, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    before = torch.get_rng_state()
    assert run(1).trajectory == run(1).trajectory
    assert run(1).trajectory != run(2).trajectory
    assert {s.control for s in run(1).trajectory} == {CERAction.ESCAPE}
    assert torch.equal(torch.get_rng_state(), before)
    reactor.eval()  # the escape noise alone
    assert run(1).trajectory != run(2).trajectory


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_is_torchs(p):
    """Same draws at the construction, same values, same dropout draws."""
    torch.manual_seed(3)
    twin = nn.MultiheadAttention(8, 2, dropout=p, batch_first=True)
    torch.manual_seed(3)
    ours = SelfAttention(8, 2)
    for a, b in [
        (ours.in_weight, twin.in_proj_weight),
        (ours.out.weight, twin.out_proj.weight),
        (ours.in_bias, twin.in_proj_bias),
        (ours.out.bias, twin.out_proj.bias),
    ]:
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    x = torch.randn(3, 5, 8)
    torch.manual_seed(4)
    expected = twin(x, x, x)[0]
    torch.manual_seed(4)
    torch.testing.assert_close(ours(x, p, None), expected)


def test_dropout_is_torchs_and_owns_its_randomness():
    x = torch.randn(7, 9)
    torch.manual_seed(5)
    expected = F.dropout(x, 0.4)
    torch.testing.assert_close(dropout(x, 0.4, torch.Generator().manual_seed(5)), expected)
    assert dropout(x, 0.0, None) is x
