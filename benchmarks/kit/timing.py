"""Timing of several things side by side: they take turns, and ratios are taken within a round."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from reso_llm.model import ResoLLMModel
from reso_llm.network import ResoState


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


def rate(work: Callable[[], object], amount: int) -> Callable[[], float]:
    """A function that does the work once and returns its amount per second."""

    def measure() -> float:
        started = time.perf_counter()
        work()
        return amount / (time.perf_counter() - started)

    return measure


@torch.inference_mode()
def greedy_steps(
    model: ResoLLMModel, state: ResoState, count: int
) -> tuple[list[float], ResoState]:
    """Milliseconds of each of `count` greedy steps at batch 1, and the state after the first."""
    token, taken, states = torch.zeros(1, 1, dtype=torch.int64), [], []
    for _ in range(count):
        started = time.perf_counter()
        output = model(token, state)
        token, state = output.logits[:, -1:].argmax(-1), output.state
        taken.append((time.perf_counter() - started) * 1000)
        states = states or [state]
    return taken, states[0]
