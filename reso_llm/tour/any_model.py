"""Stations of the tour that any engine has: they compare what it says, with and without.

Questions and topics are those of `probes.DIALOGUES`. Nothing of the engine's session is changed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from reso_llm.data.conversation import Message
from reso_llm.generation.engine import Engine
from reso_llm.generation.results import GenerationResult
from reso_llm.generation.text_engine import TextEngine
from reso_llm.session.session import Session
from reso_llm.tour.measurements import Finding, measure_goals
from reso_llm.tour.probes import DIALOGUES
from run_core.terminal import finite_mean

LENGTH = 32
"""Tokens of a reply, at most."""
FACTS = (
    ("My sister Olga lives in Oslo.", "Where does my sister Olga live?", "Oslo"),
    ("The blue ledger is in Torvik.", "Where is the blue ledger?", "Torvik"),
    ("My dog is called Baroque.", "What is my dog called?", "Baroque"),
)
"""What is told, what is asked, and the word that answers it."""
TEMPERATURES = (0.7, 3.0)


def asked(question: str) -> list[Message]:
    """A question as a prompt."""
    return [Message("user", question)]


def reply(engine: TextEngine, question: str) -> GenerationResult:
    """The greedy reply to a question."""
    return engine.generate(asked(question), LENGTH, temperature=0.0, seed=0)


@contextmanager
def fresh_session(engine: TextEngine) -> Iterator[None]:
    """Meanwhile the engine has a new session."""
    before = engine.session
    engine.session = Session(before.config)
    try:
        yield
    finally:
        engine.session = before


def say_towards_goals(engine: TextEngine, seed: int) -> Finding:
    """Words of the topics in greedy replies, without a goal and with the topic as the goal."""
    shown, words = [], {"without": 0, "with": 0}
    for dialogue in DIALOGUES:
        with fresh_session(engine):
            plain = reply(engine, dialogue.question)
            prompt, given = asked(dialogue.question), {"temperature": 0.0, "seed": 0}
            aimed = engine.generate_with_goal(prompt, dialogue.topic, LENGTH, **given)
        words["without"] += _words_of(dialogue.topic, plain.text)
        words["with"] += _words_of(dialogue.topic, aimed.text)
        shown += [
            f"{dialogue.question} ({dialogue.topic}): {_first(aimed.text)}",
            f"  without: {_first(plain.text)}",
            f"  {aimed.attention_sentence}",
        ]
    lines = [
        f"words of the goals in {len(DIALOGUES)} greedy replies: {words['without']} without, "
        f"{words['with']} with; the first:",
        *(f"  {line}" for line in shown[:6]),
    ]
    return Finding(lines, numbers={name: float(count) for name, count in words.items()})


def measure_and_say_goals(engine: Engine, seed: int) -> Finding:
    """What goals are worth to given replies of a ResoLLM, and what it says towards them."""
    measured, said = measure_goals(engine, seed), say_towards_goals(engine, seed)
    return replace(measured, lines=[*measured.lines, *said.lines], numbers=said.numbers)


def say_what_was_told(engine: TextEngine, seed: int) -> Finding:
    """How many of FACTS the greedy replies name, before they are told and after."""
    lines, named = [], {"before": 0, "after": 0}
    for fact, question, answer in FACTS:
        with fresh_session(engine):
            before = reply(engine, question).text
            engine.update_memory(fact)
            after = reply(engine, question).text
        named["before"] += answer in before
        named["after"] += answer in after
        lines.append(f"  told {fact!r}, asked {question!r}: {_first(after)}")
    counts = f"{named['before']} of {len(FACTS)} before it was told, {named['after']} after"
    return Finding(
        [f"replies that name it: {counts}", *lines],
        numbers={name: float(n) for name, n in named.items()},
    )


def read_own_texts(engine: TextEngine, seed: int) -> Finding:
    """The monitor on replies at a usual temperature and at one that damages them."""
    lines, numbers = [], {}
    for temperature in TEMPERATURES:
        with fresh_session(engine):
            results = [
                engine.generate(asked(d.question), LENGTH, temperature=temperature, seed=seed + i)
                for i, d in enumerate(DIALOGUES)
            ]
        classes = sorted({result.stability for result in results})
        alarmed = sum(bool(result.warnings) for result in results)
        doubt = finite_mean([h for result in results for h in result.entropy_trace])
        lines.append(
            f"temperature {temperature:g}: {', '.join(classes)}; {alarmed} of {len(results)} "
            f"replies warned; mean entropy {doubt:.2f} nats"
        )
        numbers[f"warned at {temperature:g}"] = float(alarmed)
    return Finding(lines, numbers=numbers)


def _words_of(topic: str, text: str) -> int:
    """How many of a topic's words, of more than three letters, a text has."""
    said = set(re.findall(r"\w+", text.lower()))
    return sum(word in said for word in set(re.findall(r"\w{4,}", topic.lower())))


def _first(text: str) -> str:
    return repr(" ".join(text.split())[:70])
