"""Texts of any causal language model of transformers, with the controllers inside its `generate`.

Rows of a batch are padded on the left and written in step. Every special token is taken out of the
logits, so that no text ends. Phase-Slip draws row i from its seed alone; plain sampling draws a
batch of rows from the first seed of it. A model without a chat template reads a chat turn as a
paragraph. Source: `reso_llm.hf`.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import weights_hash
from benchmarks.phase_slip.arms import Arm
from benchmarks.phase_slip.texts import Text, spoken
from cer.pretrained import load_causal_lm, model_directory
from reso_llm.generation.engine import Prompt

ROWS = 32  # of a batch: weights are read once for all


class Pretrained:
    """A causal language model of transformers, from a directory or the hub."""

    score_rows = 4  # vocabularies are large

    def __init__(self, name: str) -> None:
        directory = model_directory(name)
        self.name, self.weights = Path(name).absolute().name, weights_hash(directory)
        self.tokenizer, self.model = load_causal_lm(directory)
        ends = self.model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        self.ends = sorted({*self.tokenizer.all_special_ids, *ends})

    def write(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], arm: Arm, length: int
    ) -> list[Text]:
        """See `Writer`."""
        texts, first = [], 0
        for i in range(1, len(seeds) + 1):
            ended = i == len(seeds) or seeds[i] != seeds[i - 1] + 1 or i - first == ROWS
            if ended:  # row i of a controlled batch draws from the seed of its first + i
                texts += self._batch(prompts[first:i], seeds[first], arm, length)
                first = i
        return texts

    def _batch(self, prompts: Sequence[Prompt], seed: int, arm: Arm, length: int) -> list[Text]:
        from reso_llm.hf.control import controlled

        rows = [self.ids(prompt) for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        with (
            torch.inference_mode(),
            torch.random.fork_rng(),
            _without(self.model, self.ends),
            controlled(self.model, arm.get("controllers", ()), seed=seed) as control,
        ):
            torch.manual_seed(seed)
            self.model.generate(ids, self._config(arm, length), attention_mask=mask)
        return [self._text(result) for result in control.results]

    def _config(self, arm: Arm, length: int) -> Any:
        from transformers import GenerationConfig

        sampler = {"do_sample": False}
        if arm["temperature"]:
            sampler = {"do_sample": True, "temperature": arm["temperature"]}
            sampler["top_k"] = arm.get("top_k", 0)
        return GenerationConfig(max_new_tokens=length, pad_token_id=0, **sampler)

    def _text(self, result: Any) -> Text:
        return Text(
            result.token_ids,
            self.tokenizer.decode(result.token_ids),
            tuple((event.step, event.cause) for event in result.events),
            tuple(signals.entropy_nats for signals in result.signals),
        )

    def ids(self, prompt: Prompt) -> list[int]:
        """See `Writer`."""
        if isinstance(prompt, str) or self.tokenizer.chat_template is None:
            return self.tokenizer(spoken(prompt)).input_ids
        turns = [{"role": role, "content": content} for role, content in prompt]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, as a scorer reads it."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def logits(self, ids: Tensor) -> Tensor:
        """See `Writer`."""
        return self.model(ids, use_cache=False).logits


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
