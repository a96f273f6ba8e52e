"""A run's checkpoint chosen by validation rows: where a text overfits, the last is not the best.

Every EVERY steps the validation rows are scored, by the stateful protocol; the weights that cost
least there are those of the result. A run that has found nothing better for a PATIENCE of its
budget ends. Scoring is not charged: all models alike are scored as often.
"""

import copy
from collections.abc import Callable

from benchmarks.kit.learners import Learner, Task, total_nats

EVERY = 250
PATIENCE = 0.25


def train_chosen(
    learner: Learner,
    task: Task,
    num_steps: int,
    progress: Callable[[float], None] = lambda steps: None,
) -> list[tuple[int, float]]:
    """Train, then put the chosen weights back; (step, nats per validation token) of each score."""
    curve: list[tuple[int, float]] = []
    best = None
    while learner.steps < num_steps:
        learner.timed_step(learner.steps / num_steps)
        progress(1)
        if learner.steps % EVERY and learner.steps < num_steps:
            continue
        nats, tokens = total_nats(learner.model, task.choice, task.stride)
        curve.append((learner.steps, nats / tokens))
        if chosen_step(curve) == learner.steps:
            best = copy.deepcopy(learner.model.state_dict())
        if learner.steps - chosen_step(curve) >= PATIENCE * num_steps:
            break
    learner.model.load_state_dict(best)
    return curve


def chosen_step(curve: list[tuple[int, float]]) -> int:
    """The step of the least score."""
    return min(curve, key=lambda point: point[1])[0]
