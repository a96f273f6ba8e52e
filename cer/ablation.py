"""Which part of the reactor sets the state's entropy: the mirror test with parts taken out.

Each variant changes a reactor after it is built, so a trained one can be ablated too. For each
condition the entropy of the final state (nats) is reported: mean, population standard deviation,
a 95 % percentile bootstrap interval over seeds (Efron 1979), and the same interval for the paired
difference from the baseline on the same seeds.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cer.blocks import SelfAttention
from cer.mirror import CONDITIONS, build_reactor, condition_input, run_conditions
from cer.reactor import CoherentEntropyReactor
from entropy_core.information import entropy_nats

RESAMPLES = 10_000
BASELINE = "baseline (train mode)"
ENCODER = "right after the encoder"
Built = tuple[CoherentEntropyReactor, torch.Generator]


class NoMixing(nn.Module):
    """Attention whose matrix is the identity: every position reads itself, (B,S,D) -> (B,S,D)."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
        return self.attention.merge(self.attention.heads(x)[2])


class ZeroBranch(nn.Module):
    """A branch that adds 0 to the residual state: (B,S,D) -> (B,S,D)."""

    def forward(self, x: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
        return torch.zeros_like(x)


def unchanged(reactor: CoherentEntropyReactor) -> None:
    """Change nothing."""


def in_eval_mode(reactor: CoherentEntropyReactor) -> None:
    reactor.eval()


def without_mixing(reactor: CoherentEntropyReactor) -> None:
    for block in reactor.blocks:
        block.attention = NoMixing(block.attention)


def without_attention(reactor: CoherentEntropyReactor) -> None:
    for block in reactor.blocks:
        block.attention = ZeroBranch()


def without_ffn(reactor: CoherentEntropyReactor) -> None:
    for block in reactor.blocks:
        block.ffn = ZeroBranch()


def without_drift(reactor: CoherentEntropyReactor) -> None:
    """No escape and no brake, in either mode; in `corrected` the modulation goes as well."""
    control = reactor.control
    control.options = dataclasses.replace(control.options, drift_strength=0.0, max_deficit_nats=0.0)


def without_control(reactor: CoherentEntropyReactor) -> None:
    """No drift and no phase update: in `published` the modulation goes as well."""
    without_drift(reactor)
    reactor.control.kuramoto_k = 0.0


VARIANTS: Mapping[str, Callable[[CoherentEntropyReactor], None]] = {
    BASELINE: unchanged,
    "eval mode": in_eval_mode,
    "attention matrix := identity (no mixing)": without_mixing,
    "attention output := 0": without_attention,
    "FFN := 0": without_ffn,
    "no drift control": without_drift,
    "no control, no phase modulation": without_control,
    ENCODER: unchanged,
}


def final_entropies(variant: str, built: Built) -> tuple[list[float], dict[str, int]]:
    """Final entropy of the three conditions, nats, and the control counts of a variant."""
    reactor, generator = built
    if variant == ENCODER:
        return _encoder_entropies(reactor, generator), {"brake": 0, "escape": 0}
    VARIANTS[variant](reactor)
    runs = run_conditions(reactor, generator)
    labels = [step["control"] for run in runs for step in run["steps"]]
    counts = {"brake": labels.count("BRAKE"), "escape": labels.count("ESCAPE")}
    return [run["steps"][-1]["entropy"] for run in runs], counts


@torch.no_grad()
def _encoder_entropies(reactor: CoherentEntropyReactor, generator: torch.Generator) -> list[float]:
    width = reactor.encoder.in_features
    inputs = [condition_input(name, width, generator) for name in CONDITIONS]
    return [entropy_nats(reactor.encode(x)).mean().item() for x in inputs]


def bootstrap_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile interval of the mean: values (n,) -> (low, high)."""
    drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def ablate(
    seeds: Sequence[int],
    build: Callable[[int], Built] = build_reactor,
    variants: Sequence[str] = tuple(VARIANTS),
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> list[dict[str, Any]]:
    """One row per variant. `build` makes a new reactor from a seed; it may train it.

    Raises ValueError for an unknown variant or when the baseline is not the first.
    """
    if unknown := set(variants) - set(VARIANTS):
        raise ValueError(f"unknown variants {sorted(unknown)}; known: {', '.join(VARIANTS)}")
    if not variants or variants[0] != BASELINE:
        raise ValueError(f"the first variant must be {BASELINE!r}")
    rng = np.random.default_rng(0)
    rows, baseline = [], np.zeros(0)
    for variant in progress(variants):
        runs = [final_entropies(variant, build(seed)) for seed in seeds]
        entropy = np.array([values for values, _ in runs])  # (seeds, conditions)
        baseline = entropy if variant == BASELINE else baseline
        rows.append(
            {
                "variant": variant,
                "seeds": list(seeds),
                "brake": sum(counts["brake"] for _, counts in runs),
                "escape": sum(counts["escape"] for _, counts in runs),
                "conditions": {
                    name: _statistics(entropy[:, i], baseline[:, i], rng)
                    for i, name in enumerate(CONDITIONS)
                },
            }
        )
    return rows


def _statistics(
    values: np.ndarray, baseline: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "interval": bootstrap_interval(values, rng),
        "difference": float((values - baseline).mean()),
        "difference_interval": bootstrap_interval(values - baseline, rng),
        "values": values.tolist(),
    }


def ablation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean ± deviation [interval of the mean]; then the paired difference."""
    head = "".join(f" {name} | difference |" for name in CONDITIONS)
    lines = [f"| variant |{head} brake/escape |", "|---" * (2 * len(CONDITIONS) + 2) + "|"]
    for row in rows:
        cells = ""
        for c in row["conditions"].values():
            (low, high), (d_low, d_high) = c["interval"], c["difference_interval"]
            cells += f" {c['mean']:.2f} ± {c['std']:.2f} [{low:.2f}, {high:.2f}] |"
            cells += f" {c['difference']:+.2f} [{d_low:+.2f}, {d_high:+.2f}] |"
        lines.append(f"| {row['variant']} |{cells} {row['brake']}/{row['escape']} |")
    return "\n".join(lines)
