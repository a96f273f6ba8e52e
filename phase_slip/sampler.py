"""A model of transformers that writes with Phase-Slip."""

from typing import Any

from torch import nn

from reso_llm.decoding.controllers import PhaseSlip
from reso_llm.generation.prompt import Prompt
from reso_llm.generation.results import GenerationResult
from reso_llm.hf.engine import HFEngine


class Sampler:
    """Writes with a model of transformers: greedily, and repeats are taken back.

    `options` are the fields of `PhaseSlip`, for example repeat_length=4. Raises ValueError naming a
    field out of range, and as `HFEngine` does.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, **options: Any) -> None:
        self.controller = PhaseSlip(**options)
        self.engine = HFEngine(model, tokenizer)

    @classmethod
    def published(cls, model: nn.Module, tokenizer: Any, **options: Any) -> "Sampler":
        """The published sampler: hot and noisy at its shocks, `options` changed (spike_nats=2)."""
        sampler = cls(model, tokenizer)
        sampler.controller = PhaseSlip.published(**options)
        return sampler

    def generate(
        self, prompt: Prompt, max_length: int = 100, *, temperature: float = 0.0, **options: Any
    ) -> GenerationResult:
        """Continue a text or answer a conversation; every slip is one of the result's `events`.

        The options, such as seed, on_text and on_event, are those of `TextEngine.generate`, and so
        are the errors.
        """
        return self.engine.generate(
            prompt, max_length, temperature=temperature, controllers=(self.controller,), **options
        )
