"""The reactor: published numbers digit for digit, and the corrected control against its claims."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cer.blocks import SelfAttention, dropout
from cer.corrected import corrected_step, drift_to_target, modulate
from cer.published import published_entropy_nats
from cer.reactor import CoherentEntropyReactor
from cer.trajectory import ReactorState, read_state
from entropy_core.information import entropy_nats
from entropy_core.policies import CERAction, CEROptions

REFERENCE = Path(__file__).resolve().parents[3] / "shared/reference/cer_mirror_seeds_0_4.json"
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


# --- corrected --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [1.0, 2.0, 3.0, 4.0, 5.0])
@pytest.mark.parametrize("kind", ["PEAKED", "UNIFORM", "RANDOM"])
def test_the_set_point_is_reached_by_every_sample(target, kind):
    torch.manual_seed(0)
    reactor = CoherentEntropyReactor(target_entropy=target)
    torch.manual_seed(1)
    with torch.no_grad():
        steps = reactor(inputs(kind, (2, 5, 128))).trajectory
    assert (steps[-1].entropy - target).abs().max() < 1e-3


def test_a_step_reports_its_state_and_action(small):
    """The log against the state itself, taken where the output projection reads it."""
    seen = []
    reactor = small(num_layers=1, num_refinement_steps=1, target_entropy=2.0)
    reactor.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))
    reactor.output.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    result = reactor(inputs("RANDOM", (3, 4, 6)))
    before, z = seen
    (step,) = result.trajectory
    p = z.softmax(-1)
    mean = lambda value: value.mean(-1)  # noqa: E731
    torch.testing.assert_close(step.entropy, mean(-(p * p.log()).sum(-1)))
    torch.testing.assert_close(step.mass, 1 - mean(p.square().sum(-1)))
    torch.testing.assert_close(result.mass, step.mass)
    torch.testing.assert_close(step.max_prob, mean(p.amax(-1)))
    torch.testing.assert_close(step.sum_p, torch.ones(3))
    assert step.max_entropy == pytest.approx(math.log(16))
    field = torch.exp(1j * result.state.phases).mean(-1)
    torch.testing.assert_close(step.phase, field.angle())
    assert (mean(entropy_nats(before)) - 2.0 > 0.1).all()
    assert step.control.tolist() == [CERAction.BRAKE] * 3
    assert step.drift_applied.all()
    assert (step.deficit < -0.1).all()
    assert reactor(inputs("RANDOM", (3, 4, 6)), log=False).trajectory == ()


def test_log_off_changes_nothing_else(small):
    x = inputs("RANDOM", (3, 4, 6))
    for reactor in (small(), small(mode="published").eval()):
        on, off = (
            reactor(x, generator=torch.Generator().manual_seed(0), log=log) for log in (True, False)
        )
        assert torch.equal(on.reactions, off.reactions)
        assert torch.equal(on.state.phases, off.state.phases)


def test_escape_and_brake_both_act():
    logits = torch.stack([torch.linspace(-9, 9, 16), torch.linspace(-0.1, 0.1, 16)])[:, None]
    options = CEROptions(target_nats=2.0, max_deficit_nats=9.0)
    z, deficit = drift_to_target(logits, options)
    assert entropy_nats(z) == pytest.approx(torch.full((2, 1), 2.0), abs=1e-3)
    assert deficit[0] > 0 > deficit[1]
    torch.testing.assert_close(deficit, 2.0 - entropy_nats(logits))
    one_step, moved = drift_to_target(logits, CEROptions(target_nats=2.0, max_deficit_nats=0.25))
    assert entropy_nats(one_step) - entropy_nats(logits) == pytest.approx(moved, abs=1e-3)
    assert moved.flatten().tolist() == pytest.approx([0.25, -0.25])
    ties = torch.ones(1, 1, 16)
    assert torch.equal(drift_to_target(ties, options)[0], ties)


def test_actions_of_samples_above_on_and_below_the_set_point():
    torch.manual_seed(0)
    options = CEROptions(target_nats=2.0, drift_strength=0.0)
    on, _ = drift_to_target(torch.randn(1, 3, 16), options)
    z = torch.cat([on / 1.5, on, on * 1.5])
    outcome = corrected_step(z, torch.zeros(3, 4), torch.zeros(4), options, 2.0)
    assert outcome.action.tolist() == [CERAction.BRAKE, CERAction.NONE, CERAction.ESCAPE]
    torch.testing.assert_close(outcome.z, on.expand(3, -1, -1), atol=1e-3, rtol=1e-3)


def test_modulation_sharpens_above_the_target_and_spreads_below():
    """Against a loop over features; in step it is one factor, exp(a e)."""
    torch.manual_seed(0)
    z, phases = torch.randn(2, 3, 8), torch.randn(2, 4)
    error, strength = torch.tensor([1.5, -0.5]), 0.3
    expected = torch.empty_like(z)
    for b in range(2):
        mean = torch.exp(1j * phases[b]).mean()
        for i in range(8):
            in_phase = mean.abs() * torch.cos(phases[b, i // 2] - mean.angle())
            expected[b, :, i] = z[b, :, i] * torch.exp(strength * error[b] * in_phase)
    torch.testing.assert_close(modulate(z, phases, error, strength), expected)
    locked = modulate(z, torch.ones(2, 4), error, strength)
    torch.testing.assert_close(locked, z * (strength * error).exp()[:, None, None])
    change = (entropy_nats(locked) - entropy_nats(z)).mean(-1)
    assert change[0] < 0 < change[1]


def test_oscillators_lock_on_the_set_point_and_stay_apart_away_from_it():
    """Frequencies grow with the error, so at the set point the coupling wins."""
    torch.manual_seed(0)
    x = inputs("RANDOM", (2, 3, 128))
    coherence = {}
    for coupling, target in [(2.0, 5.0), (0.0, 5.0), (2.0, 1.0)]:
        reactor = CoherentEntropyReactor(target_entropy=target, kuramoto_k=coupling)
        phases = reactor(x).state.phases
        coherence[coupling, target] = torch.exp(1j * phases).mean(-1).abs().min().item()
    assert coherence[2.0, 5.0] > 0.99
    assert coherence[0.0, 5.0] < 0.8
    assert coherence[2.0, 1.0] < coherence[2.0, 5.0] - 0.005


def test_oscillators_follow_their_equation():
    """A thousand small Euler steps of the pairwise sum, driven by the error before the control."""
    reactor = CoherentEntropyReactor(
        **SMALL, target_entropy=1.0, num_layers=1, num_refinement_steps=1
    )
    seen = []
    reactor.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))
    result = reactor(inputs("RANDOM", (2, 3, 6)))
    error = entropy_nats(seen[0]).mean(-1, keepdim=True) - 1.0  # (B,1)
    theta = reactor.initial_phases.detach().expand(2, -1).double()
    for _ in range(1000):
        pulls = (theta[:, None] - theta[:, :, None]).sin().mean(-1)
        theta = theta + 0.5 / 1000 * (reactor.omega * error + 2.0 * pulls)
    torch.testing.assert_close(result.state.phases.double(), theta, atol=1e-3, rtol=0)


def test_samples_are_independent(small):
    reactor = small()
    x = inputs("RANDOM", (3, 4, 6))
    together = reactor(x)
    for b in range(3):
        alone = reactor(x[b : b + 1])
        torch.testing.assert_close(together.reactions[b : b + 1], alone.reactions)
        torch.testing.assert_close(together.state.phases[b : b + 1], alone.state.phases)
        for ours, theirs in zip(together.trajectory, alone.trajectory, strict=True):
            torch.testing.assert_close(ours.entropy[b], theirs.entropy[0])
            torch.testing.assert_close(ours.deficit[b], theirs.deficit[0])
    grad = torch.autograd.grad(together.reactions[0].sum(), reactor.initial_phases)[0]
    assert grad.abs().max() > 0


def test_forward_is_pure_and_the_state_is_a_value(small):
    reactor = small(dropout=0.1)
    before = {k: v.clone() for k, v in reactor.state_dict().items()}
    x = inputs("RANDOM", (3, 4, 6))
    run = lambda state=None: reactor(x, state, torch.Generator().manual_seed(0))  # noqa: E731
    first = run()
    assert torch.equal(run().reactions, first.reactions)
    assert not torch.equal(run(first.state).reactions, first.reactions)
    assert reactor.get_trajectory() == ()
    assert all(torch.equal(v, before[k]) for k, v in reactor.state_dict().items())


def test_corrected_react_starts_anew_and_keeps_plain_numbers(small):
    reactor = small()
    x = inputs("RANDOM", (3, 4, 6))
    first, again = reactor.react(x), reactor.react(x)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    steps = reactor.get_trajectory()
    assert [(s.layer_idx, s.step_idx) for s in steps] == 2 * [
        (i, j) for i in (0, 1) for j in range(3)
    ]
    samples = reactor(x).trajectory
    for plain, step in zip(steps[:6], samples, strict=True):
        for name in ("entropy", "mass", "phase", "sum_p", "max_prob", "deficit"):
            assert getattr(plain, name) == pytest.approx(getattr(step, name).mean().item())
        assert plain.drift_applied == (plain.control != CERAction.NONE)
    torch.testing.assert_close(first[1], reactor(x).mass.mean())
    reactor.reset_history()
    assert reactor.get_trajectory() == ()


LOSSES = {
    "reactions": lambda out: out.reactions.square().sum(),
    "mass": lambda out: out.mass.sum(),
    "deficit": lambda out: sum(s.deficit.square().sum() for s in out.trajectory),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_every_parameter(small, name):
    reactor = small()
    LOSSES[name](reactor(inputs("RANDOM", (3, 4, 6)))).backward()
    for parameter, p in reactor.named_parameters():
        if name == "reactions" or not parameter.startswith("output."):
            assert p.grad is not None, parameter
            assert p.grad.isfinite().all(), parameter
            assert p.grad.abs().max() > 1e-8, parameter


def test_gradient_through_the_control_is_the_differences(small):
    reactor = small(target_entropy=2.0).double()
    x = inputs("RANDOM", (2, 3, 6)).double()

    def loss():
        out = reactor(x)
        return out.reactions.square().sum() + out.mass.sum()

    for p in (reactor.omega, reactor.initial_phases, reactor.encoder.bias):
        (grad,) = torch.autograd.grad(loss(), p)
        direction = grad.sign()
        with torch.no_grad():
            values = []
            for h in (1e-4, -1e-4):
                p.add_(h * direction)
                values.append(loss())
                p.sub_(h * direction)
        slope = (values[0] - values[1]).item() / 2e-4
        assert slope == pytest.approx(grad.abs().sum().item(), rel=1e-4)


def test_published_trains_the_output_projection_alone(small):
    reactor = small(mode="published")
    reactor(inputs("RANDOM", (3, 4, 6))).reactions.square().sum().backward()
    trained = {name for name, p in reactor.named_parameters() if p.grad is not None}
    assert trained == {"output.weight", "output.bias"}


# --- what users get wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="fixed"), "published, corrected"),
        (dict(hidden_dim=10, num_heads=4), "multiple of num_heads"),
        (dict(num_oscillators=24), "multiple of num_oscillators"),
        (dict(target_entropy=5.6), "ln hidden_dim"),
        (dict(target_entropy=0.0), "ln hidden_dim"),
        (dict(num_layers=0), "num_layers must be at least 1"),
        (dict(dropout=1.0), "dropout must be in"),
        (dict(drift_strength=-1), "drift_strength"),
        (dict(kuramoto_k=math.inf), "kuramoto_k must be finite"),
        (dict(kuramoto_k=None), "kuramoto_k must be finite and a number, got None"),
        (dict(num_layers=2.5), "num_layers must be at least 1 and whole, got 2.5"),
        (dict(num_layers=True), "num_layers must be at least 1 and whole, got True"),
        (dict(dropout="a"), "dropout must be in"),
        (dict(target_entropy=None), "target_entropy must be inside"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CoherentEntropyReactor(**options)


def with_entry(value, dtype=torch.float32):
    """Distributions (2,3,6), one number of which is `value`."""
    x = torch.full((2, 3, 6), 1 / 6, dtype=dtype)
    x[1, 2, 3] = value
    return x


@pytest.mark.parametrize("mode", ["published", "corrected"])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(4, 6), ValueError, r"\(batch, positions, 6\), got \(4, 6\)"),
        (torch.zeros(2, 4, 7), ValueError, r"got \(2, 4, 7\)"),
        (torch.zeros(0, 4, 6), ValueError, "x is empty"),
        (torch.zeros(2, 0, 6), ValueError, "x is empty"),
        (with_entry(math.nan), ValueError, r"x\[1, 2, 3\] = nan is not finite"),
        (with_entry(math.inf), ValueError, r"x\[1, 2, 3\] = inf is not finite"),
        (with_entry(-0.1), ValueError, "is negative"),
        (with_entry(0.5), ValueError, r"x\[1, 2\] sums to 1\.33333, not 1: .*normalise=True"),
        (with_entry(0.5, torch.bfloat16), ValueError, "not 1"),
        (with_entry(0.5).to(torch.complex64), TypeError, "real numbers"),
        (torch.ones(2, 3, 6, dtype=torch.bool), TypeError, "real numbers"),
        ([[[0.5, 0.5, 0, 0, 0, 0], [1.0]]], TypeError, "nested lists of equal length"),
        ([[["a"] * 6]], TypeError, "real numbers"),
        (None, TypeError, "real numbers"),
    ],
)
def test_what_is_no_batch_of_distributions_reaches_no_state(small, mode, x, error, message):
    """Guards the published phase, which stayed NaN for ever after one bad batch."""
    reactor = small(mode=mode, dropout=0.0)
    good = inputs("RANDOM", (2, 3, 6))
    reactor.react(good)
    history, state = reactor.get_trajectory(), reactor._history_state
    with pytest.raises(error, match=message):
        reactor.react(x)
    assert reactor.get_trajectory() == history
    assert reactor._history_state == state
    assert all(math.isfinite(step.phase) for step in reactor.get_trajectory())
    assert reactor.react(good)[0].isfinite().all()


def test_a_state_that_does_not_fit_is_refused(small):
    reactor, x = small(), inputs("RANDOM", (2, 3, 6))
    with pytest.raises(ValueError, match=r"phases must be \(2, 4\)"):
        reactor(x, ReactorState(torch.zeros(3, 4)))
    with pytest.raises(ValueError, match="phases must be finite"):
        reactor(x, ReactorState(torch.full((2, 4), math.nan)))


def test_arrays_lists_and_other_dtypes_are_read_as_the_tensor_is(small):
    reactor = small()
    x = torch.tensor([[[0.5, 0.25, 0.25, 0, 0, 0], [0, 0, 0, 0, 0, 1]]])
    expected = reactor(x).reactions
    for same in (x.numpy(), x.double().numpy(), x.tolist(), x.double(), x.half(), x.bfloat16()):
        assert torch.equal(reactor(same).reactions, expected)
    one_hot = x[:, 1:].long()
    assert torch.equal(reactor(one_hot).reactions, reactor(x[:, 1:]).reactions)


def test_normalise_divides_each_row_by_its_sum(small):
    reactor = small()
    counts = torch.tensor([[[4, 2, 2, 0, 0, 0], [1, 1, 1, 1, 1, 1]]])
    expected = reactor(counts / counts.sum(-1, keepdim=True))
    assert torch.equal(reactor(counts, normalise=True).reactions, expected.reactions)
    assert torch.equal(reactor.react(counts.tolist(), normalise=True)[0], expected.reactions)
    huge = reactor(8e37 * counts, normalise=True).reactions
    torch.testing.assert_close(huge, expected.reactions)
    with pytest.raises(ValueError, match="its row is all 0"):
        reactor(torch.zeros(2, 3, 6), normalise=True)
    with pytest.raises(ValueError, match="is negative"):
        reactor(with_entry(-1.0), normalise=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_reaches_the_set_point(dtype):
    torch.manual_seed(0)
    reactor = CoherentEntropyReactor().to(dtype)
    x = inputs("RANDOM", (2, 5, 128))
    with torch.no_grad():
        out = reactor(x.to(dtype))
        again = reactor(x.to(dtype), out.state)
    assert (out.trajectory[-1].entropy - 3.0).abs().max() < 1e-3
    assert out.reactions.dtype == dtype
    assert again.reactions.isfinite().all()
    torch.manual_seed(0)
    with torch.no_grad():
        single = CoherentEntropyReactor()(x).reactions
    torch.testing.assert_close(out.reactions.float(), single, atol=0.05, rtol=0.05)


def test_the_fast_reading_is_the_plain_one():
    """Values and gradients; the published logarithm has + 1e-10, which six decimals do not see."""
    torch.manual_seed(0)
    z = (5 * torch.randn(2, 3, 16)).double().requires_grad_()
    p = z.softmax(-1)
    plain = dict(
        entropy=-(p * p.log()).sum(-1),
        mass=1 - p.square().sum(-1),
        sum_p=p.sum(-1),
        max_prob=p.amax(-1),
    )
    for name, value in read_state(z)._asdict().items():
        torch.testing.assert_close(value, plain[name])
        weights = torch.linspace(1, 2, 6).double().view(2, 3)
        grads = [
            torch.autograd.grad((v * weights).sum(), z, retain_graph=True)[0]
            for v in (value, plain[name])
        ]
        torch.testing.assert_close(*grads)
    assert published_entropy_nats(z).item() == pytest.approx(
        plain["entropy"].mean().item(), abs=1e-7
    )
    far = read_state(torch.tensor([[[1e4, 0.0, -1e4]]]))
    assert [v.item() for v in far] == [0, 0, 1, 1]
