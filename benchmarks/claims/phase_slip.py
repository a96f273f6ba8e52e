"""The claims of the Phase-Slip sampler's README, on every model that was measured."""

import statistics
from collections.abc import Callable

from benchmarks.claims import Claim, Evidence, Finding, combined, decided, shown
from benchmarks.phase_slip.arms import (
    AT_LOOPS,
    GREEDY,
    HEAT,
    NOISE,
    PUBLISHED,
    PUBLISHED_DIVERSITY,
    TOP_K,
)
from benchmarks.phase_slip.statistics import matched as matched_rep4
from benchmarks.phase_slip.tables import strict_draws

README = "Phase-Slip README"
TASK = "evaluate.py phase-slip"
CLOSE = 0.05  # shares (diversity, rep-4) that differ by less are alike


def per_model(judge: Callable[[Evidence, str], tuple[str, str]]) -> Callable[[Evidence], Finding]:
    """One finding of the findings about each model."""

    def decide(evidence: Evidence) -> Finding:
        models = dict.fromkeys(row["model"] for row in evidence.rows("phase_slip"))
        found = {model: judge(evidence, model) for model in models}
        words = "; ".join(f"{model}: {words}" for model, (words, _) in found.items())
        return Finding(words, combined(*(verdict for _, verdict in found.values())), TASK)

    return decide


def _diversities(evidence: Evidence, model: str) -> dict[str, float]:
    return {
        arm: statistics.fmean(
            evidence.row("phase_slip", model=model, protocol="published", arm=arm)["diversity"]
        )
        for arm in (GREEDY, TOP_K, PUBLISHED)
    }


def greedy_stuck(evidence: Evidence, model: str) -> tuple[str, str]:
    """Is greedy text half as diverse as sampled text, as published?"""
    found = _diversities(evidence, model)
    return (
        f"greedy {found[GREEDY]:.2f}, sampling {found[TOP_K]:.2f}",
        decided(found[GREEDY] < 0.5 * found[TOP_K]),
    )


def matches_sampling(evidence: Evidence, model: str) -> tuple[str, str]:
    found = _diversities(evidence, model)
    return (
        f"Phase-Slip {found[PUBLISHED]:.2f}, sampling {found[TOP_K]:.2f}",
        decided(found[PUBLISHED] > found[TOP_K] - CLOSE),
    )


def _strict(evidence: Evidence, model: str, arm: str) -> dict[str, float]:
    return evidence.row("phase_slip", model=model, protocol="strict", arm=arm)["values"]


def breaks_loops(evidence: Evidence, model: str) -> tuple[str, str]:
    greedy, slip = (_strict(evidence, model, arm) for arm in (GREEDY, PUBLISHED))
    escaped = slip["escaped"]
    return (
        f"rep-4 {greedy['rep-4']:.3f} greedy, {slip['rep-4']:.3f} with slips; {escaped:.0%} of the "
        "texts that ended in a loop escape it",
        decided(escaped is not None and escaped > 0.9 and slip["rep-4"] < greedy["rep-4"]),
    )


def noise_does_it(evidence: Evidence, model: str) -> tuple[str, str]:
    """Of the 2 x 2: the published noise alone against the hot token alone."""
    greedy, noise, heat = (_strict(evidence, model, arm) for arm in (GREEDY, NOISE, HEAT))
    return (
        f"rep-4 {greedy['rep-4']:.3f} greedy, {noise['rep-4']:.3f} with the noise alone, "
        f"{heat['rep-4']:.3f} with the hot token alone",
        decided(noise["rep-4"] < 0.5 * greedy["rep-4"]),
    )


def without_high_temperature(evidence: Evidence, model: str) -> tuple[str, str]:
    """Does it repeat no more than plain sampling that strays as far from the model?"""
    rows = evidence.rows("phase_slip", model=model, protocol="strict")
    found = matched_rep4(strict_draws(rows), PUBLISHED, "own")
    if found is None or found["rep-4 - curve"] is None:
        return "it lies outside the curve of sampling temperatures", decided(False)
    difference = found["rep-4 - curve"]
    return (
        f"rep-4 minus that of plain sampling at equal nats/byte: {shown(difference)}",
        decided(difference[2] < CLOSE),
    )


def triggered_by_spikes(evidence: Evidence, model: str) -> tuple[str, str]:
    slips = _strict(evidence, model, PUBLISHED)
    total = slips["spike"] + slips["stale"] + slips["loop"]
    spikes = slips["spike"] / total if total else 0.0
    return (
        f"{100 * total:.1f} slips in 100 tokens, {spikes:.0%} of them at spikes",
        decided(spikes > 0.9 and total < 0.1),
    )


def sees_loops(evidence: Evidence, model: str) -> tuple[str, str]:
    """What the spike trigger can see of loops: the share of looping tokens above its threshold."""
    row = evidence.row("phase_slip", model=model, protocol="loops")
    inside, outside = row["inside"], row["outside"]
    ends = sum(row["ends"])
    return (
        f"{ends} of {len(row['ends'])} greedy texts end in a loop; {inside['spike']:.1%} of the "
        f"looping tokens are above 3.5 nats ({outside['spike']:.1%} of the others), mean "
        f"{inside['mean_nats']:.2f} against {outside['mean_nats']:.2f} nats",
        decided(inside["spike"] > outside["spike"]),
    )


def breaker(evidence: Evidence, model: str) -> tuple[str, str]:
    looping = {
        arm: evidence.row("phase_slip", model=model, protocol="breaker", arm=arm)["ends"]
        for arm in (GREEDY, PUBLISHED)
    }
    words = {True: "ends in a loop", False: "does not end in a loop"}
    return (
        f"greedy {words[looping[GREEDY]]}, Phase-Slip {words[looping[PUBLISHED]]}",
        decided(looping[GREEDY] and not looping[PUBLISHED]),
    )


def loop_trigger(evidence: Evidence, model: str) -> tuple[str, str]:
    slip, ours = (_strict(evidence, model, arm) for arm in (PUBLISHED, AT_LOOPS))
    return (
        f"rep-4 {slip['rep-4']:.3f} as published, {ours['rep-4']:.3f} with our loop trigger",
        decided(ours["rep-4"] < slip["rep-4"]),
    )


CLAIMS = (
    Claim(f"Greedy decoding has diversity {PUBLISHED_DIVERSITY[GREEDY]} where sampling has "
          f"{PUBLISHED_DIVERSITY[TOP_K]} (GPT-2 small): it is stuck in loops",
          f"{README}, vocabulary diversity", per_model(greedy_stuck)),
    Claim(f"Phase-Slip ({PUBLISHED_DIVERSITY[PUBLISHED]:.2f}) matches the diversity of sampling",
          f"{README}, vocabulary diversity", per_model(matches_sampling)),
    Claim("Phase-Slip breaks repetition loops", f"{README}, evidence", per_model(breaks_loops)),
    Claim("The loop breaker: greedy is stuck, Phase-Slip is not", f"{README}, loop breaker test",
          per_model(breaker)),
    Claim("Noise in the key-value cache shakes the model loose", f"{README}, the concept",
          per_model(noise_does_it)),
    Claim("Without constant high-temperature sampling", f"{README}, evidence",
          per_model(without_high_temperature)),
    Claim("It slips only when necessary: when confusion spikes", f"{README}, the concept",
          per_model(triggered_by_spikes)),
    Claim("An entropy spike detects a loop", f"{README}, loop breaker test", per_model(sees_loops)),
    Claim("(ours) A trigger that sees loops repeats less", "reso_llm.decoding.controllers",
          per_model(loop_trigger)),
)  # fmt: skip
