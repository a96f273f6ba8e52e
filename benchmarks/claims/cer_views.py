"""Views of recorded rows, and computed values, for the claims of the CER's README."""

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.claims import Cases, Evidence, Missing, Row
from benchmarks.kit.records import grouped, newest
from cer.mirror import PUBLISHED, PUBLISHED_SEEDS
from entropy_core.commutation import commutation_cost
from entropy_core.information import semantic_mass

TARGET = 3.0
LOGGED = ("entropy", "mass", "phase", "control")
NOISES = {"norm": "of an embedding's length", "absolute": "of deviation 1"}

Rows = Sequence[Row]


# --- the mirror test and its ablations


def published(kind: str, evidence: Evidence) -> Cases:
    """The newest row of the published protocol with all its seeds."""
    rows = evidence.rows("mirror", mode="published", kind=kind)
    rows = [row for row in rows if len(row["seeds"]) == PUBLISHED_SEEDS]
    if not rows:
        raise Missing(f"no row of benchmarks/results/mirror.jsonl has {PUBLISHED_SEEDS} seeds")
    return {"": rows[-1:]}


def condition(name: str, row: Row) -> Row:
    """A line of the mirror test as the published table rounds it."""
    inputs = [c["input_entropy"] for seed in row["seed_results"] for c in seed["conditions"]
              if c["name"] == name]  # fmt: skip
    ours = row["summary"]["conditions"][name]
    final = [*ours["entropy_trajectory"].values()][-1]
    digits = len(PUBLISHED[name][0].partition(".")[2])
    return {
        "input": f"{statistics.fmean(inputs):.{digits}f}", "seeds": len(row["seeds"]),
        "mean": round(final["mean"], 2), "std": round(final["std"], 2), **ours["control_actions"],
    }  # fmt: skip


def logged(row: Row) -> Row:
    """The values logged of every seed, condition, layer and step."""
    steps = [s for seed in row["seed_results"] for c in seed["conditions"] for s in c["steps"]]
    complete = [name for name in LOGGED if all(name in step for step in steps)]
    return {"steps": len(steps), "seeds": len(row["seeds"]), "logged": ", ".join(complete),
            "all": len(complete) == len(LOGGED)}  # fmt: skip


def _conditions(row: Row) -> dict[str, dict[str, Row]]:
    """Conditions of each variant of the ablation."""
    return {variant["variant"]: variant["conditions"] for variant in row["variants"]}


def _change(condition: Row, sign: int = 1) -> list[float]:
    """Variant minus whole reactor, with its interval; with sign -1 the other way round."""
    ends = [sign * end for end in condition["difference_interval"]]
    return [sign * condition["difference"], *sorted(ends)]


def diffusion(rows: Rows) -> list[Row]:
    """With attention minus without: its mixing and all of it at initialisation, mixing trained."""
    row, *trained = rows
    seen: dict[str, object] = {"truths": []}
    for title, part in (("mixing", "no mixing"), ("layer", "attention output")):
        without = next(c for name, c in _conditions(row).items() if part in name)
        changes = [_change(c, -1) for c in without.values()]
        seen[title] = min(changes, key=lambda change: change[0])
        seen["truths"] += [change[1] > 0 for change in changes]
    for title, arm in (("trained", "reactor"), ("free", "uncontrolled")):
        added = [r["diffusion"] for t in trained if t["arm"] == arm for r in t["diffusion"]]
        seen[title] = statistics.fmean(added)
        seen["truths"].append(min(added) > 0)
    return [seen]


def ablation_and_training(evidence: Evidence) -> Cases:
    """The published ablation, then the newest reactors trained with and without control."""
    trained = [
        row
        for arm in ("reactor", "uncontrolled")
        for row in newest(evidence.rows("reactor_training", arm=arm), "seed")
    ]
    return {"": [*published("ablate", evidence)[""], *trained]}


def layers(row: Row) -> Row:
    """The state is above what the layers leave before any attention, in every condition."""
    variants = _conditions(row)
    before, after = ([c["mean"] for c in variants[name].values()] for name in
                     ("right after the encoder", "no control, no phase modulation"))  # fmt: skip
    return {"before_low": min(before), "before_high": max(before), "after_low": min(after),
            "after_high": max(after),
            "above": all(a > b for b, a in zip(before, after, strict=True))}  # fmt: skip


def without_drift(evidence: Evidence) -> Cases:
    """How much higher the final entropy is without the drift control, by condition."""
    (row,) = published("ablate", evidence)[""]
    conditions = _conditions(row)["no drift control"]
    return {name: [{"change": _change(c)}] for name, c in conditions.items()}


def oscillator(row: Row) -> Row:
    """Distance from the target with the phase update alone, and with no control."""
    variants = _conditions(row)
    names = {"alone": "no drift control", "neither": "no control, no phase modulation"}
    values = {k: [v for c in variants[name].values() for v in c["values"]]
              for k, name in names.items()}  # fmt: skip
    return {k: statistics.fmean(abs(v - TARGET) for v in some) for k, some in values.items()}


# --- the set point


def errors(row: Row) -> Row:
    values = [r["error"] for r in row["rows"]]
    return {"mean": statistics.fmean(values), "worst": max(values)}


def _by_target(row: Row) -> dict[float, Rows]:
    return {target: some for (target,), some in sorted(grouped(row["rows"], "target").items())}


def escapes(row: Row) -> Row:
    """Shares of ESCAPE at the published target and at the highest share of any target."""
    shares = {}
    for target, some in _by_target(row).items():
        labels = [step["control"] for r in some for step in r["steps"]]
        shares[target] = labels.count("ESCAPE") / len(labels)
    words = ", ".join(f"{share:.0%} at {target:g}" for target, share in shares.items())
    return {"words": words, "target": TARGET, "at_target": shares.get(TARGET, 1.0),
            "highest": max(shares.values())}  # fmt: skip


def targets_reached(row: Row) -> Row:
    """Does a higher target always give a higher entropy?"""
    ends = {
        target: statistics.fmean(r["steps"][-1]["entropy"] for r in some)
        for target, some in _by_target(row).items()
    }
    words = ", ".join(f"{end:.1f} at target {target:g}" for target, end in ends.items())
    values = [*ends.values()]
    return {"words": words, "rises": len(values) > 1 and values == sorted(values)}


# --- noise, training, and what is computed now


def noisy(quantity: str, evidence: Evidence) -> Cases:
    """A quantity of both models of every seed, by the kind of noise, at level 1, and by size."""
    rows = evidence.rows("zombie", data="tinyshakespeare.txt", quick=False)
    sizes = grouped(newest(rows, "width", "seed"), "width")

    def at(model: Row, scale: str) -> float:
        noises = model["noise"]
        return next(n[quantity] for n in noises if (n["scale"], n["level"]) == (scale, 1.0))

    return {
        f"{title} (width {width})": [
            {"forward": at(forward, scale), "recurrent": at(recurrent, scale)}
            for forward, recurrent in (row["models"] for row in some)
        ]
        for scale, title in NOISES.items()
        for (width,), some in sorted(sizes.items())
    }


def pairs_of_reactors(evidence: Evidence) -> Cases:
    """Agreement of two reactors trained apart, and coupled, of every seed that has both."""
    apart, coupled = (
        {r["seed"]: r["convergence"] for r in evidence.rows("reactor_training", arm=arm)}
        for arm in ("reactor", "coupled")
    )
    seeds = sorted(apart.keys() & coupled.keys())
    if not seeds:
        raise Missing("no seed of benchmarks/results/reactor_training.jsonl has both arms")
    return {"": [{"apart": apart[s], "coupled": coupled[s]} for s in seeds]}


def mass_limits() -> Row:
    """Computed now, on K = 128."""
    peaked, uniform = torch.zeros(2, 128, dtype=torch.float64)
    peaked[0] = 1e3
    return {"peaked": float(semantic_mass(peaked)), "uniform": float(semantic_mass(uniform)),
            "limit": 1 - 1 / 128}  # fmt: skip


def order_costs() -> Row:
    """Computed now: 0 where the order makes no difference, more where it does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64).softmax(-1)
    shifts = torch.tensor([0, 1, 2, 5, 3, 1, 4])
    same, other = (
        float(commutation_cost(system, _rotate, x, shifts).mu_nats.abs().max())
        for system in (_towards_uniform, _towards_first)
    )
    return {"same": abs(round(same, 9)), "other": other}


def _rotate(p: Tensor, shift: Tensor) -> Tensor:
    return p.roll(int(shift), -1)


def _towards_uniform(p: Tensor) -> Tensor:
    return 0.6 * p + 0.4 / p.shape[-1]


def _towards_first(p: Tensor) -> Tensor:
    first = torch.zeros_like(p)
    first[..., 0] = 0.4
    return 0.6 * p + first
