"""Does a model answer with what it was told?

    python -m benchmarks.studies.told [--checkpoint DIR | --model DIR] [--facts 60] [--seeds 0 1 2]
        [--said]

All facts of `benchmarks/kit/told.py` are stored in one session. Each is asked for in three ways, of
which no training text holds the third, as the first turn of a chat, with the chat's sampling, and
sixty other questions are asked beside them. The clock stands still: every fact was told just now.

    answered  share of the replies that hold the fact's answer, by phrasing
    verbatim  share of these that say the stored text word for word
    left alone  share of the replies to other questions that mention no fact: none holds a fact's
              answer and another word of it that the question does not hold
    without   answered without one part: the system message, or the echo

With --said nothing is stored: a fact is the first message of a chat, the model replies, and the
question comes next. The other questions come after one fact each, and `unaided` is the chat in
which nothing but the model's context knows what was said.

A seed and the question draw the tokens. Intervals are 95 % bootstrap percentiles over facts or
questions, each with all its seeds. Rows go to results/told.jsonl, those of --said to
results/said.jsonl.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from itertools import cycle
from statistics import fmean
from typing import Any

from tqdm import tqdm

from benchmarks.kit.heldout import checkpoint_name
from benchmarks.kit.records import write_row
from benchmarks.kit.statistics import mean_of
from benchmarks.kit.tables import shown, table
from benchmarks.kit.told import OTHER_QUESTIONS, Fact, facts, holds
from reso_llm.chat.session import SAMPLING
from reso_llm.generation.text_engine import TextEngine
from reso_llm.hf.engine import HFEngine
from reso_llm.inference import ResoLLMInference
from reso_llm.session.session import Session
from reso_llm.session.words import content_words, words

MAX_LENGTH = 48
CONDITIONS = {
    "answered": "told", "without_context": "without the context",
    "without_echo": "without the echo", "untold": "not told", "unaided": "unaided",
}  # fmt: skip
PHRASINGS = ("familiar", "familiar, other", "unseen")


def tell(engine: TextEngine, told: Sequence[Fact]) -> None:
    """A new session that knows nothing but the facts."""
    engine.session = Session(engine.session.config)
    for fact in told:
        engine.update_memory(fact.text)


def ask(
    engine: TextEngine, question: str, seed: int, before: Sequence[tuple[str, str]] = ()
) -> str:
    """The reply to a question after these messages, at the time when the facts were told.

    Every question draws from a stream of its own: replies often differ by their first word alone.
    """
    engine.session.clock = 0.0
    stream = random.Random(f"{seed} {question}").getrandbits(31)
    options = SAMPLING | {"seed": stream, "metrics": False}
    return engine.generate([*before, ("user", question)], MAX_LENGTH, **options).text


def said(engine: TextEngine, fact: Fact, seed: int) -> list[tuple[str, str]]:
    """The first two messages of a chat: a fact, and the model's reply."""
    return [("user", fact.text), ("assistant", ask(engine, fact.text, seed))]


def nothing_before(engine: TextEngine, fact: Fact, seed: int) -> list[tuple[str, str]]:
    """No message: the question is the first."""
    return []


Before = Callable[[TextEngine, Fact, int], list[tuple[str, str]]]


def mentions(reply: str, fact: Fact, question: str) -> bool:
    """Whether a reply has a fact's answer and another word of it that the question has not."""
    others = {*content_words(fact.text)} - {fact.answer.lower(), *content_words(question)}
    return holds(reply, fact.answer) and not others.isdisjoint(content_words(reply))


def is_verbatim(reply: str, text: str) -> bool:
    """Whether a reply says the text word for word."""
    return " ".join(words(text)) in " ".join(words(reply))


def answered(
    engine: TextEngine,
    told: Sequence[Fact],
    seeds: Sequence[int],
    progress: str,
    before: Before = nothing_before,
) -> dict[str, Any]:
    """Shares of answers by phrasing and over all, and of those that are the text word for word."""
    hits: dict[str, list[float]] = {name: [] for name in PHRASINGS}
    verbatim: list[float] = []
    for fact in tqdm(told, desc=progress, leave=False, disable=None):
        messages = [before(engine, fact, seed) for seed in seeds]
        for name, question in zip(PHRASINGS, fact.questions, strict=True):
            replies = [ask(engine, question, *chat) for chat in zip(seeds, messages, strict=True)]
            right = [reply for reply in replies if holds(reply, fact.answer)]
            hits[name].append(len(right) / len(replies))
            verbatim += [float(is_verbatim(reply, fact.text)) for reply in right]
    of_facts = [fmean(shares) for shares in zip(*hits.values(), strict=True)]
    return {
        "all": mean_of(of_facts),
        "verbatim": mean_of(verbatim) if verbatim else None,
        **{name: mean_of(shares) for name, shares in hits.items()},
    }


def left_alone(
    engine: TextEngine,
    told: Sequence[Fact],
    seeds: Sequence[int],
    before: Before = nothing_before,
) -> list[float]:
    """Share of the replies to other questions that mention no fact."""
    shares = []
    asked = tqdm(OTHER_QUESTIONS, desc="other questions", leave=False, disable=None)
    for question, fact in zip(asked, cycle(told), strict=False):
        replies = [ask(engine, question, seed, before(engine, fact, seed)) for seed in seeds]
        named = [any(mentions(reply, fact, question) for fact in told) for reply in replies]
        shares.append(1 - fmean(named))
    return mean_of(shares)


@contextmanager
def without(engine: TextEngine, *parts: str):
    """The engine without the system message ("context") or the echo ("echo") of memory."""
    full: Callable = engine.memories_of
    emptied = {{"context": "told", "echo": "echo"}[part]: () for part in parts}
    engine.memories_of = lambda prompt: full(prompt)._replace(**emptied)
    try:
        yield
    finally:
        del engine.memories_of


def measured(engine: TextEngine, told: Sequence[Fact], seeds: Sequence[int]) -> dict[str, Any]:
    """The values of a row."""
    tell(engine, told)
    row: dict[str, Any] = {"answered": answered(engine, told, seeds, "facts")}
    row["left_alone"] = left_alone(engine, told, seeds)
    for part in ("context", "echo"):
        with without(engine, part):
            row[f"without_{part}"] = answered(engine, told, seeds[:1], f"without {part}")
    engine.session = Session(engine.session.config)
    row["untold"] = answered(engine, told, seeds[:1], "untold")
    return row


def measured_said(
    engine: TextEngine, facts: Sequence[Fact], seeds: Sequence[int]
) -> dict[str, Any]:
    """The values of a row of --said."""
    row: dict[str, Any] = {"answered": answered(engine, facts, seeds, "said", said)}
    row["left_alone"] = left_alone(engine, facts, seeds, said)
    with without(engine, "context", "echo"):
        row["unaided"] = answered(engine, facts, seeds, "unaided", said)
        row["unaided_left_alone"] = left_alone(engine, facts, seeds, said)
    return row


def text(row: dict[str, Any]) -> str:
    """A row in markdown."""
    conditions = [(name, row[key]) for key, name in CONDITIONS.items() if key in row]
    columns = ("all", *PHRASINGS, "verbatim")
    lines = [
        [name, *(shown(values[c], 2) if values[c] else "-" for c in columns)]
        for name, values in conditions
    ]
    head = (f"{row['model']}, {row['facts']} facts", *columns)
    alone = f"Other questions that are left alone: {shown(row['left_alone'], 3)}"
    if "unaided_left_alone" in row:
        alone += f", unaided {shown(row['unaided_left_alone'], 3)}"
    return f"{table(head, lines)}\n\n{alone}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="run or checkpoint; default: the shipped model")
    parser.add_argument("--model", help="a model of transformers: directory, hub name or smollm2")
    parser.add_argument("--facts", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--said", action="store_true", help="facts are said in the chat itself")
    options = parser.parse_args()
    if not 1 <= options.facts <= 60:
        parser.error(f"--facts {options.facts}: expected 1 to 60")
    if options.model:
        engine: TextEngine = HFEngine.from_pretrained(options.model)
        name = engine.name
    else:
        engine = ResoLLMInference.from_pretrained(options.checkpoint)
        name = checkpoint_name(options.checkpoint)
    told = list(facts())[: options.facts]
    row = {"model": name, "facts": len(told), "seeds": options.seeds}
    row |= (measured_said if options.said else measured)(engine, told, options.seeds)
    print(text(row), flush=True)
    write_row("said" if options.said else "told", row)


if __name__ == "__main__":
    main()
