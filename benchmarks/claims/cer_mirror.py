"""Claims of the CER's README that the mirror test, its ablations and the set-point curve decide."""

import statistics
from collections.abc import Callable

from benchmarks.claims import Evidence, Finding, Missing, Row, above, combined, decided
from benchmarks.claims.cer_others import training_diffusion
from benchmarks.heldout import shown

MIRROR = "python evaluate.py mirror"
ABLATION = f"{MIRROR} --ablation"
SETPOINT = "python evaluate.py setpoint --mode published corrected"
TABLE = {  # published: input nats, mean and deviation of the final nats, BRAKE, ESCAPE
    "PEAKED": ("0.063", 3.84, 0.49, 58, 1),
    "UNIFORM": ("4.852", 4.11, 0.23, 60, 0),
    "RANDOM": ("4.4", 4.10, 0.24, 60, 0),
}
SEEDS = 10
TARGET = 3.0
LOGGED = ("entropy", "mass", "phase", "control")
CLOSE_NATS = 0.1
RARE = 0.05


def _published(evidence: Evidence, kind: str) -> Row:
    """The newest row of the published protocol with all its seeds."""
    rows = evidence.rows("mirror", mode="published", kind=kind)
    rows = [row for row in rows if len(row["seeds"]) == SEEDS]
    if not rows:
        raise Missing(f"no row of benchmarks/results/mirror.jsonl has {SEEDS} seeds")
    return rows[-1]


def _variants(evidence: Evidence) -> dict[str, dict[str, Row]]:
    """Conditions of each variant of the ablation."""
    row = _published(evidence, "ablate")
    return {v["variant"]: v["conditions"] for v in row["variants"]}


def mirror_row(name: str) -> Callable[[Evidence], Finding]:
    """A line of the published table: equal to its last digit, actions to the count."""

    def decide(evidence: Evidence) -> Finding:
        row = _published(evidence, "mirror")
        given, *published = TABLE[name]
        inputs = [c["input_entropy"] for seed in row["seed_results"] for c in seed["conditions"]
                  if c["name"] == name]  # fmt: skip
        found = row["summary"]["conditions"][name]
        final = [*found["entropy_trajectory"].values()][-1]
        actions = found["control_actions"]
        ours = [round(final["mean"], 2), round(final["std"], 2), actions["brake"],
                actions["escape"]]  # fmt: skip
        words = "{:.2f} ± {:.2f} nats; {} BRAKE, {} ESCAPE".format(*ours)
        digits = len(given.partition(".")[2])
        entropy = f"{statistics.fmean(inputs):.{digits}f}"
        return Finding(f"input {entropy} nats, final state {words}, {len(row['seeds'])} seeds",
                       decided(ours == published and entropy == given), MIRROR)  # fmt: skip

    return decide


def parameters(evidence: Evidence) -> Finding:
    about = _published(evidence, "mirror")["metadata"]
    count, layers, steps = (about[k] for k in
                            ("num_parameters", "num_layers", "num_refinement_steps"))  # fmt: skip
    return Finding(f"{count:,} parameters, {layers} layers, {steps} steps each",
                   decided((round(count / 1e6, 1), layers, steps) == (1.6, 2, 3)),
                   MIRROR)  # fmt: skip


def trajectory_log(evidence: Evidence) -> Finding:
    """Of every seed, condition, layer and step."""
    row = _published(evidence, "mirror")
    steps = [
        step for seed in row["seed_results"] for c in seed["conditions"] for step in c["steps"]
    ]
    known = [name for name in LOGGED if all(name in step for step in steps)]
    return Finding(f"{len(steps)} steps of {len(row['seeds'])} seeds, each with {', '.join(known)}",
                   decided(len(known) == len(LOGGED) and len(steps) == 180), MIRROR)  # fmt: skip


def escape_rare(evidence: Evidence) -> Finding:
    """At the published target; and at the highest, for is it a property of the architecture?"""
    shares = {}
    curve = evidence.row("setpoint", mode="published")
    for target in sorted({r["target"] for r in curve["rows"]}):
        labels = [s["control"] for r in curve["rows"] if r["target"] == target for s in r["steps"]]
        shares[target] = labels.count("ESCAPE") / len(labels)
    words = ", ".join(f"{share:.0%} at {target:g}" for target, share in shares.items())
    at_target, highest = shares.get(TARGET, 1.0), max(shares.values())
    return Finding(f"share of ESCAPE steps by target in nats: {words} (published: {TARGET:g})",
                   combined(decided(at_target < RARE), decided(highest < RARE)),
                   SETPOINT)  # fmt: skip


def diffusers(evidence: Evidence) -> Finding:
    """With attention minus without: its mixing and all of it at initialisation, mixing trained."""
    variants = _variants(evidence)
    words, verdicts = [], []
    for title, part in (("its mixing", "no mixing"), ("the whole layer", "attention output")):
        without = next(c for name, c in variants.items() if part in name)
        changes = [_reversed(c) for c in without.values()]
        worst = min(changes, key=lambda change: change[0])
        words.append(f"{title} {shown(worst, 2)}")
        verdicts.append(combined(*(above(change) for change in changes)))
    trained, free = (training_diffusion(evidence, arm) for arm in ("reactor", "uncontrolled"))
    verdicts += [decided(min(trained) > 0), decided(min(free) > 0)]
    return Finding(
        f"attention changes the final entropy at initialisation by, worst condition, "
        f"{', '.join(words)} nats; its mixing when trained {statistics.fmean(trained):+.2f} with "
        f"the control, {statistics.fmean(free):+.2f} without",
        combined(*verdicts), f"{ABLATION}; python -m benchmarks.reactor_training",
    )  # fmt: skip


def _reversed(condition: Row) -> list[float]:
    """With minus without, of the recorded without minus with."""
    low, high = condition["difference_interval"]
    return [-condition["difference"], -high, -low]


def above_because_of_attention(evidence: Evidence) -> Finding:
    """The state is above the target before any attention, in every condition."""
    variants = _variants(evidence)
    before, after = (variants[name] for name in
                     ("right after the encoder", "no control, no phase modulation"))  # fmt: skip
    means = [[c["mean"] for c in some.values()] for some in (before, after)]
    return Finding(
        f"{min(means[0]):.2f} to {max(means[0]):.2f} nats right after projection and LayerNorm, "
        f"before any attention; the layers lower it to {min(means[1]):.2f} to {max(means[1]):.2f} "
        "when nothing is controlled",
        decided(all(a > b for b, a in zip(*means, strict=True))), ABLATION,
    )  # fmt: skip


def brake_works(evidence: Evidence) -> Finding:
    """Is the final entropy higher without the drift control, beyond its interval?"""
    changes = {
        name: [c["difference"], *c["difference_interval"]]
        for name, c in _variants(evidence)["no drift control"].items()
    }
    words = ", ".join(f"{name} {shown(change, 2)}" for name, change in changes.items())
    return Finding(f"without it the final entropy is higher by {words} nats",
                   combined(*map(above, changes.values())), ABLATION)  # fmt: skip


def control_converges(mode: str) -> Callable[[Evidence], Finding]:
    """Ends within .1 nats of the target, for every target, seed and condition."""

    def decide(evidence: Evidence) -> Finding:
        errors = [r["error"] for r in evidence.row("setpoint", mode=mode)["rows"]]
        return Finding(
            f"distance of the final entropy from targets of 1 to 5 nats: mean "
            f"{statistics.fmean(errors):.2g}, worst {max(errors):.2g} nats (holds below "
            f"{CLOSE_NATS})",
            decided(max(errors) < CLOSE_NATS), SETPOINT,
        )  # fmt: skip

    return decide


def navigates(evidence: Evidence) -> Finding:
    """Does a higher target always give a higher entropy, as published?"""
    rows = evidence.row("setpoint", mode="published")["rows"]
    ends = {
        target: statistics.fmean(r["steps"][-1]["entropy"] for r in rows if r["target"] == target)
        for target in sorted({r["target"] for r in rows})
    }
    words = ", ".join(f"{end:.1f} at target {target:g}" for target, end in ends.items())
    values = [*ends.values()]
    return Finding(f"mean final entropy, nats: {words}",
                   decided(len(values) > 1 and values == sorted(values)), SETPOINT)  # fmt: skip


def oscillator(evidence: Evidence) -> Finding:
    """Does the phase update alone bring the entropy nearer to the target?"""
    variants = _variants(evidence)
    alone, neither = (
        statistics.fmean(abs(v - TARGET) for c in variants[name].values() for v in c["values"])
        for name in ("no drift control", "no control, no phase modulation")
    )
    return Finding(
        f"mean distance from the target of {TARGET:g} nats: {alone:.2f} with the phase update "
        f"alone, {neither:.2f} with no control at all",
        decided(alone < neither), ABLATION,
    )  # fmt: skip
