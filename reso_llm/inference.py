"""Inference engine: text in, text out, one token at a time with a carried state.

Context policy. The model sees at most max_seq_len tokens. When they are full, or a prompt is
longer, the newest half is kept behind <|bos|> and read again: generation never stops for lack of
room, and the result says in `warnings` how many tokens were dropped.
"""

import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_core.information import entropy_nats
from reso_llm.checkpoint import load_checkpoint, resolve
from reso_llm.config import ResoLLMConfig
from reso_llm.conversation import Message
from reso_llm.decoding.sampling import SamplingOptions, sample
from reso_llm.hardware import pick_device
from reso_llm.model import ResoLLMModel, ResoState
from reso_llm.tokenizer import SPECIAL_TOKENS, ResoTokenizer


@dataclass(frozen=True)
class GenerationResult:
    """What was generated and how.

    text without the stop string; tokens_generated counts every sampled token; entropy_trace holds
    the entropy in nats of the distribution behind each of them, before temperature and filters;
    stop_reason is "end" (the model ended its turn), "stop" (a stop string), or "length"; seed
    repeats the generation.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens_generated: int
    stop_reason: str
    entropy_trace: tuple[float, ...]
    warnings: tuple[str, ...]
    seed: int
    generation_time_ms: float

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, ready for JSON."""
        return asdict(self)


class ResoLLMInference:
    """Generates text with a model, its tokenizer and its configuration.

    Raises ValueError when the three do not belong together.
    """

    def __init__(
        self, model: ResoLLMModel, tokenizer: ResoTokenizer, config: ResoLLMConfig
    ) -> None:
        if config != model.config:
            raise ValueError("config differs from model.config: pass the one the model was made of")
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model knows "
                f"{config.vocab_size}: use the tokenizer saved beside the model's checkpoint"
            )
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config
        model.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: str = "cpu") -> "ResoLLMInference":
        """The engine of a checkpoint or a run directory (its best checkpoint).

        Raises CheckpointError, or ValueError where the tokenizer beside it is not the one the
        model was trained with.
        """
        path, target = resolve(directory), pick_device(device)
        tensors, documents = load_checkpoint(path)
        for name in ("config.json", "tokenizer.json", "training.json"):
            if name not in documents:
                raise ValueError(f"{path} has no {name}: not a checkpoint of train.py")
        config = ResoLLMConfig.from_dict(documents["config.json"])
        tokenizer = ResoTokenizer.from_json(documents["tokenizer.json"], f"{path}/tokenizer.json")
        check_tokenizer(tokenizer, documents["training.json"]["tokenizer_fingerprint"], path)
        model = ResoLLMModel(config)
        model.load_weights(tensors["model"], path)
        return cls(model.to(target), tokenizer, config)

    @torch.inference_mode()
    def generate(
        self,
        prompt: str | Sequence[Message],
        max_length: int = 100,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> GenerationResult:
        """Continue a text, or reply to a conversation of (role, content) messages.

        max_length is the number of new tokens; `stop` strings end the text and are not part of
        it; on_text receives the text as it becomes certain; without a seed one is drawn and
        reported. Raises ValueError for options out of range and FloatingPointError when the
        model's logits are not finite.
        """
        options = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty)
        if max_length < 0:
            raise ValueError(f"max_length = {max_length}: expected at least 0")
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(stop):
            raise ValueError("stop contains an empty string, which would stop at once")
        seed = secrets.randbelow(2**31) if seed is None else seed
        started = time.perf_counter()
        reader = _ContextReader(self.model, self._prompt_ids(prompt))
        writer = _TextWriter(self.tokenizer, stop, on_text)
        ids, entropies, reason = self._decode(reader, writer, options, max_length, seed)
        return GenerationResult(
            text=writer.close(),
            token_ids=tuple(ids),
            tokens_generated=len(ids),
            stop_reason=reason,
            entropy_trace=tuple(entropies),
            warnings=reader.warnings,
            seed=seed,
            generation_time_ms=(time.perf_counter() - started) * 1000,
        )

    def _prompt_ids(self, prompt: str | Sequence[Message]) -> list[int]:
        if isinstance(prompt, str):
            return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        return self.tokenizer.encode_prompt(prompt)

    def _decode(
        self,
        reader: "_ContextReader",
        writer: "_TextWriter",
        options: SamplingOptions,
        max_length: int,
        seed: int,
    ) -> tuple[list[int], list[float], str]:
        generator = torch.Generator(reader.device).manual_seed(seed)
        ends = {self.tokenizer.end_id, self.tokenizer.bos_id}
        forbidden = self._unusable_ids(reader.device)
        first_word = len(SPECIAL_TOKENS)  # a turn must be free to end, however many turns ended
        ids, entropies = [], []
        while len(ids) < max_length:
            logits = reader.next_logits().index_fill(-1, forbidden, -torch.inf)
            entropies.append(_finite(float(entropy_nats(logits[0]))))
            penalised = reader.ids if options.repetition_penalty != 1 else []
            seen = torch.tensor([[i for i in penalised if i >= first_word]], device=reader.device)
            token = int(sample(logits, seen.long(), options, generator))
            ids.append(token)
            if token in ends:
                return ids, entropies, "end"
            reader.append(token)
            if writer.add(token):
                return ids, entropies, "stop"
        return ids, entropies, "length"

    def _unusable_ids(self, device: torch.device) -> Tensor:
        """Turn openers, which only the chat template may write, and ids without a token."""
        t = self.tokenizer
        spare = range(t.vocab_size, self.config.vocab_size)
        return torch.tensor([t.system_id, t.user_id, t.assistant_id, *spare], device=device)


def check_tokenizer(tokenizer: ResoTokenizer, fingerprint: str, path: str | Path) -> None:
    """ValueError unless the tokenizer is the one whose fingerprint the training recorded."""
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(
            f"{path}: tokenizer.json is not the tokenizer this model was trained with; "
            "restore the checkpoint from a copy"
        )


class _ContextReader:
    """Feeds ids to the model and keeps the context within max_seq_len."""

    def __init__(self, model: ResoLLMModel, ids: list[int]) -> None:
        self.model = model
        self.device = model.head_weight.device
        self.ids, self.unread = ids, ids
        self.state: ResoState = model.recollected_state()
        self.dropped = 0

    def append(self, token: int) -> None:
        self.ids.append(token)
        self.unread = [token]

    def next_logits(self) -> Tensor:
        """Logits (1,V) of the token after all ids so far."""
        if self.state.length + len(self.unread) > self.model.config.max_seq_len:
            keep = max(1, self.model.config.max_seq_len // 2 - 1)
            self.dropped = len(self.ids) - keep - 1
            self.unread = [self.ids[0], *self.ids[-keep:]]
            self.state = self.model.recollected_state()
        inputs = torch.tensor([self.unread], device=self.device)
        output = self.model(inputs, self.state)
        self.state = output.state
        return output.logits[:, -1].float()

    @property
    def warnings(self) -> tuple[str, ...]:
        if not self.dropped:
            return ()
        return (f"context full: the oldest {self.dropped} tokens were dropped",)


def _finite(entropy: float) -> float:
    """The entropy, which is NaN exactly when the logits are no distribution."""
    if math.isnan(entropy):
        raise FloatingPointError("the model's logits are not finite: its weights are damaged")
    return entropy


class _TextWriter:
    """Collects text, holding back what may still turn out to be the start of a stop string."""

    def __init__(
        self, tokenizer: ResoTokenizer, stop: tuple[str, ...], on_text: Callable[[str], None] | None
    ) -> None:
        self.decoder = tokenizer.stream_decoder()
        self.stop = stop
        self.on_text = on_text
        self.text, self.told, self.stopped = "", 0, False

    def add(self, token: int) -> bool:
        """Take one more token; True when a stop string is complete."""
        return self._extend(self.decoder.feed(token))

    def close(self) -> str:
        """The whole text, the rest of it told."""
        if not self.stopped:
            self._extend(self.decoder.flush())
        self._tell(len(self.text))
        return self.text

    def _extend(self, piece: str) -> bool:
        self.text += piece
        hits = [at for at in map(self.text.find, self.stop) if at >= 0]
        if hits:
            self.text, self.stopped = self.text[: min(hits)], True
        else:
            held = max((_overlap(self.text, text) for text in self.stop), default=0)
            self._tell(len(self.text) - held)
        return self.stopped

    def _tell(self, end: int) -> None:
        if self.on_text is not None and end > self.told:
            self.on_text(self.text[self.told : end])
            self.told = end


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
