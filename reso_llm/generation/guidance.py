"""Guidance: a text is moved further towards its goals than a model told of them would go.

    z = z_none + s (z_goal - z_none),    s the strength

z_none and z_goal are the logits of one model after the same words, without the goals and with
them. s = 0 is the model without goals, 1 the model told of them; above 1 what the goals change is
enlarged (classifier-free guidance for language models, Sanchez 2023, arXiv 2306.17806). Entropy,
surprise and all that controllers read are those of z, the distribution that is drawn from. Each
token is read twice, once by either context.

Above 1, tokens of which neither context knows anything would be lifted by the noise of their
logits. So one that is less than PLAUSIBLE times as likely as the best of z_goal becomes less likely
by that factor again (the mask of contrastive decoding, Li 2023, arXiv 2210.15097, but finite).

Shapes: B rows, V vocabulary, m candidates.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.generation.loop import ModelContext
from reso_llm.generation.row import Prediction, TextRow

PLAUSIBLE = 0.02


class Unaimed:
    """A row as a model reads it that was not told of its goals: after another prompt.

    Its words and its end are those of the row.
    """

    def __init__(self, row: TextRow, prompt: Sequence[int]) -> None:
        self._row, self._prompt, self.num_prompt = row, list(prompt), len(prompt)

    @property
    def ids(self) -> list[int]:
        """Ids of the other prompt, and those after it."""
        return self._prompt + self._row.new_ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


class GuidedContext:
    """Two contexts after the same rows, one of a model told of the goals and one without.

    All measurements but the logits are those of the context with the goals.
    """

    def __init__(self, goal: ModelContext, none: ModelContext, strength: float) -> None:
        self.goal, self.none, self.strength = goal, none, strength
        self.rows, self.tokenizer = goal.rows, goal.tokenizer
        self.table, self.attending = goal.table, goal.attending
        self.monitored = goal.monitored
        none.attending = none.monitored = False  # both are reported where the goals are known

    def predict(self) -> Prediction:
        """Read the newest token of each row twice, and predict the next."""
        aimed, plain = self.goal.predict(), self.none.predict()
        return aimed._replace(logits=guided(aimed.logits, plain.logits, self.strength))

    def heat(self, row: int, noise: CacheNoise, generator: torch.Generator) -> None:
        """Put the same noise into a row's two caches; it acts from the next token on."""
        self.none.heat(row, noise, generator.clone_state())
        self.goal.heat(row, noise, generator)

    def take_back(self, row: int, num_tokens: int) -> None:
        """Forget the last tokens of a row."""
        self.none.take_back(row, num_tokens)
        self.goal.take_back(row, num_tokens)

    def lookahead(self, row: int, candidates: Tensor, horizon: int) -> Tensor:
        """`ModelContext.lookahead` (m,) of the model told of the goals, not guided."""
        return self.goal.lookahead(row, candidates, horizon)

    def received(self, row: int) -> np.ndarray:
        """Attention received where the goals are known; see `ModelContext.received`."""
        return self.goal.received(row)

    def warnings(self, row: int) -> tuple[str, ...]:
        """Sentences about what a row's context has lost."""
        return self.goal.warnings(row)


def context_towards(strength: float, context: Callable[[bool], ModelContext]) -> ModelContext:
    """The context of rows with goals: `context(True)` knows the goals, `context(False)` does not.

    Strength 0 and 1 need one of the two, and cost nothing more.
    """
    if strength in (0, 1):
        return context(strength == 1)
    return GuidedContext(context(True), context(False), strength)


def guided(goal: Tensor, none: Tensor, strength: float) -> Tensor:
    """Logits (B,V) of the mixture; -inf where either rules a token out."""
    ruled_out = goal.isneginf() | none.isneginf()
    mixed = none + strength * (goal - none)
    if strength > 1:
        far = goal < goal.amax(-1, keepdim=True) + math.log(PLAUSIBLE)
        mixed = torch.where(far, torch.minimum(mixed, goal + math.log(PLAUSIBLE)), mixed)
    return torch.where(ruled_out, -torch.inf, mixed)
