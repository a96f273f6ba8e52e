"""The writer (`writers.py`) for any causal language model of transformers, from directory or hub.

Rows of a batch are padded on the left and written in step. In `write` every special token is taken
out of the logits, so that no text ends. A model without a chat template reads a chat turn as a
paragraph. Source: `reso_llm.hf`.

Shapes: B rows, T tokens, n tokens of a reply, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit.records import weights_hash
from benchmarks.kit.writers import (
    SAMPLER,
    Arm,
    Reply,
    ResoWriter,
    Text,
    answers_of,
    asked,
    signal_columns,
    spoken,
    text_of,
    token_and_end_nats,
)
from reso_llm.decoding.controllers import Controller, reach_of
from reso_llm.generation.engine import Prompt
from reso_llm.generation.loop import finish
from reso_llm.generation.options import GenerationOptions
from reso_llm.hf.engine import HFEngine
from run_core.pretrained import load_causal_lm, model_directory

BATCH_ROWS = 32  # weights are read once for all


class PretrainedWriter:
    """A causal language model of transformers."""

    backend, score_rows = "transformers", 4  # vocabularies are large

    def __init__(self, name: str) -> None:
        directory = model_directory(name)
        self.name, self.weights = Path(name).absolute().name, weights_hash(directory)
        self.tokenizer, self.model = load_causal_lm(directory)
        generation = self.model.generation_config
        generation.max_length = None  # max_new_tokens is given in each call
        ends = generation.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        self.ends = sorted({*self.tokenizer.all_special_ids, *ends})

    @property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str) or self.tokenizer.chat_template is None:
            return self.tokenizer(spoken(prompt)).input_ids
        turns = [{"role": role, "content": content} for role, content in prompt]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and the characters of each."""
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return coded.input_ids, coded.offset_mapping

    def spell(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=False).logits

    def write(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], arm: Arm, length: int
    ) -> list[Text]:
        """Texts of `length` tokens, in batches of consecutive seeds.

        What the loop of transformers cannot do is written by `HFEngine`.
        """
        if not self._fits_generate(arm):
            size = BATCH_ROWS
            parts = [slice(i, i + size) for i in range(0, len(seeds), size)]
            return [t for p in parts for t in self._in_engine(prompts[p], seeds[p], arm, length)]
        texts, first = [], 0
        for i in range(1, len(seeds) + 1):
            ended = i == len(seeds) or seeds[i] != seeds[i - 1] + 1 or i - first == BATCH_ROWS
            if ended:  # row i of a controlled batch draws from the seed of its first + i
                texts += self._batch(prompts[first:i], seeds[first], arm, length)
                first = i
        return texts

    @staticmethod
    def _fits_generate(arm: Arm) -> bool:
        known = {"temperature", "top_k", "controllers"}
        return set(arm) <= known and not reach_of(arm.get("controllers", ()))

    def _in_engine(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], arm: Arm, length: int
    ) -> list[Text]:
        options = GenerationOptions(
            max_length=length, **{"metrics": False, "auto_temperature": False} | arm
        )
        engine = HFEngine(self.model, self.tokenizer)
        with _without(self.model, self.ends):
            job = engine.start(prompts, options, seeds)
            finish(job.steps, job.rows)
        return [text_of(row) for row in job.rows]

    def _batch(self, prompts: Sequence[Prompt], seed: int, arm: Arm, length: int) -> list[Text]:
        from transformers import GenerationConfig

        ids, mask = padded([self.prompt_ids(prompt) for prompt in prompts])
        sampler = {"do_sample": False}
        if arm["temperature"]:
            sampler = {"do_sample": True, "temperature": arm["temperature"]}
            sampler["top_k"] = arm.get("top_k", 0)
        config = GenerationConfig(max_new_tokens=length, pad_token_id=0, **sampler)
        with _without(self.model, self.ends):
            results = self._generate(
                seed, arm.get("controllers", ()), ids, mask, generation_config=config
            )
        return [self._text(result) for result in results]

    def _generate(
        self, seed: int, controllers: Sequence[Controller], ids: Tensor, mask: Tensor, **how: Any
    ) -> Sequence[Any]:
        """Generate, and return what the controllers saw of each row; no global generator moves."""
        from reso_llm.hf.control import controlled

        with (
            torch.inference_mode(),
            torch.random.fork_rng(),
            controlled(self.model, controllers, seed=seed) as control,
        ):
            torch.manual_seed(seed)
            self.model.generate(ids, attention_mask=mask, **how)
        return control.results

    def _text(self, result: Any) -> Text:
        return Text(
            result.token_ids,
            self.tokenizer.decode(result.token_ids),
            tuple((event.step, event.cause) for event in result.events),
            tuple(signals.entropy_nats for signals in result.signals),
        )

    def answers(self, prompts: Sequence[Prompt], arm: Arm, length: int) -> list[Text]:
        """Texts of at most `length` tokens that end by themselves."""
        return answers_of(HFEngine(self.model, self.tokenizer), prompts, arm, length)

    def reply(
        self, question: str, seed: int, cap: int, controllers: Sequence[Controller] = ()
    ) -> Reply:
        ids = torch.tensor([self.prompt_ids(asked(question))])
        start = time.perf_counter()
        (row,) = self._generate(
            seed, controllers, ids, torch.ones_like(ids), max_new_tokens=cap, do_sample=True,
            top_k=0, **SAMPLER,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        return Reply(
            list(row.token_ids), self.spell(row.token_ids), row.stop_reason, seconds,
            *signal_columns(row.signals),
        )  # fmt: skip

    @torch.inference_mode()
    def scored(self, question: str, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Nats of each token (n,), and of ending the turn after the first 0..n of them (n+1,)."""
        prompt = self.prompt_ids(asked(question))
        logits = self.model(torch.tensor([[*prompt, *ids]])).logits[0]
        return token_and_end_nats(logits[len(prompt) - 1 :], ids, self.tokenizer.eos_token_id)


Writer = ResoWriter | PretrainedWriter


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids (B,T) of rows padded with 0 on the left, and the mask (B,T) of what is no padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@contextmanager
def _without(model: Any, ids: Sequence[int]) -> Iterator[None]:
    """Inside the block the model gives the tokens `ids` no probability."""
    places = torch.tensor(ids, dtype=torch.long)

    def hook(module: Any, arguments: Any, output: Any) -> None:
        output.logits.index_fill_(-1, places, -torch.inf)

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
