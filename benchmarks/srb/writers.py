"""Who answers the prompts: our own engine, or any causal language model of Hugging Face's format.

    write(question, seed, cap, controllers)   a timed reply of at most `cap` tokens, batch 1
    own(question, ids)                        what the model itself says of it, without control
    coded(text)                               the ids of another's reply, for `own` to judge

Both measure the signals of every token in every arm, so that one clock serves all of them, and draw
with the same sampler; the same seed draws the same tokens while no controller acts on the draw.

Shapes: n tokens of a reply, V vocabulary.
"""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from cer.pretrained import load_causal_lm, model_directory
from reso_llm.data.windows import eval_windows
from reso_llm.decoding.controllers import Controller
from reso_llm.inference import SHIPPED, ResoLLMInference
from run_core.run import resolve

SAMPLER = {"temperature": 0.8, "top_p": 0.95}


class Reply(NamedTuple):
    """A reply of n tokens; the end of the turn is one of them where the model ended it itself."""

    ids: list[int]
    text: str
    stop_reason: str  # "end", "length", "srb_settled"
    seconds: float
    entropy_nats: np.ndarray  # (n,)
    ema_nats: np.ndarray  # (n,)
    coherence: np.ndarray  # (n,), NaN at the first


class Writer(Protocol):
    backend: str
    model_id: str
    files: Path  # whose hash identifies the model

    def room(self, question: str) -> int: ...

    def write(
        self, question: str, seed: int, cap: int, controllers: Sequence[Controller] = ()
    ) -> Reply: ...

    def own(self, question: str, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]: ...

    def spell(self, ids: Sequence[int]) -> str: ...

    def coded(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...


class ResoWriter:
    """Our engine, from a run directory or, without one, the checkpoint of the package."""

    backend = "reso_llm"

    def __init__(self, directory: str | None) -> None:
        self.engine = ResoLLMInference.from_pretrained(directory or SHIPPED)
        self.files = resolve(directory or SHIPPED)
        self.model_id = Path(directory or SHIPPED).resolve().name

    def room(self, question: str) -> int:
        """New tokens that fit into the context after the question."""
        return self.engine.config.max_seq_len - len(self.engine.prompt_ids([("user", question)]))

    def write(
        self, question: str, seed: int, cap: int, controllers: Sequence[Controller] = ()
    ) -> Reply:
        start = time.perf_counter()
        result = self.engine.generate(
            [("user", question)], cap, seed=seed, controllers=controllers, **SAMPLER
        )
        seconds = time.perf_counter() - start
        return Reply(
            list(result.token_ids), result.text, result.stop_reason, seconds,
            *_columns(result.signals_trace),
        )  # fmt: skip

    @torch.inference_mode()
    def own(self, question: str, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Nats of each token (n,), and of ending the turn after the first 0..n of them (n+1,).

        What is longer than the context is read in windows half a context apart.
        """
        prompt, end = self.engine.prompt_ids([("user", question)]), self.engine.tokenizer.end_id
        tokens, context = np.array([*prompt, *ids, end]), self.engine.config.max_seq_len
        windows = eval_windows(tokens, np.zeros(1, dtype=np.int64), context, context // 2)
        logits = [
            self.engine.model(torch.tensor(w.inputs)[None]).logits[0][w.scored] for w in windows
        ]
        return nats(torch.cat(logits)[len(prompt) - 1 :], ids, end)

    def spell(self, ids: Sequence[int]) -> str:
        return self.engine.tokenizer.decode(ids)

    def coded(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and the characters of each."""
        ids = self.engine.tokenizer.encode(text)
        places = breaks([self.spell(ids[:k]) for k in range(len(ids) + 1)], text)
        return ids, list(itertools.pairwise(places.tolist()))


class HFWriter:
    """A model of transformers, asked as its chat template says: a directory or a hub id."""

    backend = "transformers"

    def __init__(self, name: str) -> None:
        directory = model_directory(name)
        self.tokenizer, self.model = load_causal_lm(directory)
        self.model.generation_config.max_length = None  # max_new_tokens says it
        self.files, self.model_id = Path(directory), Path(name).absolute().name

    def room(self, question: str) -> int:
        """New tokens that fit into the context after the question."""
        return self.model.config.max_position_embeddings - len(self._prompt(question))

    def write(
        self, question: str, seed: int, cap: int, controllers: Sequence[Controller] = ()
    ) -> Reply:
        from reso_llm.hf.control import controlled

        ids = torch.tensor([self._prompt(question)])
        start = time.perf_counter()
        with controlled(self.model, controllers, seed=seed) as control, torch.inference_mode():
            torch.manual_seed(seed)
            self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=cap, do_sample=True,
                top_k=0, **SAMPLER,
            )  # fmt: skip
        seconds = time.perf_counter() - start
        row = control.results[0]
        return Reply(
            list(row.token_ids), self.spell(row.token_ids), row.stop_reason, seconds,
            *_columns(row.signals),
        )  # fmt: skip

    @torch.inference_mode()
    def own(self, question: str, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Nats of each token (n,), and of ending the turn after the first 0..n of them (n+1,)."""
        prompt = self._prompt(question)
        logits = self.model(torch.tensor([[*prompt, *ids]])).logits[0]
        return nats(logits[len(prompt) - 1 :], ids, self.tokenizer.eos_token_id)

    def spell(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def coded(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and the characters of each."""
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return coded.input_ids, coded.offset_mapping

    def _prompt(self, question: str) -> list[int]:
        text = f"{question}\n\n"
        if self.tokenizer.chat_template is not None:
            turn = [{"role": "user", "content": question}]
            text = self.tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, tokenize=False
            )
        return self.tokenizer(text, add_special_tokens=False).input_ids


def breaks(heads: Sequence[str], text: str) -> np.ndarray:
    """Characters of `text` that each head begins with; half a character is none of them."""
    return np.array([_common(head, text) for head in heads])


def _common(a: str, b: str) -> int:
    size = min(len(a), len(b))
    return next((i for i in range(size) if a[i] != b[i]), size)


def nats(logits: Tensor, ids: Sequence[int], end: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n+1,V) after the first 0..n ids -> nats of the ids (n,), and of the end (n+1,)."""
    log_p = logits.float().log_softmax(-1)
    drawn = log_p[:-1].gather(1, torch.tensor(ids, dtype=torch.long)[:, None])[:, 0]
    return -drawn.double().numpy(), -log_p[:, end].double().numpy()


def _columns(signals: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropy, its average E, and C+ of every step."""
    names = ("entropy_nats", "ema_nats", "coherence")
    return tuple(np.array([getattr(s, name) for s in signals]) for name in names)
