"""Commutation cost: zero for commuting pairs, exact on a closed form, honest about its error."""

import itertools
import math

import pytest
import torch

from entropy_core.commutation import commutation_cost
from entropy_core.information import kl_nats_from_probs

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mix_with_uniform(p, strength=0.4):
    return (1 - strength) * p + strength / p.shape[-1]


def rotate(p, shift):
    return p.roll(int(shift), -1)


def tilt(p, xi):
    """Multiply p by exp(xi) and renormalise: additive noise on logits."""
    return (p.log() + xi).softmax(-1)


def power(p):
    return (2 * p.log()).softmax(-1)


X = draw(3, 6).softmax(-1)


def test_zero_with_zero_width_for_a_commuting_pair():
    shifts = torch.tensor([0, 1, 2, 5, 3, 1, 4])
    cost = commutation_cost(mix_with_uniform, rotate, X, shifts)
    for value in cost:
        torch.testing.assert_close(value, torch.zeros(3, dtype=F64), atol=1e-12, rtol=0)


def test_definition_on_two_draws():
    noise = draw(2, 6, seed=1)
    after = (tilt(power(X), noise[0]) + tilt(power(X), noise[1])) / 2
    before = (power(tilt(X, noise[0])) + power(tilt(X, noise[1]))) / 2
    cost = commutation_cost(power, tilt, X, noise)
    torch.testing.assert_close(cost.mu_nats, kl_nats_from_probs(after, before))
    assert (cost.mu_nats > 1e-3).all()


def test_order_of_the_arguments():
    """KL is not symmetric: perturbing the evolved state is the first argument."""
    x, noise = torch.tensor([0.5, 0.5], dtype=F64), torch.zeros(2, 1)
    system = lambda p: 0.5 * p + torch.tensor([0.5, 0.0], dtype=F64)  # noqa: E731
    perturb = lambda p, _: 0.5 * p + torch.tensor([0.0, 0.5], dtype=F64)  # noqa: E731
    # P(S(x)) = (3/8, 5/8), S(P(x)) = (5/8, 3/8)
    expected = 3 / 8 * math.log(3 / 5) + 5 / 8 * math.log(5 / 3)
    assert commutation_cost(system, perturb, x, noise).mu_nats.item() == pytest.approx(expected)
    shrink = lambda p, _: 0.9 * p + torch.tensor([0.0, 0.1], dtype=F64)  # noqa: E731
    forward = commutation_cost(system, shrink, x, noise).mu_nats.item()
    p, q = (0.9 * 0.75, 0.25 * 0.9 + 0.1), (0.5 * 0.45 + 0.5, 0.5 * 0.55)
    assert forward == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def test_grows_with_the_commutator():
    noise = draw(64, 6, seed=2)
    costs = [
        commutation_cost(power, lambda p, xi, a=a: tilt(p, a * xi), X, noise).mu_nats
        for a in (0.0, 0.1, 0.3, 1.0)
    ]
    assert (costs[0].abs() < 1e-15).all()
    for smaller, larger in itertools.pairwise(costs):
        assert (larger > smaller + 1e-6).all()


def test_common_random_numbers_shrink_the_error():
    """With separate noise for the two orders the cost would be mostly sampling error."""
    small = lambda p, xi: tilt(p, 0.3 * xi)  # noqa: E731
    slightly = lambda p: (1.02 * p.log()).softmax(-1)  # noqa: E731
    noise, other = draw(200, 6, seed=3), draw(200, 6, seed=4)
    shared = commutation_cost(slightly, small, X, noise).mu_nats
    after = torch.stack([small(slightly(X), xi) for xi in noise]).mean(0)
    before = torch.stack([slightly(small(X, xi)) for xi in other]).mean(0)
    assert (shared < 0.1 * kl_nats_from_probs(after, before)).all()


def test_interval_covers_the_truth_and_jackknife_removes_bias():
    x, trials, M = X[0], 200, 40
    truth = commutation_cost(power, tilt, x, draw(20_000, 6, seed=5)).mu_nats
    rows = [
        commutation_cost(power, tilt, x, draw(M, 6, seed=100 + trial)) for trial in range(trials)
    ]
    covered = sum(bool(row.low_nats <= truth <= row.high_nats) for row in rows)
    assert 0.85 * trials <= covered <= 0.99 * trials
    mean = lambda name: torch.stack([getattr(row, name) for row in rows]).mean()  # noqa: E731
    assert (mean("corrected_nats") - truth).abs() < 0.3 * (mean("mu_nats") - truth).abs()


def test_differentiable_in_the_input():
    logits = draw(6, seed=6).requires_grad_()
    noise = draw(5, 6, seed=7)
    assert torch.autograd.gradcheck(
        lambda z: commutation_cost(power, tilt, z.softmax(-1), noise)[:4], (logits,)
    )


def test_refuses_what_is_not_a_distribution():
    noise = draw(4, 6)
    with pytest.raises(ValueError, match=r"system\(perturb\(x\)\) is not"):
        commutation_cost(torch.log, lambda p, _: p.exp() / p.exp().sum(-1, True), X, noise)
    with pytest.raises(ValueError, match="at least 2"):
        commutation_cost(power, tilt, X, noise[:1])
