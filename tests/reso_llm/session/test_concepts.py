"""Concepts against the homomorphism, random-phasor theory and torchhd's FHRR."""

import itertools
import math

import pytest
import torch

from entropy_core.primes import GOLDEN_RATIO, first_primes
from reso_llm.config import PRSCConfig
from reso_llm.session.concepts import (
    NUM_FREQUENCIES,
    ConceptSpace,
    bind,
    bundle,
    coherence,
    phasors,
    unbind,
)

F = NUM_FREQUENCIES
PRIMES = first_primes(50_000)
PHASE_ERROR = 2e-6  # float64 at phases of 1e9


def random_phasors(count, seed=0):
    angles = torch.rand(
        count, F, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.polar(torch.ones_like(angles), 2 * math.pi * angles)


def make_space(names="abcdef", threshold=0.7, max_bindings=1000):
    config = PRSCConfig(coherence_threshold=threshold, max_bindings=max_bindings)
    space = ConceptSpace(config, vocab_size=4096)
    for token_id, name in enumerate(names):
        space.bind_concept(name, token_id=40 + token_id)
    return space


# --- the algebra --------------------------------------------------------------------------------


def test_phasor_by_the_definition():
    n, f = 97, 300
    phase = math.fmod(1e8 * GOLDEN_RATIO ** (f / F) * math.log(n), 2 * math.pi)
    z = phasors([1, n])
    assert torch.equal(z[0], torch.ones(F, dtype=torch.complex128))  # 1 is the neutral element
    expected = torch.tensor(complex(math.cos(phase), math.sin(phase)), dtype=torch.complex128)
    torch.testing.assert_close(z[1, f], expected, rtol=0, atol=PHASE_ERROR)
    torch.testing.assert_close(z[1].abs(), torch.ones(F, dtype=torch.float64))


@pytest.mark.parametrize(("p", "q"), [(2, 3), (191, 191), (611_953, 38_873), (2, 2**200)])
def test_binding_is_the_phasor_of_the_product(p, q):
    z_p, z_q, z_pq = phasors([p, q, p * q])
    error = PHASE_ERROR * (1 + math.log(p * q) / 10)
    torch.testing.assert_close(bind(z_p, z_q), z_pq, rtol=0, atol=error)
    torch.testing.assert_close(unbind(z_pq, z_q), z_p, rtol=0, atol=error)


@pytest.mark.parametrize("start", [0, 3096, 49_000])
def test_a_thousand_primes_are_as_unlike_as_random_phasors(start):
    """Also the last primes of a large vocabulary, which differ by 2 in 600,000."""
    z = phasors(PRIMES[start : start + 1000])
    values = (z @ z.mH / F).abs()[~torch.eye(1000, dtype=torch.bool)]
    rayleigh = math.sqrt(math.pi / 4 / F)  # mean |sum of F random phasors| / F
    assert values.mean().item() == pytest.approx(rayleigh, rel=0.02)
    assert values.square().mean().sqrt().item() == pytest.approx(F**-0.5, rel=0.02)
    assert values.max() < 0.2  # sqrt(ln(5e5) / 512) = 0.16 is the typical largest


def test_products_are_as_unlike_as_primes():
    """Guards compositions that are mistaken for one another."""
    pairs = [p * q for p, q in itertools.combinations(PRIMES[:40], 2)]
    z = phasors(pairs)
    values = (z @ z.mH / F).abs()[~torch.eye(len(z), dtype=torch.bool)]
    assert values.max() < 0.2


def bundle_reference(parts):
    total = sum(parts)
    return torch.stack([z / (z.real**2 + z.imag**2).sqrt() for z in total])


def test_bundle_equals_its_twin_in_value_and_gradient():
    parts = random_phasors(3).requires_grad_()
    fast, slow = bundle(parts), bundle_reference(parts)
    torch.testing.assert_close(fast, slow)
    upstream = random_phasors(1, seed=1)[0]
    gradients = [torch.autograd.grad((v * upstream).real.sum(), parts)[0] for v in (fast, slow)]
    torch.testing.assert_close(*gradients)


def coherence_reference(a, b):
    return abs(sum(x * y.conjugate() for x, y in zip(a.tolist(), b.tolist(), strict=True))) / len(a)


def test_coherence_by_its_definition():
    a, b = random_phasors(2)
    assert coherence(a, b).item() == pytest.approx(coherence_reference(a, b))
    assert coherence(a, a * complex(0, 1)).item() == pytest.approx(1.0)  # a common phase is free


def test_bundling_two_unrelated_concepts_leaves_two_over_pi():
    parts = phasors(PRIMES[:200]).view(100, 2, F)
    values = coherence(parts, bundle(parts).unsqueeze(1))
    assert values.mean().item() == pytest.approx(2 / math.pi, abs=0.003)


def test_the_algebra_is_fhrr():
    """torchhd 5.8 is the oracle; it needs pandas, requests and scipy to import."""
    torchhd = pytest.importorskip("torchhd")
    z = phasors(PRIMES[:6])
    fhrr = z.as_subclass(torchhd.FHRRTensor)

    def same(own, other):
        torch.testing.assert_close(own, other.as_subclass(torch.Tensor))

    same(bind(z[0], z[1]), torchhd.bind(fhrr[0], fhrr[1]))
    same(z.prod(0), torchhd.multibind(fhrr))
    same(unbind(z[0], z[1]), torchhd.bind(fhrr[0], torchhd.inverse(fhrr[1])))
    same(bundle(z), torchhd.multibundle(fhrr).normalize())
    real = torchhd.cosine_similarity(fhrr[0], fhrr)
    imaginary = torchhd.cosine_similarity(complex(0, 1) * fhrr[0], fhrr)
    same(coherence(z[0].expand_as(z), z), torch.hypot(real, imaginary))


def test_integers_below_one_have_no_phasor():
    with pytest.raises(ValueError, match="0 has no phasor"):
        phasors([3, 0])


# --- bindings -----------------------------------------------------------------------------------


def test_bind_concept_names_the_prime_of_its_token():
    binding = make_space("").bind_concept("mathematics", token_id=42)
    assert (binding.name, binding.token_ids, binding.prime) == ("mathematics", (42,), 191)
    assert binding.coherence == pytest.approx(1.0)
    assert torch.equal(binding.phasor, phasors([191])[0])


def test_a_second_meaning_is_rejected_at_the_default_threshold():
    space = make_space()
    with pytest.raises(ValueError, match=r"'a' as tokens \(40, 99\) has coherence 0\.6"):
        space.bind_concept("a", 99)
    before = space.bindings[0]
    assert before.token_ids == (40,)  # nothing has changed
    assert space.bind_concept("a", 40) is before  # the same token again is no news


def test_a_lower_threshold_admits_bundles_up_to_its_limit():
    space = make_space(threshold=0.55)
    binding = space.bind_concept("a", 99)
    assert (binding.token_ids, binding.prime) == ((40, 99), PRIMES[40] * PRIMES[99])
    parts = phasors([PRIMES[40], PRIMES[99]])
    worst = min(coherence_reference(part, binding.phasor) for part in parts)
    assert binding.coherence == pytest.approx(worst)
    assert worst == pytest.approx(2 / math.pi, abs=0.05)
    with pytest.raises(ValueError, match=r"coherence_threshold = 0\.55"):
        space.bind_concept("a", 150)
    assert space.bindings[0] is binding


def test_the_coherence_of_a_binding_is_that_of_its_worst_token():
    space = make_space("", threshold=0.0)
    for token_id in (3, 17, 101, 999, 2048):
        binding = space.bind_concept("crowd", token_id)
    values = [coherence_reference(z, binding.phasor) for z in phasors([7, 61, 557, 7919, 17881])]
    assert binding.coherence == pytest.approx(min(values))
    assert max(values) - min(values) > 0.01


def test_max_bindings_is_enforced_and_room_can_be_made():
    space = make_space("ab", max_bindings=2)
    with pytest.raises(ValueError, match=r"PRSCConfig\.max_bindings = 2"):
        space.bind_concept("c", 7)
    space.bind_concept("a", 40)  # a bound name needs no room
    space.forget("b")
    space.bind_concept("c", 7)
    assert [binding.name for binding in space.bindings] == ["a", "c"]


@pytest.mark.parametrize("token_id", [-1, 4096])
def test_a_token_outside_the_vocabulary_is_refused(token_id):
    with pytest.raises(ValueError, match="expected 0 to 4095"):
        make_space("").bind_concept("x", token_id)


# --- composition --------------------------------------------------------------------------------


def test_compose_is_the_phasor_of_the_product():
    space = make_space()
    composed = space.compose(["a", "c", "c"])
    assert composed.product == PRIMES[40] * PRIMES[42] ** 2
    expected = phasors([composed.product])[0]
    torch.testing.assert_close(composed.pattern, expected, rtol=0, atol=4 * PHASE_ERROR)
    swapped = space.compose(["c", "a", "c"]).pattern
    torch.testing.assert_close(swapped, composed.pattern)


def test_coherence_of_a_composition_is_the_mean_over_its_pairs():
    space = make_space()
    a, b, c = phasors(PRIMES[40:43])
    values = [coherence_reference(*pair) for pair in ((a, b), (a, c), (b, c))]
    assert space.compose(["a", "b", "c"]).coherence == pytest.approx(sum(values) / 3)
    assert space.compose(["a", "b"]).coherence < 0.2
    assert space.compose(["a", "a"]).coherence == pytest.approx(1.0)
    assert space.compose(["a"]).coherence == 1.0


def test_concepts_that_share_a_token_agree_more():
    space = make_space("", threshold=0.5)
    for name, token_ids in (("river bank", (1, 2)), ("bank", (2, 3)), ("loan", (4, 5))):
        for token_id in token_ids:
            space.bind_concept(name, token_id)
    assert space.compose(["river bank", "bank"]).coherence > 0.3
    assert space.compose(["river bank", "loan"]).coherence < 0.2


def test_unbinding_finds_the_other_concept_among_a_thousand():
    space = ConceptSpace(PRSCConfig(), vocab_size=4096)
    for i in range(1000):
        space.bind_concept(f"concept {i}", token_id=4 * i)
    composed = space.compose(["concept 7", "concept 640"])
    residual, nearest = space.unbind(composed.pattern, "concept 7", count=3)
    torch.testing.assert_close(residual, phasors([PRIMES[4 * 640]])[0], rtol=0, atol=PHASE_ERROR)
    assert [match.name for match in nearest[:1]] == ["concept 640"]
    assert len(nearest) == 3
    assert nearest[0].coherence == pytest.approx(1.0)
    assert 0.2 > nearest[1].coherence >= nearest[2].coherence
    wrong = space.unbind(composed.pattern, "concept 8")
    assert len(wrong.nearest) == 5
    assert wrong.nearest[0].coherence < 0.2


def test_three_concepts_come_apart_one_by_one():
    space = make_space()
    pattern = space.compose(["a", "b", "c"]).pattern
    once = space.unbind(pattern, "b")
    assert once.nearest[0].coherence < 0.2
    assert space.unbind(once.residual, "c").nearest[0].name == "a"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.compose([]), "at least one bound name"),
        (lambda s: s.compose("ab"), "expected a list"),
        (lambda s: s.compose(["a", "logic"]), "'logic' is not bound"),
        (lambda s: s.unbind(s.compose(["a"]).pattern, "z"), "'z' is not bound"),
        (lambda s: s.forget("z"), "'z' is not bound"),
    ],
)
def test_wrong_calls_say_what_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_space())
