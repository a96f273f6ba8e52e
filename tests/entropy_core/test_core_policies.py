"""Decoding and reactor policies: tables of inputs and decisions."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from entropy_core import policies
from entropy_core.information import entropy_nats
from entropy_core.policies import CERAction, SlipCause

F64 = torch.float64
NAN = math.nan


def column(values):
    return torch.tensor(values, dtype=F64)


# --- Phase-Slip -------------------------------------------------------------------------------

NONE, SPIKE, STALE, LOOP = SlipCause


def run_slip(entropies, options=None, loop_scores=None):
    options = options or policies.PhaseSlipOptions()
    state, causes = policies.phase_slip_init(options), []
    for t, entropy in enumerate(entropies):
        known = {} if loop_scores is None else {"loop_score": loop_scores[t]}
        cause, state = policies.phase_slip_step(state, entropy, options, **known)
        causes.append(cause)
    return causes


def published_slips(entropies):
    """FACTS section 5 in one loop: the step indices at which the published sampler slips."""
    last, slips = -10, []
    for i, H in enumerate(entropies):
        if H >= 0.05 and (H > 3.5 or i - last > 10) and i - last > 4:
            slips.append(i)
            last = i
    return slips


def test_slip_on_a_spike_at_once_and_never_within_the_cooldown():
    assert run_slip([4.0] * 11) == [SPIKE] + [NONE] * 4 + [SPIKE] + [NONE] * 4 + [SPIKE]


def test_slip_when_stale():
    assert run_slip([1.0] * 13) == [NONE, STALE] + [NONE] * 10 + [STALE]


@pytest.mark.parametrize(
    ("entropy", "fires"), [(3.5, False), (3.500001, True), (0.0499, False), (NAN, False)]
)
def test_slip_bounds(entropy, fires):
    assert (run_slip([entropy])[0] == SPIKE) == fires
    stale = run_slip([0.0] * 20 + [0.05, 0.05])
    assert stale == [NONE] * 20 + [STALE, NONE]  # confident tokens are left alone, .05 is not


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.0, 0.04, 0.05, 1.0, 3.5, 3.6, 6.0]), max_size=60))
def test_slip_equals_the_published_rule(entropies):
    slips = [i for i, cause in enumerate(run_slip(entropies)) if cause > 0]
    assert slips == published_slips(entropies)


def test_loop_trigger():
    options = policies.PhaseSlipOptions(
        loop_patience=3, loop_nats=0.5, loop_score=0.9, stale_steps=99
    )
    loop = run_slip([0.01] * 12, options, [1.0] * 12)
    assert loop == [NONE, NONE, LOOP] + [NONE] * 4 + [LOOP] + [NONE] * 4
    assert run_slip([0.01] * 12, options, [0.5] * 12) == [NONE] * 12  # low entropy, no repetition
    at_once = dataclasses.replace(options, cooldown_steps=0)  # a slip starts the streak again
    assert run_slip([0.01] * 7, at_once, [1.0] * 7) == [NONE, NONE, LOOP] * 2 + [NONE]
    assert LOOP not in run_slip([2.0] * 12, options, [1.0] * 12)  # repetition, not confident
    assert run_slip([0.01] * 12, options, [NAN] * 12) == [NONE] * 12
    broken = [1.0, 1.0, 0.0] * 4
    assert run_slip([0.01] * 12, options, broken) == [NONE] * 12  # the streak starts again
    assert run_slip([0.01] * 12, options) == [NONE] * 12  # without a score no loop is known
    assert LOOP not in run_slip([0.01] * 40, None, [1.0] * 40)  # off unless loop_patience is given


def test_published_rule_cannot_see_a_loop():
    assert run_slip([0.01] * 40) == [NONE] * 40


# --- temperature --------------------------------------------------------------------------------


def test_stability_temperature_table():
    options = policies.TemperatureOptions(gain=2.0, min_temperature=0.5, max_temperature=1.2)
    table = [  # T, λ -> T'
        (1.0, 0.0, 1.0),
        (1.0, 0.1, math.exp(-0.2)),  # diverging: cooler
        (1.0, -0.05, math.exp(0.1)),  # collapsing: warmer
        (1.0, 9.0, 0.5),
        (1.0, math.inf, 0.5),
        (1.0, -math.inf, 1.2),
        (0.7, NAN, 0.7),
        (5.0, NAN, 5.0),
    ]
    for T, exponent, expected in table:
        assert policies.stability_temperature(T, exponent, options) == pytest.approx(expected)
    assert policies.stability_temperature(1.0, -1e9, options) == 1.2  # exp would overflow


def logits_batch(B=64, V=50, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2, B, dtype=dtype)[:, None]
    return scale * torch.randn(B, V, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("target", [0.02, 1.0, 3.0, 3.9])
def test_solved_temperature_reaches_the_target(target, dtype):
    logits = logits_batch(dtype=dtype)
    temperature, attained = policies.solve_temperature(logits, target)
    assert attained.all()
    assert temperature.dtype == dtype
    entropy = entropy_nats(logits / temperature[:, None])
    torch.testing.assert_close(entropy, torch.full_like(entropy, target), atol=1e-3, rtol=0)


def test_solved_temperature_closed_form():
    """Two outcomes with odds e^{gap / T}: H = ln 2 · H_2(p) inverts by hand at p = 0.2."""
    p, gap = 0.2, 3.0
    target = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    temperature, _ = policies.solve_temperature(column([[0.0, gap]]), target)
    assert temperature.item() == pytest.approx(gap / math.log((1 - p) / p), rel=1e-6)


def test_unattainable_targets_are_reported():
    logits = column([[1.0, 1.0, 0.0], [1.0, 0.5, 0.0], [1.0, 0.5, -math.inf], [NAN, 0.0, 0.0]])
    targets = column([0.5, 1.2, 0.9, 0.5])  # below ln 2, above ln 3, above ln 2, no distribution
    temperature, attained = policies.solve_temperature(logits, targets)
    assert not attained.any()
    assert temperature[0] < 1e-5
    assert (temperature[1:3] > 1e5).all()
    assert temperature[3] == 1.0


def test_rows_are_solved_alone_and_masked_tokens_do_not_count():
    logits = logits_batch(B=5)
    targets = column([0.5, 1.0, 2.0, 3.0, 9.0])
    together, attained = policies.solve_temperature(logits, targets)
    assert attained.tolist() == [True] * 4 + [False]
    for row in range(4):
        alone = policies.solve_temperature(logits[row], targets[row]).temperature
        torch.testing.assert_close(together[row], alone, rtol=1e-6, atol=0)
    masked = torch.cat([logits, torch.full((5, 3), -math.inf, dtype=F64)], dim=1)
    torch.testing.assert_close(
        policies.solve_temperature(masked, targets).temperature[:4], together[:4]
    )


def test_solved_temperature_has_the_implicit_gradient():
    logits = logits_batch(B=3, V=5)[1:].requires_grad_()
    target = column([0.7, 1.2]).requires_grad_()

    def solve(logits, target):
        return policies.solve_temperature(logits, target, tolerance_nats=1e-11).temperature

    assert gradcheck(solve, (logits, target))
    (gradient,) = torch.autograd.grad(solve(logits, target + 9).sum(), logits)
    assert (gradient == 0).all()  # not attained


# --- CER ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entropy", "action", "drift", "noise", "divisor"),
    [
        (2.5, CERAction.ESCAPE, 0.5, 0.05, 1.0),
        (0.2, CERAction.ESCAPE, 2.0, 0.2, 1.0),  # deficit clamped at 2 nats
        (3.0, CERAction.NONE, 0.0, 0.0, 1.0),
        (3.5, CERAction.NONE, 0.0, 0.0, 1.0),
        (3.6, CERAction.BRAKE, -0.6, 0.0, 0.94),
        (5.097888, CERAction.BRAKE, -2.097888, 0.0, 1 - 0.2097888),  # published seed 0, step 0
        (9.0, CERAction.BRAKE, -6.0, 0.0, 0.5),
        (NAN, CERAction.NONE, 0.0, 0.0, 1.0),
    ],
)
def test_cer_table(entropy, action, drift, noise, divisor):
    decision = policies.cer_control(column([entropy, 3.2]), policies.CEROptions())
    first = [value[0].item() for value in decision]
    assert first == pytest.approx([int(action), drift, noise, divisor])
    assert decision.action[1] == CERAction.NONE  # the other row decides alone


def test_brake_lowers_and_escape_noise_hardly_raises_entropy():
    """FACTS section 1: what the two directions do to iid N(0, 1) logits, against the solver."""
    z = torch.randn(200, 256, generator=torch.Generator().manual_seed(0), dtype=F64)
    high = policies.cer_control(entropy_nats(z), policies.CEROptions())
    assert (entropy_nats(z / high.divisor[:, None]) < entropy_nats(z) - 0.1).all()
    peaked = 6 * z
    low = policies.cer_control(entropy_nats(peaked), policies.CEROptions())
    noise = torch.randn(200, 256, generator=torch.Generator().manual_seed(1), dtype=F64)
    shaken = entropy_nats(peaked + low.noise_scale[:, None] * noise)
    assert (shaken - entropy_nats(peaked)).mean().abs() < 0.02
    warmed = peaked / policies.solve_temperature(peaked, 3.0).temperature[:, None]
    torch.testing.assert_close(entropy_nats(warmed).mean().item(), 3.0, atol=1e-3, rtol=0)


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (policies.PhaseSlipOptions, "spike_nats", -1.0),
        (policies.PhaseSlipOptions, "confident_nats", NAN),
        (policies.PhaseSlipOptions, "stale_steps", -1),
        (policies.PhaseSlipOptions, "cooldown_steps", -1),
        (policies.PhaseSlipOptions, "loop_patience", 0),
        (policies.PhaseSlipOptions, "loop_nats", -1.0),
        (policies.PhaseSlipOptions, "loop_score", 1.5),
        (policies.TemperatureOptions, "gain", -1.0),
        (policies.TemperatureOptions, "min_temperature", 0.0),
        (policies.TemperatureOptions, "max_temperature", 0.1),
        (policies.CEROptions, "target_nats", -1.0),
        (policies.CEROptions, "margin_nats", -1.0),
        (policies.CEROptions, "drift_strength", NAN),
        (policies.CEROptions, "max_deficit_nats", -1.0),
        (policies.CEROptions, "min_divisor", 0.0),
    ],
)
def test_options_out_of_range_name_the_field(options, field, value):
    with pytest.raises(ValueError, match=f"^{field} must be in"):
        options(**{field: value})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options(), field, value)
