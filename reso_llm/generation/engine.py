"""The engine of a ResoLLM: prompts in, results out; the interface is `text_engine.TextEngine`.

A goal is said in the system message of a conversation, where the model was trained on such
messages; elsewhere its vector moves every position (`stages/goal.py`). Either guides the text
(`guidance.py`).
The context policy is that of `context.py`, the decoding controllers those of `reso_llm.decoding`.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from reso_llm.config import ResoLLMConfig
from reso_llm.decoding.controllers import SRB
from reso_llm.generation.context import Context
from reso_llm.generation.guidance import Unaimed, context_towards
from reso_llm.generation.loop import Job, write
from reso_llm.generation.multi_agent import Agent
from reso_llm.generation.options import GenerationOptions, seed_or_drawn
from reso_llm.generation.prompt import Prompt, messages_of, with_system
from reso_llm.generation.prompt_cache import PromptCache
from reso_llm.generation.remembered import replies_of, with_memories
from reso_llm.generation.row import TextRow
from reso_llm.model import ResoLLMModel
from reso_llm.session.agency import Goal
from reso_llm.session.episodes import Moment
from reso_llm.session.session import Session
from reso_llm.tokenizer import ResoTokenizer

GOAL = "Your goal is to talk about {}."  # as in the training text of the shipped model
RESONANCE_STREAM = 0x2E50_0015  # the model's noise has a stream of its own


class Engine(Agent):
    """Generates text with a model, its tokenizer and its configuration.

    Raises ValueError when the three do not belong together.
    """

    echo_times = 256.0  # measured: benchmarks/studies/told.py
    knows_system_messages = False
    """Whether the model was trained on system messages, so that a goal can be said in one."""

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
        self.srb = SRB()

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
        seeds = [seed_or_drawn(seed) for seed in seeds]
        noise = None
        if self.config.stochastic_resonance.enabled:
            noise = torch.Generator(self.device).manual_seed(seeds[0] ^ RESONANCE_STREAM)
        steering = self.steering(goals)
        said = bool(steering) and options.guidance > 0 and self._can_say(prompts)
        told = [with_goals(prompt, steering) if said else prompt for prompt in prompts]
        rows = self.rows(told, options, seeds, on_text)
        vector = None if said else self.session.steered_by(tuple(steering))

        def context(towards: bool) -> Context:
            return Context(
                self.model,
                self.tokenizer,
                rows if towards or not said else self._unaimed(rows, prompts),
                goal=vector if towards else None,
                noise=None if noise is None else noise.clone_state(),
                attending=options.metrics and self.config.agency.enabled,
                cache=cache,
            )

        reading = context_towards(options.guidance if steering else 0, context)
        return Job(started, reading, write(reading), steering)

    def _can_say(self, prompts: Sequence[Prompt]) -> bool:
        """Whether a goal can be said to the model: a plain text has no system message."""
        return self.knows_system_messages and not any(isinstance(p, str) for p in prompts)

    def _unaimed(self, rows: Sequence[TextRow], prompts: Sequence[Prompt]) -> list[Unaimed]:
        """The rows after their prompts without the goal, but with what the user told."""
        plain = (with_memories(p, row.memories.told) for row, p in zip(rows, prompts, strict=True))
        return [Unaimed(row, self.prompt_ids(p)) for row, p in zip(rows, plain, strict=True)]

    @property
    def session(self) -> Session:
        """The model's session."""
        return self.model.session

    @session.setter
    def session(self, session: Session) -> None:
        self.model.session = session

    @property
    def context_length(self) -> int:
        return self.config.max_seq_len

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    @property
    def device(self) -> torch.device:
        return self.model.embedding.table.weight.device

    @property
    def description(self) -> str:
        config, size = self.config, sum(p.numel() for p in self.model.parameters())
        return (
            f"{size / 1e6:.1f}M parameters, {config.num_layers} layers, {config.dim} wide, "
            f"context {config.max_seq_len}, vocabulary {config.vocab_size}"
        )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        return self.tokenizer.encode_prompt(messages_of(prompt))

    def reply_ids(self, text: str) -> list[int]:
        t, ids = self.tokenizer, []
        for reply in replies_of(text):
            ids += [t.assistant_id, *t.encode(reply), t.end_id]
        return ids

    def text_vector(self, text: str) -> Tensor:
        return self.model.text_vector(text)

    def update_memory(
        self, text: str, importance: float = 1.0, time: float | None = None, source: str = ""
    ) -> Moment:
        return self.model.update_memory(text, importance, time, source)


def with_goals(prompt: Prompt, goals: Iterable[Goal]) -> Prompt:
    """A conversation with these goals, one at least, said in its system message."""
    wishes = " and ".join(goal.description.strip().rstrip(".!?…") for goal in goals)
    return with_system(prompt, GOAL.format(wishes))
