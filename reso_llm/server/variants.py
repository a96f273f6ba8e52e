"""Variants of an engine: the same model and session with some stages silent."""

import copy
from collections import OrderedDict

from reso_llm.generation.engine import Engine
from reso_llm.generation.text_engine import TextEngine
from reso_llm.tour.probes import without

MAX_KEPT = 3
"""Variants kept; each holds a copy of the model."""


class Variants:
    """The engine without some of its stages, made when it is asked for; the newest are kept."""

    def __init__(self, engine: TextEngine) -> None:
        self.engine = engine
        self._kept: OrderedDict[frozenset[str], Engine] = OrderedDict()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that can be silent; a model that is not ResoLLM has none."""
        return tuple(self.engine.model.stages()) if isinstance(self.engine, Engine) else ()

    def without(self, stages: frozenset[str]) -> TextEngine:
        """The engine in which these stages are silent. ValueError for one that it does not have."""
        if not stages:
            return self.engine
        if unknown := sorted(stages - set(self.stages)):
            known = ", ".join(self.stages) or "none"
            raise ValueError(
                f"reso.without = {unknown[0]!r}: expected stages of the model: {known}"
            )
        engine = self._kept.pop(stages, None) or self._made(stages)
        self._kept[stages] = engine
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        engine.model.session = self.engine.session
        return engine

    def _made(self, stages: frozenset[str]) -> Engine:
        made = copy.copy(self.engine)
        made.model = without(self.engine.model, *sorted(stages))
        made.model.tokenizer = made.tokenizer
        return made
