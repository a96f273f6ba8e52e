"""Texts of a model under an arm: what a writer is, and the one of our own engine.

    write(prompts, seeds, arm, length) -> [Text]     row i continues prompts[i] with seeds[i]
    ids(prompt), logits(ids (B,T)) -> (B,T,V)        the model itself, without any control

All texts are `length` tokens long: what would end a text is taken out of the logits, so controllers
never see it. `pretrained.py` has the writer for models of transformers.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.common import weights_hash
from benchmarks.phase_slip.arms import WATCH, Arm
from reso_llm.generation.engine import Prompt
from reso_llm.generation.loop import finish
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.row import TextRow
from reso_llm.inference import SHIPPED, ResoLLMInference
from run_core.run import resolve

ROWS = 20  # of a batch


class Text(NamedTuple):
    """A generated text: its ids, when and why it slipped, the entropy before each token in nats."""

    ids: tuple[int, ...]
    text: str
    slips: tuple[tuple[int, str], ...] = ()
    entropies: tuple[float, ...] = ()


class Writer(Protocol):
    """A causal language model that writes texts under an arm and scores them without."""

    name: str
    weights: str
    score_rows: int

    def write(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], arm: Arm, length: int
    ) -> list[Text]:
        """A text of `length` tokens for each prompt and seed."""
        ...

    def ids(self, prompt: Prompt) -> list[int]:
        """Ids of the prompt as `write` continues it."""
        ...

    def logits(self, ids: Tensor) -> Tensor:
        """(B,T) -> (B,T,V), rows padded on the right."""
        ...


def spoken(prompt: Prompt) -> str:
    """The prompt as an outside scorer reads it: a chat turn is a paragraph of its own."""
    return prompt if isinstance(prompt, str) else f"{prompt[-1][1]}\n\n"


class Ours:
    """A checkpoint of this project, by default the shipped one."""

    score_rows = 20

    def __init__(self, directory: str | None = None) -> None:
        path = resolve(SHIPPED if directory is None else directory)
        self.name = Path(path if directory is None else directory).resolve().name
        self.weights = weights_hash(path)
        self.engine = ResoLLMInference.from_pretrained(path)

    def write(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], arm: Arm, length: int
    ) -> list[Text]:
        """See `Writer`. Raises ValueError where a text outgrows the context."""
        room, longest = self.engine.config.max_seq_len, max(len(self.ids(p)) for p in prompts)
        if longest + length > room:
            raise ValueError(f"{length} tokens and {longest} of a prompt exceed the context {room}")
        # A slip in one row copies the caches of all: alone is faster.
        step = 1 if "controllers" in arm else ROWS
        options = GenerationOptions(
            max_length=length, metrics=False, **{"controllers": (WATCH,), **arm}
        )
        batches = (slice(i, i + step) for i in range(0, len(seeds), step))
        return [text for s in batches for text in self._batch(prompts[s], seeds[s], options)]

    def _batch(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], options: GenerationOptions
    ) -> list[Text]:
        job = self.engine.start(prompts, options, seeds)
        job.context.forbidden = torch.cat((job.context.forbidden, job.context.ends))
        finish(job.steps, job.rows)
        return [_our_text(row) for row in job.rows]

    def ids(self, prompt: Prompt) -> list[int]:
        """See `Writer`."""
        return self.engine.prompt_ids(prompt)

    def logits(self, ids: Tensor) -> Tensor:
        """See `Writer`."""
        return self.engine.model(ids).logits


def _our_text(row: TextRow) -> Text:
    slips = tuple((event.step, event.cause) for event in row.decoding.events)
    entropies = tuple(signals.entropy_nats for signals in row.decoding.signals)
    return Text(tuple(row.new_ids), row.text, slips, entropies)
