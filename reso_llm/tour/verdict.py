"""The tour's first line: how many mechanisms change one reply, and which do not."""

from collections.abc import Iterator

from reso_llm.decoding.controllers import (
    SRB,
    Controller,
    PhaseSlip,
    StabilityTemperature,
    StochasticResonance,
)
from reso_llm.generation.engine import Engine
from reso_llm.generation.text_engine import TextEngine
from reso_llm.tour.any_model import asked, fresh_session
from reso_llm.tour.probes import DIALOGUES, without

ASKED = DIALOGUES[0]
STORED = f"Your weekend: {ASKED.reply}"
"""A text that ASKED asks for."""
LENGTH, TEMPERATURE = 48, 0.7
CONTROLLERS = (
    PhaseSlip.published(loop_patience=4), SRB(max_tokens=LENGTH // 2), StochasticResonance(),
    StabilityTemperature(),
)  # fmt: skip
NOT_A_STAGE = {"agency"}
"""Stages that are silent without a goal: `goal` stands for them."""


def verdict(engine: TextEngine, seed: int) -> str:
    """A sentence that counts the mechanisms that change the reply to ASKED, drawn from a seed."""
    with fresh_session(engine):
        plain = _reply(engine, seed)
        changes = {name: text != plain for name, text in _switched(engine, seed)}
    idle = [name for name, changed in changes.items() if not changed]
    rest = f"; these do not: {', '.join(idle)}" if idle else ""
    return (
        f"{len(changes) - len(idle)} of {len(changes)} mechanisms change the reply to "
        f"{ASKED.question!r} (temperature {TEMPERATURE}, seed {seed}){rest}"
    )


def _reply(engine: TextEngine, seed: int, *controllers: Controller) -> str:
    given = {"temperature": TEMPERATURE, "controllers": controllers}
    return engine.generate(asked(ASKED.question), LENGTH, seed=seed, **given).text


def _switched(engine: TextEngine, seed: int) -> Iterator[tuple[str, str]]:
    """Name of each mechanism, and the reply without this stage, or with what is off by default."""
    if isinstance(engine, Engine):
        for stage in engine.model.stages():
            if stage not in NOT_A_STAGE:
                changed = Engine(without(engine.model, stage), engine.tokenizer, engine.config)
                yield stage, _reply(changed, seed)
    if engine.session.agency is not None:
        prompt, given = asked(ASKED.question), {"temperature": TEMPERATURE, "seed": seed}
        yield "goal", engine.generate_with_goal(prompt, ASKED.topic, LENGTH, **given).text
    for controller in CONTROLLERS:
        if engine.session.stability is not None or not isinstance(controller, StabilityTemperature):
            yield controller.name, _reply(engine, seed, controller)
    if engine.session.episodes is not None:
        engine.update_memory(STORED)
        yield "memory", _reply(engine, seed)
