"""The engine: prompts in, results out.

One loop (`loop.py`) writes any number of rows in step; the context policy is that of `context.py`,
the decoding controllers those of `reso_llm.decoding`.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropy_core.checks import require
from reso_llm.config import ResoLLMConfig
from reso_llm.decoding.controllers import SRB, StabilityTemperature
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.decoding.text_class import StabilityCalibration
from reso_llm.generation.context import Context
from reso_llm.generation.loop import finish, write
from reso_llm.generation.options import GenerationOptions, options_of, seed_or_drawn
from reso_llm.generation.prompt import Prompt, messages_of
from reso_llm.generation.results import GenerationResult, result_of, written_text
from reso_llm.generation.row import TextRow
from reso_llm.model import ResoLLMModel
from reso_llm.session.agency import Goal
from reso_llm.tokenizer import ResoTokenizer

RESONANCE_STREAM = 0x2E50_0015  # the model's noise has a stream of its own


class Job(NamedTuple):
    """A generation in progress: its rows, the steps that write them, and its state at the start."""

    started: float  # by time.perf_counter()
    context: Context
    steps: Generator[None, None, None]
    goals: Mapping[Goal, bool]
    """The goals that steer the texts, and whether each was achieved before the generation."""

    @property
    def rows(self) -> Sequence[TextRow]:
        """The rows, one for each prompt."""
        return self.context.rows


class Engine:
    """Generates text with a model, its tokenizer and its configuration.

    `srb` is the SRB controller with the thresholds calibrated for this checkpoint, where it holds
    some (`evaluate.py srb`), and `stability_calibration` is that of the stability monitor. Raises
    ValueError when the three do not belong together.
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
        self.srb, self.stability_calibration = SRB(), StabilityCalibration()

    def generate(
        self,
        prompt: Prompt,
        max_length: int = 100,
        *,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> GenerationResult:
        """Continue a text, or reply to a conversation.

        A conversation is a list of {"role": ..., "content": ...} or (role, content). max_length is
        the number of new tokens; the options are the fields of `GenerationOptions`; on_text
        receives the text as it becomes certain; without a seed one is drawn and reported. Active
        goals steer the text, and stored texts change it. Ctrl-C ends the text early, and
        the result is that of the part written.

        Raises, before the first token, ValueError for a value of a wrong type or out of range, and
        TypeError for an unknown option; later FloatingPointError when the model's logits are not
        finite.
        """
        checked = options_of(max_length, options)
        return self.finish(self.start([prompt], checked, [seed], on_text))[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        max_length: int = 100,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> list[GenerationResult]:
        """`generate` for several prompts in step; row i uses seed + i, and does as it would alone.

        Exceptions: the noise of stochastic resonance is drawn for all rows at once; noise in the
        cached keys of a row shorter than the longest is another draw, as keys are turned by their
        column. Raises ValueError for no prompts, and as `generate` does.
        """
        listed = isinstance(prompts, Sequence) and not isinstance(prompts, str | bytes)
        if not listed or not prompts:
            raise ValueError(f"prompts = {prompts!r}: expected a list of at least one prompt")
        checked = options_of(max_length, options)
        first = seed_or_drawn(seed, len(prompts))
        return self.finish(self.start(prompts, checked, range(first, first + len(prompts))))

    @torch.inference_mode()
    def stream(
        self, prompt: Prompt, max_length: int = 100, *, seed: int | None = None, **options: Any
    ) -> Generator[str, None, GenerationResult]:
        """`generate` piece by piece: yields text as it becomes certain, returns the result.

        Nothing happens, and nothing is refused, before the first piece is asked for.
        """
        pieces: list[str] = []
        checked = options_of(max_length, options)
        job = self.start([prompt], checked, [seed], pieces.append)
        for _ in job.steps:
            yield from pieces
            pieces.clear()
        return self.close(job)[0]

    def generate_with_goal(
        self,
        prompt: Prompt,
        goal_description: str,
        max_length: int = 100,
        *,
        goal_type: str = "exploratory",
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> GenerationResult:
        """`generate` towards a goal of this call alone; see `goals_achieved`.

        The session's goals steer it too. Raises ValueError without agency, and as `create_goal`
        and `generate` do.
        """
        is_text = isinstance(goal_description, str)
        require(is_text, "goal_description", goal_description, "a string")
        vector = self.model.text_vector(goal_description)
        goal = self.model.session.new_goal(goal_description, goal_type, vector)
        checked = options_of(max_length, options)
        return self.finish(self.start([prompt], checked, [seed], on_text, goals=[goal]))[0]

    # --- the steps of a generation

    @torch.inference_mode()
    def start(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        seeds: Sequence[int | None],
        on_text: Callable[[str], None] | None = None,
        field: Tensor | None = None,
        goals: Sequence[Goal] = (),
    ) -> Job:
        """Prepare a generation with the session's goals, episodes and monitor; write nothing yet.

        on_text belongs to a single row; field (H,C,S) takes the place of the session's own at the
        start; goals steer this generation beside the session's.
        """
        started = time.perf_counter()
        options = options.followed_by(self.config.stability)
        if on_text is not None and not callable(on_text):
            raise ValueError(f"on_text = {on_text!r}: expected a function of a text, or None")
        seeds = [seed_or_drawn(seed) for seed in seeds]
        noise = None
        if self.config.stochastic_resonance.enabled:
            noise = torch.Generator(self.device).manual_seed(seeds[0] ^ RESONANCE_STREAM)
        session = self.model.session
        rows = [
            self._row(prompt, options, seed, on_text)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        active = () if session.agency is None else session.agency.active_goals
        steering = {goal: goal.achieved for goal in (*active, *goals)}
        context = Context(
            self.model,
            self.tokenizer,
            rows,
            goal=session.steered_by(tuple(steering)),
            noise=noise,
            field=field,
            attending=options.metrics and self.config.agency.enabled,
        )
        if len(rows) == 1 and rows[0].decoding.monitor is not None:
            session.stability = rows[0].decoding.monitor
        return Job(started, context, write(context), steering)

    def _row(
        self,
        prompt: Prompt,
        options: GenerationOptions,
        seed: int,
        on_text: Callable[[str], None] | None,
    ) -> TextRow:
        """Make one row, with a stability monitor where metrics or a controller read it."""
        followed = any(isinstance(c, StabilityTemperature) for c in options.controllers)
        monitor = None
        if self.config.stability.enabled and (options.metrics or followed):
            monitor = StabilityMonitor(self.config.stability, self.stability_calibration)
        return TextRow(
            self.prompt_ids(prompt),
            options,
            self.tokenizer,
            seed=seed,
            device=self.device,
            monitor=monitor,
            on_text=on_text,
        )

    def finish(self, job: Job) -> list[GenerationResult]:
        """Write all rows of a job to their end, or to where Ctrl-C ends them; then `close` it."""
        finish(job.steps, job.rows)
        return self.close(job)

    @torch.inference_mode()
    def close(self, job: Job) -> list[GenerationResult]:
        """Return the results of a job whose rows have ended; the session notes their texts."""
        milliseconds = (time.perf_counter() - job.started) * 1000
        context, session = job.context, self.model.session
        context.settle()
        texts = [written_text(self.model, context, b, job.goals) for b in range(len(job.rows))]
        results = [
            result_of(row, text, session, job.goals, context.warnings(b), milliseconds)
            for b, (row, text) in enumerate(zip(job.rows, texts, strict=True))
        ]
        for text in texts:
            session.note(text)
        return results

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return self.model.embedding.table.weight.device

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt, control tokens included. Raises ValueError as `messages_of`."""
        if isinstance(prompt, str):
            return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        return self.tokenizer.encode_prompt(messages_of(prompt))


def describe(engine: Engine) -> str:
    """One line about the model."""
    config, size = engine.config, sum(p.numel() for p in engine.model.parameters())
    return (
        f"{size / 1e6:.1f}M parameters, {config.num_layers} layers, {config.dim} wide, "
        f"context {config.max_seq_len}, vocabulary {config.vocab_size}"
    )
