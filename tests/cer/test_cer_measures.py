"""Mass against the definition by autograd, commutation against hand-made systems, zones by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cer import measures
from cer.reactor import CoherentEntropyReactor
from cer.trajectory import ReactorOutput
from entropy_core.information import ZONES, fisher_trace

F64 = torch.float64
V = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def distributions(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64).softmax(-1)


def tiny_reactor(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = dict(hidden_dim=8, num_layers=1, num_heads=2, num_refinement_steps=2)
        return CoherentEntropyReactor(
            V, output_dim=V, target_entropy=1.2, num_oscillators=2, **sizes, **options
        ).double()


class Fixed(nn.Module):
    """A stand-in for a reactor: reactions by a function of ln x and one weight vector."""

    def __init__(self, reactions, weight):
        super().__init__()
        self.weight, self.rule = nn.Parameter(weight), reactions

    def forward(self, x):
        return ReactorOutput(self.rule(x, self.weight), None, (), None)


# --- mass -----------------------------------------------------------------------------------


def test_mass_of_the_logits_alone_is_the_semantic_mass():
    logits = torch.randn(V, generator=seeded(), dtype=F64)
    system = Fixed(lambda x, w: w.expand(x.shape[0], x.shape[1], -1), logits)
    x = distributions(2, 1, V)
    expected = measures.semantic_mass(logits).expand(2)
    torch.testing.assert_close(measures.full_mass(system, x), expected)
    torch.testing.assert_close(expected, 1 - logits.softmax(-1).square().sum().expand(2))


def test_mass_of_a_reactor_is_its_definition():
    """The slow twin: one backward pass a label and position, straight from the docstring."""
    reactor, x = tiny_reactor(), distributions(2, 2, V)
    weights = list(reactor.parameters())
    expected = []
    for one in x:
        total = 0.0
        log_p = reactor(one[None]).reactions[0].log_softmax(-1)
        for s in range(2):
            for y in range(V):
                score = torch.autograd.grad(
                    log_p[s, y], weights, retain_graph=True, allow_unused=True
                )
                norm = sum(g.square().sum().item() for g in score if g is not None)
                total += log_p[s, y].exp().item() * norm
        expected.append(total)
    torch.testing.assert_close(
        measures.full_mass(reactor, x), torch.tensor(expected, dtype=F64), rtol=1e-6, atol=0
    )


def test_mass_of_one_position_agrees_with_the_core():
    reactor, x = tiny_reactor(), distributions(1, 1, V)
    weights = {name: p.detach() for name, p in reactor.named_parameters()}
    call = lambda w, x: torch.func.functional_call(reactor, w, (x[None],)).reactions[0, 0]  # noqa: E731
    with sdpa_kernel(SDPBackend.MATH):
        expected = fisher_trace(call, weights, x)
    torch.testing.assert_close(measures.full_mass(reactor, x), expected)


def test_sampled_mass_covers_the_exact_one():
    reactor, x = tiny_reactor(), distributions(2, 3, V, seed=3)
    exact = measures.full_mass(reactor, x)
    found = measures.sampled_full_mass(reactor, x, num_draws=300, generator=seeded(1))
    assert ((found.trace - exact).abs() < 3 * found.standard_error).all()
    assert (found.standard_error < 0.2 * exact).all()
    torch.testing.assert_close(found.high - found.low, 2 * 1.959964 * found.standard_error)
    again = measures.sampled_full_mass(reactor, x, num_draws=300, generator=seeded(1))
    assert torch.equal(found.trace, again.trace)


def test_the_error_of_the_sampled_mass_is_honest():
    """Its claimed standard error against the spread of repeated estimates."""
    reactor, x = tiny_reactor(), distributions(1, 2, V, seed=3)
    runs = [
        measures.sampled_full_mass(reactor, x, num_draws=20, generator=seeded(seed))
        for seed in range(30)
    ]
    spread = torch.stack([run.trace for run in runs]).std()
    claimed = torch.stack([run.standard_error for run in runs]).mean()
    assert 0.6 < claimed / spread < 1.6


# --- commutation ----------------------------------------------------------------------------


def test_a_reactor_that_changes_nothing_commutes():
    system = Fixed(lambda x, w: x.log() + 0 * w, torch.zeros(1, dtype=F64))
    cost = measures.commutation(
        system, distributions(2, 3, V), std=0.7, num_draws=4, generator=seeded()
    )
    assert cost.mu_nats.shape == (2, 3)
    assert cost.mu_nats.abs().max() < 1e-12
    assert (cost.high_nats - cost.low_nats).abs().max() < 1e-6


def test_cost_is_a_kl_between_the_two_orders():
    """The obvious twin: average both orders over the same draws, then sum p ln p/q."""
    reactor, x = tiny_reactor(), distributions(2, 3, V)
    cost = measures.commutation(reactor, x, std=0.7, num_draws=5, generator=seeded(4))
    noise = torch.randn(5, 2, 3, V, generator=seeded(4), dtype=F64)
    tilt = lambda p, xi: p * (0.7 * xi).exp() / (p * (0.7 * xi).exp()).sum(-1, keepdim=True)  # noqa: E731
    act = lambda p: reactor(p).reactions.softmax(-1)  # noqa: E731
    after = sum(tilt(act(x), xi) for xi in noise) / 5
    before = sum(act(tilt(x, xi)) for xi in noise) / 5
    torch.testing.assert_close(cost.mu_nats, (after * (after / before).log()).sum(-1))
    assert (cost.low_nats <= cost.corrected_nats).all()
    assert (cost.corrected_nats <= cost.high_nats).all()


def test_cost_grows_with_the_commutator():
    """S(p) = p^a commutes at a = 1 only."""
    x, found = distributions(1, 1, V), []
    for a in (1.0, 1.5, 3.0):
        system = Fixed(lambda x, w: w * x.log(), torch.tensor([a], dtype=F64))
        cost = measures.commutation(system, x, std=0.7, num_draws=200, generator=seeded())
        found.append(cost.corrected_nats.item())
    assert abs(found[0]) < 1e-9 < found[1] < found[2]


def test_cost_carries_gradient_to_every_weight():
    reactor = tiny_reactor()
    cost = measures.commutation(
        reactor, distributions(2, 3, V), std=0.7, num_draws=2, generator=seeded()
    )
    cost.mu_nats.mean().backward()
    for name, p in reactor.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def test_noise_keeps_the_support_and_zero_probability_stays_finite():
    p = torch.tensor([[1.0, 0.0, 0.0]])
    noisy = measures.logit_noise(0.5)(p, torch.ones(1, 3))
    assert noisy.isfinite().all()
    torch.testing.assert_close(noisy, p)
    logits = torch.tensor([[0.0, -200.0, 1.0]], requires_grad=True)  # the second underflows to 0
    measures.logit_noise(0.5)(logits.softmax(-1), torch.ones(1, 3))[0, 0].backward()
    assert logits.grad.isfinite().all()
    q = distributions(2, V)
    torch.testing.assert_close(measures.logit_noise(0.0)(q, torch.ones(2, V, dtype=F64)), q)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measures.logit_noise(-1.0), "std"),
        (lambda: measures.sampled_full_mass(
            tiny_reactor(), distributions(1, 1, V), num_draws=1, generator=seeded()), "num_draws"),
        (lambda: measures.output_distribution(
            Fixed(lambda x, w: x[..., :2], torch.zeros(1)))(distributions(1, 1, V)), "alike"),
        (lambda: measures.residence(torch.zeros(3, 0)), "at least one step"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- zones ------------------------------------------------------------------------------------


def test_residence_of_a_trajectory_by_hand():
    entropy = torch.tensor([1.0, 1.5, 2.0, 4.0, 4.0, 1.0, math.nan, 6.0], dtype=F64)
    found = measures.residence(entropy)
    assert ZONES == ("LASER", "CAGE", "LANTERN", "CHAOS")
    assert found.share.tolist() == [3 / 8, 1 / 8, 2 / 8, 1 / 8]
    assert found.mean_stay.tolist() == [1.5, 1.0, 2.0, 1.0]
    expected = torch.zeros(4, 4, dtype=F64)
    expected[0, 0] = expected[0, 1] = expected[1, 2] = expected[2, 2] = expected[2, 0] = 1
    assert torch.equal(found.transitions, expected)


def test_residence_keeps_the_leading_axes_and_marks_zones_never_seen():
    found = measures.residence(torch.full((2, 3, 5), 2.5))
    assert found.share.shape == found.mean_stay.shape == (2, 3, 4)
    assert (found.mean_stay[..., 1] == 5).all()
    assert found.mean_stay[..., [0, 2, 3]].isnan().all()
    torch.testing.assert_close(found.share.sum(-1), torch.ones(2, 3))
