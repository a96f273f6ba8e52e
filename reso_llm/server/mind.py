"""What the page shows beside the texts: the model, its switches, and its memory."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from entropy_core.checks import is_number
from reso_llm.chat.session import SAMPLING
from reso_llm.generation.options import GenerationOptions
from reso_llm.server.asked import DEFAULT_TOKENS, MAX_TOKENS
from reso_llm.server.desk import Desk
from reso_llm.server.errors import ApiError, refuse
from reso_llm.session.episodes import Moment
from reso_llm.tour.stations import STATIONS
from run_core.terminal import encodable

CONTROLLERS = {
    "srb": (
        "Semantic resonance budget",
        "Ends a reply at a finished sentence, sooner in a loop or beyond its budget.",
    ),
    "phase_slip": ("Phase-Slip", "Takes a repeat back, and goes on from its least sure token."),
    "stochastic_resonance": (
        "Stochastic resonance",
        "Noise on the logits while the text repeats itself.",
    ),
    "stability_temperature": (
        "Stability temperature",
        "Cools a text that falls apart, and warms one that loops.",
    ),
}
"""Title and purpose of each controller."""
MAX_TEXT = 4000
"""Characters of a text to remember or of a question."""


class Mind:
    """The model of a desk, and its memory."""

    def __init__(self, desk: Desk, name: str) -> None:
        self.desk, self.name = desk, name
        self.model = {
            "id": name, "object": "model", "created": int(time.time()), "owned_by": "reso",
        }  # fmt: skip

    def check_model(self, name: str | None) -> None:
        """ApiError 404 for the name of another model."""
        if name not in (None, self.name):
            raise ApiError(404, f"model {name[:80]!r} is not here: this is {self.name!r}", "model")

    @property
    def about(self) -> dict[str, Any]:
        """The model and what can be switched."""
        engine = self.desk.engine
        stations = {s.stage: s for s in STATIONS.values() if s.stage}
        num_open, num_waiting = self.desk.load
        return {
            "model": self.name,
            "description": engine.description,
            "context_length": engine.context_length,
            "num_layers": engine.num_layers,
            "max_entropy_nats": math.log(engine.vocab_size),
            "stages": [
                {"name": name, "title": stations[name].title, "purpose": stations[name].purpose}
                for name in self.desk.variants.stages
                if name in stations
            ],
            "controllers": self._controllers(),
            "has_goals": engine.session.agency is not None,
            "has_memory": engine.session.episodes is not None,
            "defaults": SAMPLING | {"max_tokens": DEFAULT_TOKENS},
            "limits": {"max_tokens": MAX_TOKENS},
            "writing": num_open,
            "waiting": num_waiting,
        }

    def _controllers(self) -> list[dict[str, Any]]:
        """The controllers that the model can have; is_on: it acts where nobody says otherwise."""
        engine, stability = self.desk.engine, self.desk.engine.session.config.stability
        calibrated = engine.stability_calibration is not None
        automatic = GenerationOptions().followed_by(stability).controllers if calibrated else ()
        on = {controller.name for controller in automatic}
        return [
            {"name": name, "title": title, "purpose": purpose, "is_on": name in on}
            for name, (title, purpose) in CONTROLLERS.items()
            if stability.enabled or name != "stability_temperature"
        ]

    async def memories(self) -> dict[str, Any]:
        """All stored texts, the newest first."""
        return await self._called(self._memories)

    async def remember(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Store a text; the answer is all of them."""
        text, importance = _text(body, "text"), body.get("importance", 1.0)
        positive = is_number(importance) and importance >= 0
        refuse(positive, "importance", "a number of at least 0")

        def store() -> dict[str, Any]:
            self.desk.engine.update_memory(text, float(importance))
            return self._memories()

        return await self._called(store)

    async def recall(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The stored texts that a question reaches, the best first."""
        query = _text(body, "query")

        def found() -> dict[str, Any]:
            return {
                "found": [
                    self._moment(r.moment) | {"resonance": r.resonance}
                    for r in self.desk.engine.recall(query)
                ]
            }

        return await self._called(found)

    async def _called(self, function: Callable[[], Any]) -> Any:
        try:
            return await asyncio.wrap_future(self.desk.call(function))
        except ValueError as error:
            raise ApiError(400, str(error)) from None

    def _memories(self) -> dict[str, Any]:
        session = self.desk.engine.session
        moments = () if session.episodes is None else session.episodes.moments
        return {"clock": session.clock, "memories": [self._moment(m) for m in reversed(moments)]}

    def _moment(self, moment: Moment) -> dict[str, Any]:
        """A stored text; time and age count texts written by the model."""
        session = self.desk.engine.session
        return {
            "text": moment.text,
            "time": moment.time,
            "age": session.clock - moment.time,
            "importance": moment.importance,
            "weight": session.episodes.weight(moment, session.clock),
        }


def _text(body: Mapping[str, Any], name: str) -> str:
    """A text of a body, made encodable."""
    text = body.get(name)
    fits = isinstance(text, str) and text.strip() and len(text) <= MAX_TEXT
    refuse(bool(fits), name, f"a text of at most {MAX_TEXT:,} characters")
    return encodable(text)
