"""Information measures against closed forms, scipy and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon
from torch.autograd import gradcheck

from entropy_core import information as info

F64 = torch.float64


def random_logits(*shape, seed=0, scale=2.0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=dtype)


# --- closed forms ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("V", [1, 2, 50257])
def test_uniform_entropy_is_ln_v(V, dtype):
    logits = torch.full((3, V), 7.0, dtype=dtype)
    assert info.entropy_nats(logits).dtype == dtype
    torch.testing.assert_close(
        info.entropy_nats(logits), torch.full((3,), math.log(V), dtype=dtype), atol=2e-5, rtol=0
    )


def test_entropy_matches_scipy():
    logits = random_logits(4, 3, 17)
    p = logits.softmax(-1)
    expected = torch.from_numpy(stats.entropy(p.numpy(), axis=-1))
    torch.testing.assert_close(info.entropy_nats(logits), expected)
    torch.testing.assert_close(info.entropy_nats_from_probs(p), expected)


def test_masked_tokens_change_nothing_and_extreme_logits_stay_finite():
    """Guards the `ln(p + 1e-10)` family of hacks: -inf is exact and huge logits do not overflow."""
    logits = random_logits(2, 5)
    masked = torch.cat([logits, torch.full((2, 4), -math.inf, dtype=F64)], dim=-1)
    assert torch.equal(info.entropy_nats(masked), info.entropy_nats(logits))
    assert torch.equal(info.varentropy_nats2(masked), info.varentropy_nats2(logits))
    peaked = torch.tensor([1e4, 0.0, -1e4])
    assert info.entropy_nats(peaked).item() == 0.0
    assert info.entropy_nats_from_probs(torch.tensor([1.0, 0.0, 0.0])).item() == 0.0


def test_gradient_is_finite_and_zero_outside_the_support():
    logits = torch.tensor([1.0, 2.0, -math.inf], dtype=F64, requires_grad=True)
    target = torch.tensor([0.5, 0.1, -math.inf], dtype=F64)
    for measure in (info.entropy_nats, info.varentropy_nats2, lambda z: info.kl_nats(z, target)):
        (gradient,) = torch.autograd.grad(measure(logits), logits)
        assert gradient.isfinite().all()
        assert gradient[2] == 0
        assert gradient[:2].abs().min() > 1e-3


def test_no_distribution_is_nan_not_a_number():
    assert info.entropy_nats(torch.full((4,), -math.inf)).isnan()
    assert info.entropy_nats_from_probs(torch.tensor([1.5, -0.5])).isnan()


def test_iid_normal_logits_reach_ln_v_minus_half():
    """FACTS section 1: an untrained projection + LayerNorm sits at ln 256 - 1/2 = 5.045 nats."""
    entropy = info.entropy_nats(random_logits(4000, 256, scale=1.0))
    assert entropy.mean().item() == pytest.approx(math.log(256) - 0.5, abs=0.01)


def test_varentropy_closed_forms():
    assert info.varentropy_nats2(torch.zeros(9)).item() == pytest.approx(0.0, abs=1e-12)
    p = 0.2  # two outcomes: p (1 - p) ln²(p / (1 - p))
    value = info.varentropy_nats2(torch.tensor([math.log(p), math.log(1 - p)], dtype=F64))
    assert value.item() == pytest.approx(p * (1 - p) * math.log(p / (1 - p)) ** 2, abs=1e-12)


# --- normalised entropy ---------------------------------------------------------------------


def test_normalised_entropy_full_vocabulary():
    assert info.normalised_entropy(torch.zeros(2, 8)).tolist() == pytest.approx([1.0, 1.0])
    logits = random_logits(5, 11)
    expected = info.entropy_nats(logits) / math.log(11)
    torch.testing.assert_close(info.normalised_entropy(logits), expected)


def test_normalised_entropy_effective_support():
    p = torch.tensor([0.4, 0.4, 0.1, 0.06, 0.04], dtype=F64)
    assert info.normalised_entropy(p.log(), 0.2).item() == pytest.approx(1.0)  # two equal tokens
    three = stats.entropy([0.4, 0.4, 0.1]) / math.log(3)
    assert info.normalised_entropy(p.log(), 0.1 - 1e-12).item() == pytest.approx(three)
    assert info.normalised_entropy(p.log(), 1e-9).item() == pytest.approx(
        stats.entropy(p.numpy()) / math.log(5)
    )


def test_effective_support_is_never_empty_and_a_single_token_is_certain():
    assert info.normalised_entropy(torch.zeros(1000), 0.5).item() == pytest.approx(1.0, abs=1e-5)
    assert info.normalised_entropy(torch.tensor([9.0, 0.0, 0.0]), 0.5).item() == 0.0


@pytest.mark.parametrize("min_prob", [0.0, -0.1, 1.5, math.nan])
def test_min_prob_range(min_prob):
    with pytest.raises(ValueError, match="min_prob"):
        info.normalised_entropy(torch.zeros(3), min_prob)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=12), st.floats(1e-6, 1.0))
def test_measures_stay_in_their_ranges(values, min_prob):
    logits = torch.tensor(values, dtype=F64)
    V = len(values)
    assert -1e-12 <= info.entropy_nats(logits) <= math.log(V) + 1e-12
    assert -1e-12 <= info.normalised_entropy(logits, min_prob) <= 1 + 1e-12
    assert info.varentropy_nats2(logits) >= 0
    assert -1e-12 <= info.semantic_mass(logits) <= 1 - 1 / V + 1e-12


# --- divergences ----------------------------------------------------------------------------


def test_divergences_match_scipy():
    p_logits, q_logits = random_logits(6, 9), random_logits(6, 9, seed=1)
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    expected = torch.from_numpy(stats.entropy(p.numpy(), q.numpy(), axis=-1))
    torch.testing.assert_close(info.kl_nats(p_logits, q_logits), expected)
    torch.testing.assert_close(info.kl_nats_from_probs(p, q), expected)
    expected = torch.from_numpy(jensenshannon(p.numpy(), q.numpy(), axis=-1) ** 2)
    torch.testing.assert_close(info.jensen_shannon_nats(p, q), expected)


def test_divergences_at_the_edge_of_the_support():
    p = torch.tensor([0.5, 0.5, 0.0], dtype=F64)
    q = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    assert info.kl_nats_from_probs(p, q) == math.inf
    assert info.kl_nats(p.log(), q.log()) == math.inf
    assert info.kl_nats_from_probs(q, p).item() == pytest.approx(math.log(2))
    assert info.kl_nats(q.log(), p.log()).item() == pytest.approx(math.log(2))
    disjoint = info.jensen_shannon_nats(q, torch.tensor([0.0, 0.5, 0.5], dtype=F64))
    assert disjoint.item() == pytest.approx(math.log(2))


def test_kl_from_logits_survives_underflow():
    """Through probabilities q underflows to 0 and KL becomes inf; through logits it is exact."""
    value = info.kl_nats(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -200.0]))
    assert value.item() == pytest.approx(100 - math.log(2), rel=1e-6)


def test_gradcheck():
    z, w = random_logits(2, 5).requires_grad_(), random_logits(2, 5, seed=3).requires_grad_()
    for measure in (
        info.entropy_nats,
        info.varentropy_nats2,
        info.normalised_entropy,
        info.semantic_mass,
        lambda z: info.entropy_nats_from_probs(z.softmax(-1)),
    ):
        assert gradcheck(measure, (z,))
    assert gradcheck(info.kl_nats, (z, w))
    assert gradcheck(lambda z, w: info.jensen_shannon_nats(z.softmax(-1), w.softmax(-1)), (z, w))


# --- semantic mass and Fisher trace ----------------------------------------------------------


def identity_logits(params, x):
    return params["z"] + x


def test_fisher_trace_of_a_categorical_in_logit_space_is_the_semantic_mass():
    params = {"z": random_logits(7)}
    inputs = random_logits(4, 7, seed=1)
    trace = info.fisher_trace(identity_logits, params, inputs)
    torch.testing.assert_close(trace, info.semantic_mass(params["z"] + inputs))


@pytest.fixture
def classifier():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5))
    params = {
        name: random_logits(*p.shape, seed=seed, scale=0.7)
        for seed, (name, p) in enumerate(module.named_parameters())
    }

    def logits_fn(params, x):
        return torch.func.functional_call(module, params, (x[None],))[0]

    return logits_fn, params, random_logits(3, 3, scale=1.0)


def fisher_trace_reference(logits_fn, params, x):
    """Definition by central differences: sum_y p_y sum_i (d ln p_y / d theta_i)^2."""
    h, total = 1e-5, 0.0
    p = logits_fn(params, x).softmax(-1)
    for name, value in params.items():
        for i in range(value.numel()):
            bump = torch.zeros_like(value).view(-1)
            bump[i] = h
            bump = bump.view_as(value)
            above = logits_fn({**params, name: value + bump}, x).log_softmax(-1)
            below = logits_fn({**params, name: value - bump}, x).log_softmax(-1)
            total = total + (p * ((above - below) / (2 * h)).square()).sum()
    return total


def test_fisher_trace_of_a_module_matches_finite_differences(classifier):
    logits_fn, params, inputs = classifier
    expected = torch.stack([fisher_trace_reference(logits_fn, params, x) for x in inputs])
    torch.testing.assert_close(
        info.fisher_trace(logits_fn, params, inputs), expected, rtol=1e-6, atol=0
    )
    chunked = info.fisher_trace(logits_fn, params, inputs, chunk_size=2)
    torch.testing.assert_close(chunked, expected, rtol=1e-6, atol=0)


def test_sampled_fisher_trace_is_unbiased_and_seeded(classifier):
    logits_fn, params, inputs = classifier

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return info.sampled_fisher_trace(
            logits_fn, params, inputs, num_samples=3000, generator=generator
        )

    draws = draw(0)
    assert draws.shape == (3000, 3)
    standard_error = draws.std(0) / math.sqrt(3000)
    error = draws.mean(0) - info.fisher_trace(logits_fn, params, inputs)
    assert (error.abs() < 4 * standard_error).all()
    assert torch.equal(draws, draw(0))
    assert not torch.equal(draws, draw(1))


# --- zones ----------------------------------------------------------------------------------


def test_zone_table():
    table = [
        (0.0, "LASER"),
        (1.999, "LASER"),
        (2.0, "CAGE"),
        (3.499, "CAGE"),
        (3.5, "LANTERN"),
        (4.999, "LANTERN"),
        (5.0, "CHAOS"),
        (math.inf, "CHAOS"),
    ]
    index = info.zone_index(torch.tensor([value for value, _ in table], dtype=F64))
    assert [info.ZONES[i] for i in index] == [name for _, name in table]


def test_undefined_entropy_has_no_zone():
    assert info.zone_index(torch.tensor(math.nan)) == info.UNKNOWN_ZONE
