"""The stations of the guided tour: their order, their titles, and the visit of one."""

from collections.abc import Callable
from typing import NamedTuple

from reso_llm.config import STAGES
from reso_llm.generation.engine import Engine
from reso_llm.generation.text_engine import TextEngine
from reso_llm.tour import any_model, greedy, measurements
from reso_llm.tour.measurements import Finding


class Station(NamedTuple):
    """One station of the tour.

    title, purpose: its heading, and what to look for. stage: the stage that it shows, "" for what
    every model has. measure: from an engine and a seed; None measures the bits the stage saves.
    """

    title: str
    purpose: str
    stage: str = ""
    measure: Callable[[TextEngine, int], Finding] | None = None


STATIONS = {
    "primes": Station(
        "Tokens are primes",
        "Token i is the i-th prime: a bag of tokens is one number, and its factors are the tokens.",
        "prime_embedding",
        measurements.measure_primes,
    ),
    "bindings": Station(
        "Binding memory",
        "It counts what followed the same last tokens in the training text, addressed by primes.",
        "prsc",
        measurements.measure_bindings,
    ),
    "synchrony": Station(
        "Kuramoto synchronisation",
        "Tokens carry phases; the order parameter says how far those of the past agree (0 to 1).",
        "kuramoto",
        measurements.measure_synchrony,
    ),
    "depth": Station(
        "Coherence gate",
        "Only tokens that the binding memory is in doubt about go past the first layer.",
        "coherence_gate",
        measurements.measure_depth,
    ),
    "goals": Station(
        "Agency: goals",
        "A goal guides what is said; the right one should make the reply more probable.",
        "agency",
        any_model.measure_and_say_goals,
    ),
    "field": Station(
        "Sedenion field",
        "The sedenion field carries what attention may no longer see; here, within the context.",
        "temporal_smf",
    ),
    "memory": Station(
        "Echo of what was read and told",
        "What was read or told before is expected to come again, word for word.",
        "echo",
        measurements.measure_memory,
    ),
    "stability": Station(
        "Stability monitor",
        "The monitor should be calm on clean text, and warn where it loops or falls apart.",
        "stability",
        measurements.measure_stability,
    ),
    "control": Station(
        "Decoding controllers",
        "A slip takes a repeat of greedy text back and draws it anew; SRB ends the text.",
        measure=greedy.measure_control,
    ),
}


ANY_MODEL = {
    "goals": STATIONS["goals"]._replace(measure=any_model.say_towards_goals),
    "memory": STATIONS["memory"]._replace(measure=any_model.say_what_was_told),
    "stability": STATIONS["stability"]._replace(measure=any_model.read_own_texts),
    "control": STATIONS["control"],
}
"""The stations of a model that is not a ResoLLM."""


def stations_of(engine: TextEngine) -> dict[str, Station]:
    """The stations of a tour of this engine's model.

    Those of a ResoLLM are its stages in the order of STAGES, then the others. A stage of the
    network that none of STATIONS shows gets a station that measures what it saves.
    """
    if not isinstance(engine, Engine):
        return ANY_MODEL
    ordered = {}
    for stage in STAGES:
        own = {name: station for name, station in STATIONS.items() if station.stage == stage}
        if not own and stage in engine.model.stages():
            title = stage.replace("_", " ").capitalize()
            own = {stage: Station(title, "What the stage saves on unseen talk.", stage)}
        ordered |= own
    return ordered | {name: station for name, station in STATIONS.items() if not station.stage}


def visit(engine: TextEngine, station: Station, seed: int) -> Finding:
    """Measure a station; for a stage that the model lacks, the finding says so."""
    is_ours = isinstance(engine, Engine)
    if is_ours and station.stage and not getattr(engine.config, station.stage).enabled:
        return Finding([f"this model was trained without it ({station.stage}.enabled=false)"])
    if station.measure is None:
        return measurements.measure_saving(engine, station.stage)
    return station.measure(engine, seed)
