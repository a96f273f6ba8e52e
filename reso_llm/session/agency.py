"""Agency: the goals of a session, and its foci (what it attends to; `foci.py`).

    progress  = clip((cos(text - c, goal - c) - mean) / (threshold - mean), 0, 1)

text and goal are vectors in which rare tokens count for more (`stages.goal.text_vector`), c is that
of the mean text. c, mean and threshold come from texts written without the goal: a goal is achieved
where the text resonates with it more than all but 5 % of unrelated texts do (split conformal
prediction, Vovk 2005). Without that calibration progress stays 0.

Training makes goals mean something (hindsight goals, `reso_llm.stages.goal`).

Shapes: B batch, T time, D width. Foci and goals are session state in `Agency`, never a module's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_core.checks import nearest
from reso_llm.config import AgencyConfig
from reso_llm.session.foci import FOCUS_RETENTION, Focus, Target, focus_of, focus_on

GOAL_TYPES = ("exploratory", "maintenance")
"""An exploratory goal ends when it is achieved; a maintenance goal stays and may be lost again."""


class GoalCalibration(NamedTuple):
    """Cosines of unrelated texts and goals: mean, standard deviation, threshold of achievement.

    centre (D,) is the mean text, taken from texts and goals before they are compared; () for 0.
    """

    mean: float
    deviation: float
    threshold: float
    centre: tuple[float, ...] = ()

    def cosine(self, text: Tensor, goal: Tensor) -> float:
        """Cosine of a text's vector with a goal's, both (D,), each without the centre."""
        centre = torch.tensor(self.centre or 0.0).to(text)
        return _cosine(text - centre, goal.to(text) - centre)

    def progress(self, cosine: float) -> float:
        """0 at the mean of unrelated texts or below it, 1 at the threshold or above it."""
        return min(1.0, max(0.0, (cosine - self.mean) / (self.threshold - self.mean)))


@dataclass(eq=False)
class Goal:
    """A goal of a session. Its Agency updates progress, in [0, 1], and achieved."""

    description: str
    goal_type: str
    vector: Tensor = field(repr=False)  # (D,)
    progress: float = 0.0
    achieved: bool = False


def calibrate(
    cosines: Tensor, quantile: float = 0.95, centre: Sequence[float] = ()
) -> GoalCalibration:
    """Threshold that a share 1 - quantile of unrelated texts passes: cosines (N,) -> calibration.

    cosines are those of texts with goals they were written without, without the centre. The
    threshold is their ceil((N + 1) quantile)-th smallest, which a further unrelated text passes
    with probability at most 1 - quantile, whatever the distribution. Raises ValueError for a
    quantile outside (0, 1), too few cosines for it, cosines that are not finite, or a threshold not
    above the mean.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile = {quantile!r}: expected a number between 0 and 1")
    rank = math.ceil((len(cosines) + 1) * quantile)
    if rank > len(cosines):
        needed = math.ceil(quantile / (1 - quantile) - 1e-9)
        raise ValueError(f"{len(cosines)} cosines: expected at least {needed} for {quantile}")
    values = cosines.double()
    if not values.isfinite().all():
        raise ValueError("cosines hold NaN or infinity: expected numbers from -1 to 1")
    threshold, mean = values.sort().values[rank - 1].item(), values.mean().item()
    if not threshold > mean:
        raise ValueError(f"threshold {threshold:g} is not above the mean {mean:g} of the cosines")
    return GoalCalibration(mean, values.std().item(), threshold, tuple(centre))


class Appraisal(NamedTuple):
    """A text and a goal: progress in [0, 1], whether it achieves the goal, and their cosine."""

    goal: Goal
    progress: float
    achieved: bool
    cosine: float  # without the centre


class Agency:
    """Foci and goals of one session."""

    def __init__(self, config: AgencyConfig, calibration: GoalCalibration | None = None) -> None:
        self.config = config
        self.calibration = calibration
        self._foci: tuple[Focus, ...] = ()
        self._goals: list[Goal] = []

    @property
    def calibrated(self) -> bool:
        """Whether progress is computed; without a calibration it stays 0, no goal is achieved."""
        return self.calibration is not None

    @property
    def foci(self) -> tuple[Focus, ...]:
        """The foci, the most salient first; at most AgencyConfig.max_foci."""
        return self._foci

    @property
    def active_goals(self) -> tuple[Goal, ...]:
        """Goals still pursued, the oldest first; at most AgencyConfig.max_goals."""
        return tuple(self._goals)

    def observe(
        self,
        target: str,
        *,
        surprise_nats: float,
        vector: Tensor | None = None,
        attention: float = 0.0,
    ) -> None:
        """Note a target as a focus; the foci noted before it fade.

        surprise_nats is -ln p(target) under the model, vector (D,) its embedding, attention the
        share of attention it received. A target noted before keeps the larger of its faded and
        new terms. Raises ValueError for a negative surprise or attention outside [0, 1].
        """
        if not surprise_nats >= 0:
            raise ValueError(f"surprise_nats = {surprise_nats!r}: expected at least 0")
        if not 0 <= attention <= 1:
            raise ValueError(f"attention = {attention!r}: expected a number from 0 to 1")
        new = self._seen(Target(target, surprise_nats, vector, attention), self._goals)
        foci = [new]
        for old in self._foci:
            terms = [FOCUS_RETENTION * t for t in (old.novelty, old.relevance, old.intensity)]
            if old.target == target:
                fresh = (new.novelty, new.relevance, new.intensity)
                foci[0] = focus_of(target, *map(max, terms, fresh), self.config.novelty_weight)
            else:
                foci.append(focus_of(old.target, *terms, self.config.novelty_weight))
        foci.sort(key=lambda focus: -focus.salience)  # stable: of equals, the newest stays
        self._foci = tuple(foci[: self.config.max_foci])

    def observe_text(self, targets: Iterable[Target]) -> None:
        """Note a text: its max_foci most salient targets, the most salient last."""
        for _, t in reversed(self._most_salient(targets, self._goals)):
            self.observe(
                t.name, surprise_nats=t.surprise_nats, vector=t.vector, attention=t.attention
            )

    def foci_of(self, targets: Iterable[Target], goals: Sequence[Goal]) -> tuple[Focus, ...]:
        """Foci of a text alone under these goals, the most salient first; nothing is noted."""
        return tuple(focus for focus, _ in self._most_salient(targets, goals))

    def _most_salient(
        self, targets: Iterable[Target], goals: Sequence[Goal]
    ) -> list[tuple[Focus, Target]]:
        foci = [(self._seen(target, goals), target) for target in targets]
        return sorted(foci, key=lambda pair: -pair[0].salience)[: self.config.max_foci]

    def create_goal(
        self, description: str, goal_type: str = "exploratory", *, vector: Tensor
    ) -> Goal:
        """Pursue a goal from now on; see `new_goal`."""
        self._goals.append(self.new_goal(description, goal_type, vector=vector))
        return self._goals[-1]

    def new_goal(self, description: str, goal_type: str = "exploratory", *, vector: Tensor) -> Goal:
        """A goal whose vector (D,) is the pooled embedding of its description, not pursued yet.

        Raises ValueError for an unknown goal_type, a vector that is 0, not finite or not (D,), or
        more than AgencyConfig.max_goals goals.
        """
        if goal_type not in GOAL_TYPES:
            hint = nearest(goal_type, list(GOAL_TYPES))
            raise ValueError(f"goal_type = {goal_type!r}: expected one of {GOAL_TYPES}{hint}")
        if vector.dim() != 1 or not vector.isfinite().all() or not vector.any():
            raise ValueError(
                f"vector of shape {tuple(vector.shape)} for goal {description!r}: expected (D,) "
                "finite numbers, not all 0 (does the description hold a token?)"
            )
        if len(self._goals) >= self.config.max_goals:
            raise ValueError(
                f"{len(self._goals)} goals are active, AgencyConfig.max_goals = "
                f"{self.config.max_goals}: drop one first"
            )
        return Goal(description, goal_type, vector.detach())

    def restore(self, goals: Iterable[Goal], foci: Iterable[Focus]) -> None:
        """Take over goals, the oldest first, and foci, the most salient first, of a saved session.

        Raises ValueError for more of them than the configuration allows.
        """
        goals, foci = list(goals), tuple(foci)
        if len(goals) > self.config.max_goals or len(foci) > self.config.max_foci:
            raise ValueError(
                f"{len(goals)} goals and {len(foci)} foci: expected at most AgencyConfig.max_goals "
                f"= {self.config.max_goals} and max_foci = {self.config.max_foci}"
            )
        self._goals, self._foci = goals, foci

    def drop_goal(self, goal: Goal) -> None:
        """Stop pursuing a goal. Raises ValueError if it is not active."""
        if goal not in self._goals:
            raise ValueError(f"goal {goal.description!r} is not active")
        self._goals.remove(goal)

    def appraise(self, text_vector: Tensor, goals: Sequence[Goal]) -> list[Appraisal]:
        """Compare a text's pooled vector (D,) with each goal; nothing is noted.

        Empty without a calibration, or for a text vector of 0, which has no direction.
        """
        if self.calibration is None or not text_vector.any():
            return []
        cosines = [self.calibration.cosine(text_vector, goal.vector) for goal in goals]
        return [
            Appraisal(goal, self.calibration.progress(c), c >= self.calibration.threshold, c)
            for goal, c in zip(goals, cosines, strict=True)
        ]

    def update_progress(self, text_vector: Tensor) -> tuple[Goal, ...]:
        """Update the progress of every active goal by a text; return the goals it achieved.

        Call it once a text, at its end: the 5 % of false achievements are for each comparison.
        An exploratory goal that is achieved is dropped. Without appraisals nothing changes.
        """
        reached = []
        for goal, progress, achieved, _ in self.appraise(text_vector, self._goals):
            if achieved and not goal.achieved:
                reached.append(goal)
            goal.progress, goal.achieved = progress, achieved
        ended = [goal for goal in reached if goal.goal_type == "exploratory"]
        self._goals = [goal for goal in self._goals if goal not in ended]
        return tuple(reached)

    def _seen(self, target: Target, goals: Sequence[Goal]) -> Focus:
        return focus_on(target, [goal.vector for goal in goals], self.config.novelty_weight)


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a, b.to(a), dim=0).item()
