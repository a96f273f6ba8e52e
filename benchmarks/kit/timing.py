"""Timing of several things side by side: they take turns, and ratios are taken within a round."""

import statistics
from collections.abc import Callable, Mapping


def interleaved(
    measures: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, tuple[float, ...]]:
    """Call every measure once a round, in turn, so that all see the same disturbances."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            values[name].append(measure())
    return {name: tuple(v) for name, v in values.items()}


def median_ratio(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    """Median over the rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
