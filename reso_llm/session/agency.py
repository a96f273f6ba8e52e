"""Agency: the goals of a session, and its foci (what it attends to; `foci.py`).

    progress = min(1, share / ENOUGH)

share is the share of the goal's information that a text says (`resonance.share_said`): its content
words by their stems, common ones counting less. A goal is achieved where progress is 1. ENOUGH was
chosen on held-out replies: a text that was written for another goal says so much of one in at most
5 % of cases. Words can be counted in any model; cosines of its vectors told texts on the goal from
texts off it less well (benchmarks/README.md).

Training makes goals mean something (hindsight goals, `reso_llm.stages.goal`).

Shapes: D width. Foci and goals are session state in `Agency`, never a module's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from entropy_core.checks import nearest
from reso_llm.config import AgencyConfig
from reso_llm.session.foci import FOCUS_RETENTION, Focus, Target, focus_of, focus_on
from reso_llm.session.resonance import share_said
from reso_llm.session.words import words

ENOUGH = 0.25
"""The share of a goal's information that achieves it: one of four words of equal weight."""

GOAL_TYPES = ("exploratory", "maintenance")
"""An exploratory goal ends when it is achieved; a maintenance goal stays and may be lost again."""


@dataclass(eq=False)
class Goal:
    """A goal of a session. Its Agency updates progress, in [0, 1], and achieved."""

    description: str
    goal_type: str
    vector: Tensor = field(repr=False)  # (D,)
    progress: float = 0.0
    achieved: bool = False


class Appraisal(NamedTuple):
    """A text and a goal: progress, whether it achieves the goal, and the share of it that it says.

    Both numbers lie in [0, 1].
    """

    goal: Goal
    progress: float
    achieved: bool
    share: float


class Agency:
    """Foci and goals of one session."""

    def __init__(self, config: AgencyConfig) -> None:
        self.config = config
        self._foci: tuple[Focus, ...] = ()
        self._goals: list[Goal] = []

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

    def appraise(self, text: str, goals: Sequence[Goal]) -> list[Appraisal]:
        """Compare a text with each goal; nothing is noted. Empty for a text without a word."""
        if not words(text):
            return []
        shares = [share_said(goal.description, text) for goal in goals]
        return [
            Appraisal(goal, min(1.0, share / ENOUGH), share >= ENOUGH, share)
            for goal, share in zip(goals, shares, strict=True)
        ]

    def update_progress(self, text: str) -> tuple[Goal, ...]:
        """Update the progress of every active goal by a text; return the goals it achieved.

        Call it once a text, at its end. An exploratory goal that is achieved is dropped. Without
        appraisals nothing changes.
        """
        reached = []
        for goal, progress, achieved, _ in self.appraise(text, self._goals):
            if achieved and not goal.achieved:
                reached.append(goal)
            goal.progress, goal.achieved = progress, achieved
        ended = [goal for goal in reached if goal.goal_type == "exploratory"]
        self._goals = [goal for goal in self._goals if goal not in ended]
        return tuple(reached)

    def _seen(self, target: Target, goals: Sequence[Goal]) -> Focus:
        return focus_on(target, [goal.vector for goal in goals], self.config.novelty_weight)
