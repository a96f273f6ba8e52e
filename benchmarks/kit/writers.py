"""Models that write texts and score them: a checkpoint of ours, or a model of transformers.

    write(prompts, seeds, arm, length)    texts of full length: what would end one is taken out
    answers(prompts, arm, length)         texts that end by themselves, or at the length
    reply(question, seed, cap, controllers)   one timed reply, at batch 1, that may end by itself
    scored(question, ids)                 nats of a reply's tokens and of its end, without control
    logits(ids (B,T)) -> (B,T,V)          the model itself, rows padded on the right
    prompt_ids, encode, spell, spans      its tokens of a prompt, of a text, and back

A writer has a backend, a name, weights (their hash), a context in tokens, and score_rows, the rows
of a batch of `logits`. `kit.pretrained` has the other one, and Writer, the type of both.

An arm is a dict of fields of `GenerationOptions`: temperature, top_k, controllers. A row's draws
depend on its seed alone, but for plain sampling of transformers, where a batch of rows draws from
the first seed of it. Signals of every token are measured in every arm, so one clock serves all.

Shapes: B rows, T tokens, n tokens of a reply, V vocabulary.
"""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit.records import weights_hash
from reso_llm.data.windows import eval_windows
from reso_llm.decoding.controllers import Controller, PhaseSlip
from reso_llm.generation.engine import Prompt
from reso_llm.generation.loop import finish
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.row import TextRow
from reso_llm.generation.text_engine import TextEngine
from reso_llm.inference import SHIPPED, ResoLLMInference
from run_core.run import resolve

SAMPLER = {"temperature": 0.8, "top_p": 0.95}  # of replies
WATCH = PhaseSlip.published(
    confident_nats=float("inf")
)  # never slips: for the entropies it is shown
BATCH_ROWS = 20

Arm = dict[str, Any]


class Text(NamedTuple):
    """A generated text: its ids, when and why it slipped, the entropy before each token in nats."""

    ids: tuple[int, ...]
    text: str
    slips: tuple[tuple[int, str], ...] = ()
    entropies: tuple[float, ...] = ()


class Reply(NamedTuple):
    """A reply of n tokens; the end of the turn is one of them where the model ended it itself."""

    ids: list[int]
    text: str
    stop_reason: str  # "end", "length", "srb_settled"
    seconds: float
    entropy_nats: np.ndarray  # (n,)
    ema_nats: np.ndarray  # (n,)
    coherence: np.ndarray  # (n,), NaN at the first


def asked(question: str) -> Prompt:
    """A question as the turn of a chat."""
    return (("user", question),)


def spoken(prompt: Prompt) -> str:
    """The prompt as plain text: a chat turn is a paragraph of its own."""
    return prompt if isinstance(prompt, str) else f"{prompt[-1][1]}\n\n"


class ResoWriter:
    """A checkpoint of this project, by default the shipped one."""

    backend, score_rows = "reso_llm", 20

    def __init__(self, directory: str | None = None) -> None:
        path = resolve(directory or SHIPPED)
        self.name = Path(directory or path).resolve().name
        self.weights = weights_hash(path)
        self.engine = ResoLLMInference.from_pretrained(path)

    @property
    def context(self) -> int:
        return self.engine.config.max_seq_len

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return self.engine.prompt_ids(prompt)

    def encode(self, text: str) -> list[int]:
        return self.engine.tokenizer.encode(text)

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and the characters of each."""
        ids = self.encode(text)
        places = breaks([self.spell(ids[:k]) for k in range(len(ids) + 1)], text)
        return ids, list(itertools.pairwise(places.tolist()))

    def spell(self, ids: Sequence[int]) -> str:
        return self.engine.tokenizer.decode(ids)

    def logits(self, ids: Tensor) -> Tensor:
        return self.engine.model(ids).logits

    def write(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], arm: Arm, length: int
    ) -> list[Text]:
        """Texts of `length` tokens. Raises ValueError where one outgrows the context."""
        longest = max(len(self.prompt_ids(prompt)) for prompt in prompts)
        if longest + length > self.context:
            raise ValueError(
                f"{length} tokens and {longest} of a prompt exceed the context {self.context}"
            )
        # A slip in one row copies the caches of all: alone is faster.
        size = 1 if "controllers" in arm else BATCH_ROWS
        plain = {"metrics": False, "auto_temperature": False, "controllers": (WATCH,)}
        options = GenerationOptions(max_length=length, **(plain | arm))
        texts = []
        for first in range(0, len(seeds), size):
            rows = slice(first, first + size)
            job = self.engine.start(prompts[rows], options, seeds[rows])
            job.context.forbidden = torch.cat((job.context.forbidden, job.context.ends))
            finish(job.steps, job.rows)
            texts += map(text_of, job.rows)
        return texts

    def answers(self, prompts: Sequence[Prompt], arm: Arm, length: int) -> list[Text]:
        """Texts of at most `length` tokens that end by themselves."""
        return answers_of(self.engine, prompts, arm, length)

    def reply(
        self, question: str, seed: int, cap: int, controllers: Sequence[Controller] = ()
    ) -> Reply:
        start = time.perf_counter()
        result = self.engine.generate(
            asked(question), cap, seed=seed, controllers=controllers, auto_temperature=False,
            **SAMPLER,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        return Reply(
            list(result.token_ids), result.text, result.stop_reason, seconds,
            *signal_columns(result.signals_trace),
        )  # fmt: skip

    @torch.inference_mode()
    def scored(self, question: str, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Nats of each token (n,), and of ending the turn after the first 0..n of them (n+1,).

        What is longer than the context is read in windows half a context apart.
        """
        prompt, end = self.prompt_ids(asked(question)), self.engine.tokenizer.end_id
        tokens, origin = np.array([*prompt, *ids, end]), np.zeros(1, dtype=np.int64)
        windows = eval_windows(tokens, origin, self.context, self.context // 2)
        logits = [self.logits(torch.tensor(w.inputs)[None])[0][w.scored] for w in windows]
        return token_and_end_nats(torch.cat(logits)[len(prompt) - 1 :], ids, end)


def answers_of(engine: TextEngine, prompts: Sequence[Prompt], arm: Arm, length: int) -> list[Text]:
    """Texts of an engine that end by themselves, in batches."""
    options = {"metrics": False, "auto_temperature": False} | arm
    batches = [prompts[i : i + BATCH_ROWS] for i in range(0, len(prompts), BATCH_ROWS)]
    results = [
        r for batch in batches for r in engine.generate_batch(batch, length, seed=0, **options)
    ]
    return [Text(result.token_ids, result.text) for result in results]


def text_of(row: TextRow) -> Text:
    """What a row has written."""
    slips = tuple((event.step, event.cause) for event in row.decoding.events)
    entropies = tuple(signals.entropy_nats for signals in row.decoding.signals)
    return Text(tuple(row.new_ids), row.text, slips, entropies)


def breaks(heads: Sequence[str], text: str) -> np.ndarray:
    """Characters of `text` that each head begins with; half a character is none of them."""
    return np.array([_common(head, text) for head in heads])


def _common(a: str, b: str) -> int:
    size = min(len(a), len(b))
    return next((i for i in range(size) if a[i] != b[i]), size)


def token_and_end_nats(
    logits: Tensor, ids: Sequence[int], end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n+1,V) after the first 0..n ids -> nats of the ids (n,), and of the end (n+1,)."""
    log_p = logits.float().log_softmax(-1)
    drawn = log_p[:-1].gather(1, torch.tensor(ids, dtype=torch.long)[:, None])[:, 0]
    return -drawn.double().numpy(), -log_p[:, end].double().numpy()


def signal_columns(signals: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropy, its average E, and C+ of every step."""
    names = ("entropy_nats", "ema_nats", "coherence")
    return tuple(np.array([getattr(s, name) for s in signals]) for name in names)
