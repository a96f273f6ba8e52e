"""How much may a model's own words count in the echo before it repeats itself?

python -m benchmarks.studies.own_words --data data/heldout.jsonl [--checkpoint RUN]
python -m benchmarks.studies.own_words table

Replies of 100 tokens (what would end one is taken out) to the first user turns of held-out
conversations, drawn at two temperatures: without the echo, and with it, the model's own words
counting from 0 to 1 (`EchoConfig.own_weight`). rep-4 is the share of a reply's 4-grams that stood
in it before. Prompts and seeds are the same for all; a difference to the replies without the echo
is paired by prompt, its interval 95 % bootstrap percentiles over prompts. One row a weight and
temperature in results/own_words.jsonl.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.kit.records import current_rows, grouped, newest, write_row
from benchmarks.kit.statistics import mean_of
from benchmarks.kit.tables import shown, table
from benchmarks.kit.writers import ResoWriter
from benchmarks.tasks.phase_slip.measures import repeated_grams
from reso_llm.data.sources import read_documents
from reso_llm.tour.probes import without

WEIGHTS = (0.0, 0.25, 0.5, 1.0)
TEMPERATURES = (0.7, 0.8)
PROMPTS, NEW_TOKENS = 60, 100


def prompts_of(data: str, writer: ResoWriter) -> list[list[tuple[str, str]]]:
    """The first user turns that leave room for a reply, each a chat of one message."""
    chats = []
    for document in read_documents(data):
        turns = [message for message in document.messages if message.role == "user"]
        chat = [("user", turns[0].content)] if turns else []
        if chat and len(writer.prompt_ids(chat)) + NEW_TOKENS <= writer.context:
            chats.append(chat)
    return chats[:PROMPTS]


def rep4(writer: ResoWriter, prompts: Sequence[list], temperature: float) -> np.ndarray:
    """rep-4 (N,) of one reply to each prompt."""
    texts = writer.write(prompts, range(len(prompts)), {"temperature": temperature}, NEW_TOKENS)
    counts = [repeated_grams(text.ids, 4) for text in texts]
    return np.array([again / grams for again, grams in counts])


def run(data: str, checkpoint: str | None) -> None:
    """Write the rows, the one without the echo first."""
    writer = ResoWriter(checkpoint)
    prompts, heard = prompts_of(data, writer), writer.engine.model
    silent = without(heard, "echo")
    for temperature in TEMPERATURES:
        writer.engine.model = silent
        plain = rep4(writer, prompts, temperature)
        writer.engine.model = heard
        for weight in (None, *WEIGHTS):
            values = plain
            if weight is not None:
                heard.echo.own_weight = weight
                values = rep4(writer, prompts, temperature)
            row = {
                "checkpoint": writer.name, "weights": writer.weights, "temperature": temperature,
                "own_weight": weight, "prompts": len(prompts), "rep-4": mean_of(values),
                "more": mean_of(values - plain),
            }  # fmt: skip
            write_row("own_words", row)
            print(row, flush=True)


def text() -> str:
    """Markdown: rep-4 at each weight, and what is more than without the echo."""
    rows = newest(current_rows("own_words"), "temperature", "own_weight")
    lines = [
        [
            f"{row['temperature']:g}",
            "no echo" if row["own_weight"] is None else f"{row['own_weight']:g}",
            shown(row["rep-4"]), shown(row["more"]),
        ]
        for some in grouped(rows, "temperature").values()
        for row in some
    ]  # fmt: skip
    return table(("T", "own words count", "rep-4", "more than without the echo"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--data", help="held-out conversations")
    parser.add_argument("--checkpoint", help="a run or checkpoint; default: the shipped one")
    options = parser.parse_args()
    if options.command == "table":
        print(text())
        return
    if options.data is None:
        parser.error("--data is needed")
    run(options.data, options.checkpoint)


if __name__ == "__main__":
    main()
