"""Is the model worth talking to: first replies and chats of three turns, as `chat.py` writes them.

    long        share of replies of more than 4 tokens
    finished    share that ends as a sentence does
    non-word    share that holds a word that neither the training text nor the chat has
    rep-4       4-grams of tokens that stood before in the reply / 4-grams, mean over replies
    commonest   how many of the first questions the commonest reply answers
    told        of the chats that tell a name and ask for it, the share whose reply has it
    bits_per_byte  of text that neither the model nor its tokenizer has seen; stateful protocol

Questions are those of `benchmarks/kit/first_questions.py`, options those of `chat.py` (T .7), and
no reply is made longer than the model makes it. Each seed answers all questions. A word is letters,
and is known if it occurs twice in the training text (--train). Intervals: over questions and
chats, 95 % bootstrap percentiles, mean of the seeds.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.kit import heldout
from benchmarks.kit.facts import forget
from benchmarks.kit.figures import BLUE, GREY, error_bars, new_figure
from benchmarks.kit.first_questions import CHATS, FIRST
from benchmarks.kit.records import Records, Row, grouped, weights_hash
from benchmarks.kit.statistics import mean_interval, mean_of
from benchmarks.kit.tables import shown, table
from benchmarks.tasks.phase_slip.measures import repeated_grams
from reso_llm.chat.session import ChatSession
from reso_llm.data.sources import read_documents
from reso_llm.decoding.draft import FINISHED
from reso_llm.inference import SHIPPED, ResoLLMInference
from run_core.run import resolve

BARS = {
    "long": (">=", 0.90), "finished": (">=", 0.95), "non-word": ("<=", 0.02), "rep-4": ("<=", 0.02),
    "commonest": ("<=", 3), "bits_per_byte": ("<=", 1.70),
}  # fmt: skip
SHARES = ("long", "finished", "non-word", "rep-4")
LETTERS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
TOLD = {
    "What is my name again?": "Mirko", "Do you still know what my cat is called?": "Minka",
    "So where did I leave my car?": "Rose Lane", "So where is Edda at home?": "Malmo",
}  # fmt: skip
QUICK_CHATS = 3


class Said(NamedTuple):
    """A reply, its tokens without the end, and all that the user said before it."""

    text: str
    ids: tuple[int, ...]
    asked: tuple[str, ...]


def chats_of(
    engine: ResoLLMInference, chats: Sequence[Sequence[str]], seed: int
) -> list[list[Said]]:
    """The replies to each chat's turns; chat i draws from seed * 1000 + 3 i on."""
    end, replies = engine.tokenizer.end_id, []
    for index, turns in enumerate(tqdm(chats, desc="chats", leave=False, disable=None)):
        forget(engine.model)
        chat, said = ChatSession(engine, seed=seed * 1000 + 3 * index), []
        for number, turn in enumerate(turns, start=1):
            result = chat.reply(turn, lambda piece: None, metrics=False).result
            ids = tuple(i for i in result.token_ids if i != end)
            said.append(Said(result.text, ids, tuple(turns[:number])))
        replies.append(said)
    return replies


def words(text: str) -> Iterator[str]:
    return (word.lower() for word in LETTERS.findall(text))


def known_words(data: str) -> set[str]:
    """Words that occur at least twice in a text."""
    counts = Counter(
        word
        for document in read_documents(data)
        for message in document.messages
        for word in words(message.content)
    )
    return {word for word, count in counts.items() if count >= 2}


def scores(said: Said, known: set[str]) -> dict[str, float]:
    """The shares of one reply."""
    again, grams = repeated_grams(said.ids, 4)
    spoken = known.union(*map(words, said.asked))
    return {
        "long": len(said.ids) > 4,
        "finished": bool(FINISHED.search(said.text.rstrip())),
        "non-word": any(word not in spoken for word in words(said.text)),
        "rep-4": again / max(1, grams),
    }


# --- the task


def add_options(parser: Any) -> None:
    heldout.add_checkpoint_option(parser)
    heldout.add_data_option(parser)
    parser.add_argument(
        "--train", type=str, help="text the model was trained on; with --quick: sample"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def run(options: Any) -> list[Row]:
    """One row for each seed. ValueError where --data or --train is missing."""
    data, train = heldout.data_of(options), options.train or ("sample" if options.quick else None)
    if train is None:
        raise ValueError("--train FILE is missing: expected the text the model was trained on")
    engine = ResoLLMInference.from_pretrained(options.checkpoint)
    known = known_words(train)
    split, sizes = heldout.held_out(data, engine.tokenizer, 2 if options.quick else None)
    bits = heldout.document_scores(engine.model, split, sizes).bits_per_byte
    records = Records("talk", options.record)
    first, chats = FIRST, CHATS
    if options.quick:
        first, chats = FIRST[:QUICK_CHATS], CHATS[:QUICK_CHATS]
    names = heldout.names_of(options.checkpoint, data)
    names["weights"] = weights_hash(resolve(options.checkpoint or SHIPPED))
    rows = []
    for seed in options.seeds[:1] if options.quick else options.seeds:
        key = {**names, "train": heldout.data_name(train), "seed": seed}
        rows.append(records.row(key, lambda seed=seed: {
            "bits_per_byte": bits, **measured(engine, known, first, chats, seed)
        }))  # fmt: skip
    return rows


def measured(
    engine: ResoLLMInference,
    known: set[str],
    first: Sequence[str],
    chats: Sequence[Sequence[str]],
    seed: int,
) -> dict[str, Any]:
    """The scores of a seed, and its first replies."""
    firsts = [said for (said,) in chats_of(engine, [(question,) for question in first], seed)]
    spoken = chats_of(engine, chats, seed)
    per_chat = [[said] for said in firsts] + spoken
    values = [[scores(said, known) for said in some] for some in per_chat]
    asked = [said for some in spoken for said in some if said.asked[-1] in TOLD]
    row = {
        name: mean_of([sum(one[name] for one in some) / len(some) for some in values])
        for name in SHARES
    }
    return row | {
        "commonest": max(Counter(said.text.strip() for said in firsts).values()),
        "told": [TOLD[said.asked[-1]] in said.text for said in asked],
        "replies": [said.text for said in firsts],
    }


def value_of(rows: Sequence[Row], name: str) -> float:
    """The mean of a measure over the seeds; of `commonest` the largest."""
    if name in SHARES:
        return mean_interval([row[name] for row in rows])[0]
    return max(row[name] for row in rows)


def met(value: float, sign: str, bar: float) -> bool:
    return value >= bar if sign == ">=" else value <= bar


def missed(rows: Sequence[Row]) -> list[str]:
    """The bars that a model's rows miss."""
    return [name for name, bar in BARS.items() if not met(value_of(rows, name), *bar)]


def text(rows: Sequence[Row]) -> str:
    """A table for each checkpoint."""
    groups = grouped(rows, "checkpoint", "data", "weights")
    return "\n\n".join(_table(name, data, some) for (name, data, _), some in groups.items())


def _table(name: str, data: str, rows: Sequence[Row]) -> str:
    lines = []
    for measure, (sign, bar) in BARS.items():
        value = value_of(rows, measure)
        cell = f"{value:.4g}"
        if measure in SHARES:
            cell = shown(mean_interval([row[measure] for row in rows]))
        verdict = "yes" if met(value, sign, bar) else "no"
        lines.append([measure, cell, f"{sign} {bar:g}", verdict])
    told = [hit for row in rows for hit in row["told"]]
    lines.append(["told", f"{sum(told)} of {len(told)}", "", ""])
    seeds = ", ".join(str(row["seed"]) for row in rows)
    title = f"**{name}**, bits per byte of {data}, seeds {seeds}"
    return f"{title}\n\n" + table(("", "value", "bar", "met"), lines)


def figure(rows: Sequence[Row]) -> Any:
    """The shares of the first checkpoint's replies, each with its bar."""
    (name, _), some = next(iter(grouped(rows, "checkpoint", "data").items()))
    drawn = new_figure(6, 3.6)
    axes = drawn.subplots()
    middle, bars = error_bars([mean_interval([row[n] for row in some]) for n in SHARES])
    axes.bar(range(len(SHARES)), middle, yerr=bars, capsize=3, color=BLUE)
    for place, measure in enumerate(SHARES):
        axes.hlines(BARS[measure][1], place - 0.45, place + 0.45, color=GREY)
    axes.set_xticks(range(len(SHARES)), SHARES)
    axes.set(ylabel="share of replies; grey: bar", ylim=(0, 1.05), title=name)
    return drawn
