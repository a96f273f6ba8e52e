"""Entanglement against reference values, density matrices and an enumeration of all paths."""

import itertools
import math
import random

import pytest
import torch
from torch.autograd import gradcheck

from reso_llm.session.entanglement import (
    EntanglementNetwork,
    bbpssw,
    concurrence,
    consensus_logits,
    teleportation_fidelity,
    werner_swap,
)

F64 = torch.float64
GRID = [0.25, 0.4, 0.5, 0.63, 0.8, 0.95, 1.0]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- the formulas ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("F", "swapped", "distilled", "probability", "teleported"),
    [
        (0.7, 0.5200, 0.7353, 0.6800, 0.8000),
        (0.8, 0.6533, 0.8382, 0.7689, 0.8667),
        (0.9, 0.8133, 0.9264, 0.8756, 0.9333),
        (0.95, 0.9033, 0.9650, 0.9356, 0.9667),
    ],
)
def test_published_values(F, swapped, distilled, probability, teleported):
    values = (werner_swap(F, F), *bbpssw(F, F), teleportation_fidelity(F))
    expected = (swapped, distilled, probability, teleported)
    assert values == pytest.approx(expected, abs=5e-5)


def bell_vectors():
    """Phi+, Phi-, Psi+, Psi- as rows over |00>, |01>, |10>, |11>."""
    rows = [[1, 0, 0, 1], [1, 0, 0, -1], [0, 1, 1, 0], [0, 1, -1, 0]]
    return torch.tensor(rows, dtype=F64) / math.sqrt(2)


def werner(F):
    """Density matrix (4,4): F of Phi+, the rest spread evenly over the other Bell states."""
    weights = torch.tensor([F, *[(1 - F) / 3] * 3], dtype=F64)
    v = bell_vectors()
    return (v.T * weights) @ v


def test_swapping_is_a_bell_measurement_of_the_middle():
    """Qubits a, b | c, d: finding b, c in Phi+ leaves a, d in a pair of the stated fidelity."""
    phi = bell_vectors()[0].view(2, 2)
    for F1, F2 in itertools.product(GRID, GRID):
        first, second = werner(F1).view(2, 2, 2, 2), werner(F2).view(2, 2, 2, 2)
        left = torch.einsum("abxy,cdzw,bc,yz->adxw", first, second, phi, phi)
        unnormalised = torch.einsum("adxw,ad,xw->", left, phi, phi)
        fidelity = unnormalised / torch.einsum("adad->", left)
        assert werner_swap(F1, F2) == pytest.approx(fidelity.item(), abs=1e-12)


def test_distillation_is_two_cnots_and_equal_outcomes():
    """Source a, b and target c, d: CNOT a->c and b->d, keep the source if c and d agree."""
    basis = itertools.product((0, 1), repeat=4)
    cnots = torch.zeros(16, 16, dtype=F64)
    for a, b, c, d in basis:
        cnots[8 * a + 4 * b + 2 * (c ^ a) + (d ^ b), 8 * a + 4 * b + 2 * c + d] = 1
    phi = bell_vectors()[0]
    for F1, F2 in itertools.product(GRID, GRID):
        state = cnots @ torch.kron(werner(F1), werner(F2)) @ cnots.T
        state = state.view(4, 4, 4, 4)  # source, target, source', target'
        kept = state[:, 0, :, 0] + state[:, 3, :, 3]  # target found in 00 or 11
        fidelity, probability = bbpssw(F1, F2)
        assert probability == pytest.approx(kept.trace().item(), abs=1e-12)
        assert fidelity == pytest.approx((phi @ kept @ phi / kept.trace()).item(), abs=1e-12)


def test_concurrence_is_twice_the_negativity():
    """Negativity: minus the sum of the negative eigenvalues of the partial transpose."""
    for F in GRID:
        transposed = werner(F).view(2, 2, 2, 2).transpose(1, 3).reshape(4, 4)
        negativity = -torch.linalg.eigvalsh(transposed).clamp(max=0).sum().item()
        assert concurrence(F) == pytest.approx(2 * negativity, abs=1e-12)


def test_formulas_take_tensors():
    F = torch.tensor(GRID, dtype=F64, requires_grad=True)
    assert gradcheck(lambda F: (werner_swap(F, F.flip(0)), *bbpssw(F, F.flip(0))), F)


# --- the network -------------------------------------------------------------------------------


def random_network(seed, num_nodes=6):
    rng = random.Random(seed)
    links = {
        pair: rng.uniform(0.25, 1)
        for pair in itertools.combinations("abcdefgh"[:num_nodes], 2)
        if rng.random() < 0.5
    }
    network = EntanglementNetwork("abcdefgh"[:num_nodes])
    for pair, fidelity in links.items():
        network.link(*pair, fidelity)
    return network, links


def fidelity_reference(nodes, links, a, b):
    """Every path without repeats, composed swap by swap."""
    best, between = 0.25, [n for n in nodes if n not in (a, b)]
    for length in range(len(between) + 1):
        for middle in itertools.permutations(between, length):
            path = [a, *middle, b]
            pairs = [tuple(sorted(step)) for step in itertools.pairwise(path)]
            if all(pair in links for pair in pairs):
                fidelity = 1.0
                for pair in pairs:
                    fidelity = werner_swap(fidelity, links[pair])
                best = max(best, fidelity)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_best_path_equals_enumeration(seed):
    network, links = random_network(seed)
    for a, b in itertools.permutations(network.nodes, 2):
        expected = fidelity_reference(network.nodes, links, a, b)
        assert network.fidelity(a, b) == pytest.approx(expected, abs=1e-12)


def test_a_detour_of_good_pairs_beats_a_bad_direct_one():
    network = EntanglementNetwork("abc")
    network.link("a", "c", 0.6)
    network.link("a", "b", 0.95)
    network.link("b", "c", 0.95)
    assert network.fidelity("a", "c") == pytest.approx(0.9033, abs=5e-5)


def test_ends_of_the_scale():
    network = EntanglementNetwork(["a", "b", "lonely"])
    network.link("a", "b", 1)
    assert network.fidelity("a", "a") == network.fidelity("b", "a") == 1.0
    assert network.fidelity("a", "lonely") == 0.25


def test_swap_consumes_both_pairs():
    network = EntanglementNetwork("abc")
    network.link("a", "b", 0.9)
    network.link("b", "c", 0.8)
    assert network.swap("a", "b", "c") == pytest.approx(werner_swap(0.9, 0.8))
    assert network.fidelity("a", "c") == pytest.approx(werner_swap(0.9, 0.8))
    assert network.fidelity("a", "b") == network.fidelity("b", "c") == 0.25
    with pytest.raises(ValueError, match="share no pair"):
        network.swap("a", "b", "c")


def test_swap_keeps_a_better_pair():
    network = EntanglementNetwork("abc")
    for pair, fidelity in (("ab", 0.7), ("bc", 0.7), ("ac", 0.9)):
        network.link(*pair, fidelity)
    assert network.swap("a", "b", "c") == 0.9


def test_distillation_climbs_to_one():
    network = EntanglementNetwork("ab")
    network.link("a", "b", 0.7)
    result = network.distill("a", "b")
    assert result == pytest.approx((0.7353, 0.6800), abs=5e-5)
    assert network.fidelity("b", "a") == pytest.approx(result.fidelity)
    for _ in range(100):
        result = network.distill("a", "b")
    assert network.fidelity("a", "b") == pytest.approx(1.0, abs=1e-6)
    assert result.success_probability == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("fidelity", [0.3, 0.5])
def test_a_separable_pair_cannot_be_distilled(fidelity):
    network = EntanglementNetwork("ab")
    network.link("a", "b", fidelity)
    with pytest.raises(ValueError, match=r"expected above 0\.5"):
        network.distill("a", "b")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.add_node("a"), "exists already"),
        (lambda n: n.link("a", "z", 0.9), "unknown node 'z'"),
        (lambda n: n.link("a", "a", 0.9), "two different nodes"),
        (lambda n: n.link("a", "b", 0.2), "expected a number from 0.25 to 1"),
        (lambda n: n.link("a", "b", 1.01), "expected a number from 0.25 to 1"),
        (lambda n: n.link("a", "b", math.nan), "expected a number from 0.25 to 1"),
        (lambda n: n.fidelity("a", "z"), "unknown node 'z'"),
        (lambda n: n.distill("a", "b"), "share no pair"),
        (lambda n: n.share("a", {"b": 1.0}), "its own state"),
        (lambda n: n.share("a", {"a": 1.0, "z": 1.0}), "unknown node 'z'"),
        (lambda n: n.share("a", {"a": torch.ones(2), "b": torch.ones(3)}), r"shape \(3,\)"),
    ],
)
def test_wrong_calls_say_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(EntanglementNetwork("ab"))


# --- sharing -----------------------------------------------------------------------------------


def test_share_is_the_weighted_mean_by_hand():
    network = EntanglementNetwork("abcd")
    network.link("a", "b", 0.75)  # concurrence 0.5
    network.link("a", "c", 1.0)
    network.link("a", "d", 0.5)  # separable: nothing is shared
    fields = {node: draw(2, 3, seed=i).requires_grad_() for i, node in enumerate("abcd")}
    mixed = network.share("a", fields)
    expected = (fields["a"] + 0.5 * fields["b"] + fields["c"]) / 2.5
    torch.testing.assert_close(mixed, expected)
    gradients = torch.autograd.grad(mixed.sum(), list(fields.values()), allow_unused=True)
    assert gradients[3] is None
    for gradient, weight in zip(gradients, (0.4, 0.2, 0.4), strict=False):
        torch.testing.assert_close(gradient, torch.full((2, 3), weight, dtype=F64))


def test_share_mixes_order_parameters_and_reaches_over_paths():
    network = EntanglementNetwork("abc")
    network.link("a", "b", 0.95)
    network.link("b", "c", 0.95)
    weight = 2 * werner_swap(0.95, 0.95) - 1
    expected = (0.2 + 0.9 * 0.5 + weight * 0.8) / (1.9 + weight)
    assert network.share("a", {"c": 0.8, "a": 0.2, "b": 0.5}) == pytest.approx(expected)
    assert sum(network.share_weights("b", "ca").values()) == pytest.approx(1.0)


def test_no_link_is_no_sharing():
    network = EntanglementNetwork("ab")
    fields = {"a": draw(4), "b": torch.full((4,), math.nan, dtype=F64)}
    assert torch.equal(network.share("a", fields), fields["a"])


# --- consensus ---------------------------------------------------------------------------------


def consensus_reference(logits, coherence):
    """The product of powers of probabilities, spelled out."""
    weights = [c / sum(coherence) for c in coherence]
    product = torch.ones_like(logits[0])
    for agent, weight in zip(logits, weights, strict=True):
        product = product * (agent.exp() / agent.exp().sum(-1, keepdim=True)) ** weight
    return (product / product.sum(-1, keepdim=True)).log()


def test_consensus_equals_the_product_of_experts():
    logits = draw(3, 2, 4, 7).requires_grad_()
    coherence = torch.tensor([0.9, 0.2, 0.5], dtype=F64, requires_grad=True)
    fast = consensus_logits(logits, coherence).log_softmax(-1)
    slow = consensus_reference(logits, coherence)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(fast.exp().sum(-1), torch.ones(2, 4, dtype=F64))
    upstream = draw(2, 4, 7, seed=1)
    for left, right in zip(
        *(torch.autograd.grad((v * upstream).sum(), (logits, coherence)) for v in (fast, slow)),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


def test_agents_that_agree_are_not_sharpened():
    """Guards weights that sum to the number of agents: two equal opinions stay that opinion."""
    logits = draw(1, 9).expand(4, 9)
    consensus = consensus_logits(logits, torch.tensor([1.0, 2.0, 3.0, 0.5]))
    torch.testing.assert_close(consensus, logits[0])


def test_consensus_ignores_offsets_and_agents_without_coherence():
    logits = draw(2, 5)
    weights = torch.tensor([0.6, 0.4], dtype=F64)
    shifted = logits + torch.tensor([[100.0], [-3.0]], dtype=F64)
    torch.testing.assert_close(
        consensus_logits(shifted, weights).softmax(-1),
        consensus_logits(logits, weights).softmax(-1),
    )
    logits[1, 2] = -math.inf
    alone = consensus_logits(logits, torch.tensor([1.0, 0.0], dtype=F64))
    torch.testing.assert_close(alone, logits[0])
    assert consensus_logits(logits, weights)[2] == -math.inf


@pytest.mark.parametrize("coherence", [[0.5], [0.0, 0.0], [1.0, -0.1], [1.0, math.nan]])
def test_consensus_refuses_wrong_coherences(coherence):
    with pytest.raises(ValueError, match="coherence"):
        consensus_logits(draw(2, 5), torch.tensor(coherence))
