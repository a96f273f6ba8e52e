"""Claims of this project on reactors that were trained, or have a liquid layer."""

from collections.abc import Sequence

from benchmarks.claims import Cases, Claim, Evidence, Missing, Row
from benchmarks.claims.rules import all_of, apart, below, less, one, rows_of
from benchmarks.kit.records import grouped, newest
from benchmarks.studies import liquid_reactor

SOURCE = "cer.reactor"
CLOSE_NATS = 0.1
BYTES = "python -m benchmarks.studies.reactor_bytes --run RUN"
LIQUID = "python -m benchmarks.studies.liquid_reactor"
CONTROL = ("weak_error", "weak_steps", "noisy_error")
"""What the oscillators are judged by: with the default control there is no error to lessen."""


def of_bytes(evidence: Evidence) -> Cases:
    """Each seed's arms, by name, of the newest rows."""
    rows = newest(evidence.rows("reactor_bytes"), "arm", "seed")
    return {"": [{r["arm"]: r for r in some} for some in grouped(rows, "seed").values()]}


def of_denoising(evidence: Evidence) -> Cases:
    """Held-out KL of each seed's arms, the mean over the reactors."""
    rows = newest(evidence.rows("reactor_training"), "arm", "seed")
    seeds = [
        {r["arm"]: sum(r["kl_nats"]) / len(r["kl_nats"]) for r in some}
        for some in grouped(rows, "seed").values()
    ]
    return {"": [seed for seed in seeds if {"reactor", "mlp_pooled"} <= seed.keys()]}


def final(row: Row) -> Row:
    """Final entropies of the trained reactor's state, and the largest distance from its target."""
    conditions = row["summary"]["conditions"]
    ends = {
        name: [*found["entropy_trajectory"].values()][-1]["mean"]
        for name, found in conditions.items()
    }
    words = ", ".join(f"{name} {end:.2f}" for name, end in ends.items())
    target = row["metadata"]["target_entropy"]
    return {"words": words, "target": target,
            "worst": max(abs(end - target) for end in ends.values())}  # fmt: skip


def liquid(evidence: Evidence) -> Cases:
    """The liquid reactor minus the same with its phases frozen, untrained and trained."""
    rows = newest(evidence.rows(liquid_reactor.NAME), "arm", "seed")
    cases = {}
    for state in ("untrained", "trained"):
        found = liquid_reactor.differences(rows, state, "liquid", "liquid, frozen")
        if not found:
            raise Missing("no seed of benchmarks/results/liquid_reactor.jsonl has both arms")
        seeds = {row["seed"] for row in rows if row["arm"] == "liquid, frozen"}
        cases[state] = [found | {"seeds": len(seeds)}]
    return cases


def answering(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows that have a score of the answers. Raises Missing for reactors that were not trained."""
    if "kl" not in rows[0]:
        raise Missing("an untrained reactor has no answers to score")
    return rows


CLAIMS: Sequence[Claim] = (
    Claim("(ours) A reactor trained on text joins views of the next byte better than smoothing "
          "and a pooled perceptron", SOURCE, BYTES, of_bytes,
          "nats per byte, {num_seeds} seeds: reactor {reactor.nats_per_byte:.3f}, perceptron "
          "{mlp_pooled.nats_per_byte:.3f}, smoothing {smoothed_views.nats_per_byte:.3f}",
          (all_of(apart("reactor.minus_bigram", "mlp_pooled.minus_bigram"),
                  apart("reactor.minus_bigram", "smoothed_views.minus_bigram")),)),
    Claim("(ours) ... and than five weights of a log-linear product", SOURCE, BYTES, of_bytes,
          "reactor {reactor.nats_per_byte:.3f}, product {log_linear.nats_per_byte:.3f} nats per "
          "byte (a counted trigram {trigram.nats_per_byte:.3f})",
          (apart("reactor.minus_bigram", "log_linear.minus_bigram"),)),
    Claim("(ours) ... and restores a distribution from noisy views better than both", SOURCE,
          "python -m benchmarks.studies.reactor_training", of_denoising,
          "KL in nats, {num_seeds} seeds: reactor {reactor:.3f}, pooled perceptron "
          "{mlp_pooled:.3f}, smoothing {smoothed_views:.3f}",
          (all_of(less("reactor", "mlp_pooled"), less("reactor", "smoothed_views")),)),
    Claim("(ours) A trained reactor ends on its set point", SOURCE,
          "python evaluate.py mirror --trained", rows_of("mirror", kind="trained"),
          f"final entropy {{words}} nats, set point {{target:g}} (holds within {CLOSE_NATS})",
          (less("worst", CLOSE_NATS),), one(final)),
    Claim("(ours) A liquid layer's oscillators make a weak control exact sooner, and steadier "
          "under noise, than the same layer with frozen phases", SOURCE, LIQUID, liquid,
          "{case}, {seeds} seeds: error {weak_error:.3f} nats, steps to the set point "
          "{weak_steps:.2f}, error under noise {noisy_error:.3f}",
          tuple(map(below, CONTROL))),
    Claim("(ours) ... and make the trained reactor's answers better", SOURCE, LIQUID, liquid,
          "{case}: KL {kl:.4f} nats", (below("kl"),), answering),
)  # fmt: skip
