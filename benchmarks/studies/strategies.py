"""Do the texts of two agents repeat less, or hold more different pairs of words, than one's?

python -m benchmarks.studies.strategies --checkpoints RUN RUN ... --data HELDOUT.jsonl

The first agent with each of the others, at T .8: the first questions of held-out conversations,
each answered in as many tokens by

    single      one agent, for each of the two; the others are compared with their mean
    sequential  half by the first, half by the second, who goes on from it
    parallel    half by each, read one after the other
    consensus   all by both (twice the passes)

What would end a text is taken out, so all have the same length. rep-4 is the share of 4-grams of
tokens that stood before in the text, distinct-2 the different pairs / pairs. A draw's seed is the
number of its prompt and pair. Intervals are 95 % bootstrap percentiles over prompts, whose pairs of
agents are averaged. Rows go to results/strategies.jsonl. Sources: Welleck 2019 (arXiv 1908.04319);
Li 2016 (arXiv 1510.03055). How likely the texts of people are to each: `studies.consensus`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.kit.records import write_row
from benchmarks.kit.statistics import mean_of
from benchmarks.kit.tables import shown, table
from benchmarks.tasks.phase_slip.measures import repeated_grams
from reso_llm.data.prepare import read_documents
from reso_llm.generation.loop import Job
from reso_llm.inference import ResoLLMInference
from run_core.hardware import keep_freed_memory

STRATEGIES = ("sequential", "parallel", "consensus")
MEASURES = ("rep-4", "distinct-2")


class Endless(ResoLLMInference):
    """An engine whose texts end by their length alone."""

    def start(self, *args: Any, **options: Any) -> Job:
        """A job that may not write what ends a text."""
        job = super().start(*args, **options)
        job.context.forbidden = torch.cat((job.context.forbidden, job.context.ends))
        return job


def questions(spec: str, count: int) -> list[str]:
    """The first words of a user in each conversation, at most `count`; 200 characters of each."""
    said = (d.messages[0].content for d in read_documents(spec) if d.messages)
    return [text[:200] for _, text in zip(range(count), said, strict=False)]


def texts(pair: Sequence[Endless], question: str, tokens: int, seed: int) -> dict[str, list[int]]:
    """Ids of `tokens` tokens by each way; the singles are "single 0" and "single 1"."""
    first, second = pair
    prompt, options = [("user", question)], {"seed": seed, "metrics": False}
    found = {
        f"single {i}": [*agent.generate(prompt, tokens, **options).token_ids]
        for i, agent in enumerate(pair)
    }
    for way in STRATEGIES:
        length = tokens if way == "consensus" else tokens // 2
        results = first.generate_multi_agent(prompt, [second], way, length, **options)
        kept = results[:1] if way == "consensus" else results
        found[way] = [token for result in kept for token in result.token_ids]
    return found


def measured(ids: Sequence[int]) -> tuple[float, float]:
    """rep-4 and distinct-2 of a text of at least four tokens."""
    (again4, grams), (again2, pairs) = repeated_grams(ids, 4), repeated_grams(ids, 2)
    return again4 / grams, 1 - again2 / pairs


def compare(values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row for each way, of values (P,2): both measures, and their change from one agent's."""
    single = (values["single 0"] + values["single 1"]) / 2
    rows = []
    for way, found in {"single": single, **{way: values[way] for way in STRATEGIES}}.items():
        row: dict[str, Any] = {"way": way}
        for i, name in enumerate(MEASURES):
            row[name] = mean_of(found[:, i])
            row[f"{name} - single"] = mean_of(found[:, i] - single[:, i])
        rows.append(row)
    return rows


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in markdown."""
    columns = [column for name in MEASURES for column in (name, f"{name} - single")]
    lines = [[row["way"], *(shown(row[column], 3) for column in columns)] for row in rows]
    return table(("way", *columns), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", nargs="+", required=True, help="run directories")
    parser.add_argument("--data", required=True, help="held-out conversations")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=80, help="of each text, an even number")
    options = parser.parse_args()
    if len(options.checkpoints) < 2 or options.tokens < 8 or options.tokens % 2:
        parser.error("expected at least two --checkpoints, and an even --tokens of 8 or more")
    keep_freed_memory()
    first, *others = (Endless.from_pretrained(path) for path in options.checkpoints)
    asked = questions(options.data, options.prompts)
    values: dict[str, list[list[tuple[float, float]]]] = {}
    for p, question in enumerate(tqdm(asked, desc="prompts", leave=False, disable=None)):
        for i, other in enumerate(others):
            found = texts((first, other), question, options.tokens, p * len(others) + i)
            for way, ids in found.items():
                values.setdefault(way, [[] for _ in asked])[p].append(measured(ids))
    rows = compare({way: np.array(v).mean(1) for way, v in values.items()})
    names = [Path(path).name for path in options.checkpoints]
    about = {"agents": names, "prompts": len(asked), "tokens": options.tokens}
    print(text(rows), flush=True)
    for row in rows:
        write_row("strategies", about | row)


if __name__ == "__main__":
    main()
