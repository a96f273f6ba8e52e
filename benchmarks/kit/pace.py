"""The pace of models in training on one machine, so that others can train for equal time on it.

{task: {variant: [seconds of fitting, seconds a step]}}: of the step, medians of rounds in which all
variants take turns, after a warm-up; of the fitting, once.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.kit.learners import Learner, Task
from benchmarks.kit.timing import interleaved
from benchmarks.kit.variants import learner_of
from run_core.hardware import keep_freed_memory

ROUNDS, WARM_UP = 7, 2

Pace = Mapping[str, Mapping[str, Sequence[float]]]


def read_pace(path: str) -> Pace:
    """Raises ValueError where the file is none."""
    try:
        pace = json.loads(Path(path).read_text())
        for measured in pace.values():
            for fitting, step in measured.values():
                if not (fitting >= 0 and step > 0):
                    raise ValueError(f"[{fitting}, {step}] are no seconds")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        advice = "expected what --measure_pace writes; delete it to measure anew"
        raise ValueError(f"pace file {path}: {error}; {advice}") from None
    return pace


def pace_of(pace: Pace, task: str, variant: str) -> tuple[float, float]:
    """Seconds of fitting and of a step. Raises ValueError where they were not measured."""
    try:
        fitting, step = pace[task][variant]
    except KeyError:
        raise ValueError(f"the pace of {variant} on {task} is not known: --measure_pace") from None
    return fitting, step


def steps_within(seconds: float, pace: tuple[float, float]) -> int:
    """The steps that fit into the seconds after fitting. Raises ValueError where none does."""
    fitting, step = pace
    steps = round((seconds - fitting) / step)
    if steps < 1:
        raise ValueError(f"{seconds:g} s: expected more than fitting takes, {fitting:.1f} s")
    return steps


def measure_pace(path: str, tasks: Mapping[str, Task], names: Sequence[str]) -> None:
    """Write the pace of variants on this machine; what the file says of others stays."""
    keep_freed_memory()
    pace = dict(read_pace(path)) if Path(path).exists() else {}
    for title, task in tasks.items():
        learners = {name: learner_of(task, name, seed=0) for name in names}
        fitting = {name: learner.seconds for name, learner in learners.items()}
        measures = {name: _step_seconds(learner) for name, learner in learners.items()}
        interleaved(measures, WARM_UP)
        steps = interleaved(measures, ROUNDS)
        measured = {name: [fitting[name], statistics.median(steps[name])] for name in names}
        pace[title] = {**pace.get(title, {}), **measured}
        Path(path).write_text(json.dumps(pace, indent=1) + "\n")


def _step_seconds(learner: Learner) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        learner.step(0.5)
        return time.perf_counter() - started

    return measure
