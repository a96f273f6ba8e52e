"""Bits per byte of a text under a model, and what a token costs at each place in the context.

Each token after its document's <|bos|> is scored exactly once (`reso_llm.training.evaluation`),
control tokens included, by its stateful protocol: the windows know what was read of their document.
The bytes are those of the text in the file, so that tokenizers compare.
Several checkpoints are scored on the same text. A token's place is the number of tokens its window
shows up to the one that predicts it, <|bos|> included: 1, 2, 3-4, 5-8, ... (as in Kaplan et al.
2020, "Scaling laws for neural language models", appendix D.5). --quick scores the first 8
documents, and estimates their bytes from those of the whole text.
"""

import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.kit.figures import PALETTE, new_figure
from benchmarks.kit.heldout import add_checkpoint_option, first_documents
from benchmarks.kit.records import Records, Row
from benchmarks.kit.tables import table
from reso_llm.data.errors import BadRows
from reso_llm.data.prepare import tokenise_all
from reso_llm.inference import ResoLLMInference
from reso_llm.training.evaluation import LanguageModelScore, nats_by_position
from run_core.cli import Parser

QUICK_DOCUMENTS = 8
MARKERS = "os^Dv*"


def add_options(parser: Parser) -> None:
    add_checkpoint_option(parser, several=True)
    parser.add_argument(
        "--data", type=str, help="file, hub id, guanaco or sample; --quick needs none"
    )
    parser.add_argument("--on_bad_row", choices=["error", "skip"], default="error")
    parser.add_argument("--stride", type=int, help="new tokens per window; default: half a context")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")


def run(options: Any) -> list[Row]:
    """One row a checkpoint. Raises ValueError without a text, or for a stride out of range."""
    if not (options.data or options.quick):
        raise ValueError("which text? --data FILE")
    records, rows = Records("lm", options.record), []
    directories = options.checkpoint or [None]
    engines = [ResoLLMInference.from_pretrained(d, options.device) for d in directories]
    shortest = min(engine.config.max_seq_len for engine in engines)
    if options.stride is not None and not 1 <= options.stride <= shortest:
        raise ValueError(f"--stride {options.stride}: expected 1 to {shortest}, the context")
    for directory, engine in zip(directories, engines, strict=True):
        context, data = engine.config.max_seq_len, options.data or "sample"
        key = {
            "checkpoint": directory or "shipped",
            "data": Path(data).name if Path(data).exists() else data,
            "context": context,
            "stride": options.stride or context // 2,
            "protocol": "stateful",
        }
        score = functools.partial(measure, engine, data, key["stride"], options)
        rows.append(records.row(key, score))
    return rows


def measure(engine: ResoLLMInference, data: str, stride: int, options: Any) -> Row:
    """Score every byte of the data once."""
    bad_rows = BadRows()
    split = tokenise_all(data, engine.tokenizer, on_bad_row=options.on_bad_row, report=bad_rows)
    if bad_rows.count:
        print(bad_rows.summary(), file=sys.stderr)
    split = first_documents(split, QUICK_DOCUMENTS) if options.quick else split
    targets = split.num_tokens - split.num_documents
    with tqdm(total=targets, desc="scoring", unit="token", leave=False, disable=None) as bar:
        nats, tokens = nats_by_position(engine.model, split, stride=stride, progress=bar.update)
    total = float(nats.sum()), int(tokens.sum())
    return {
        "skipped_rows": bad_rows.count,
        **LanguageModelScore(*total, split.num_bytes, split.num_documents).to_dict(),
        "positions": binned(nats, tokens),
    }


def binned(nats: np.ndarray, tokens: np.ndarray) -> list[Row]:
    """Mean nats of the bins of places 1, 2, 3-4, 5-8, ... that hold a token."""
    bins, first = [], 1
    while first <= len(nats):
        last = min(max(1, 2 * (first - 1)), len(nats))
        chosen = slice(first - 1, last)
        if count := int(tokens[chosen].sum()):
            mean = float(nats[chosen].sum() / count)
            bins.append({"first": first, "last": last, "tokens": count, "nats_per_token": mean})
        first = last + 1
    return bins


def text(rows: Sequence[Row]) -> str:
    """Markdown: a line a checkpoint, each byte of its text scored once."""
    head = ("checkpoint", "text", "bits/byte", "nats/token", "perplexity of a token", "of a byte",
            "bytes", "tokens", "documents")  # fmt: skip
    formats = {
        "checkpoint": "", "data": "", "bits_per_byte": ".4f", "nats_per_token": ".4f",
        "perplexity": ".2f", "byte_perplexity": ".3f", "bytes": ",", "tokens": ",",
        "documents": ",",
    }  # fmt: skip
    return table(head, [[format(row[f], spec) for f, spec in formats.items()] for row in rows])


def figure(rows: Sequence[Row]) -> Any:
    """Nats per token against the place in the context, a line a checkpoint and text."""
    drawn = new_figure(7, 4.5)
    axes = drawn.subplots()
    for i, row in enumerate(rows):
        places = [math.sqrt(p["first"] * p["last"]) for p in row["positions"]]
        nats = [p["nats_per_token"] for p in row["positions"]]
        label = f"{row['checkpoint']} on {row['data']}: {row['bits_per_byte']:.3f} bits/byte"
        axes.plot(places, nats, color=PALETTE[i % 6], marker=MARKERS[i % 6], label=label)
    longest = max((row["context"] for row in rows), default=1)
    ticks = [2**k for k in range(longest.bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="tokens of context", ylabel="nats per token")
    axes.set_title("What a token costs by its place in the context", fontsize=11)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        axes.legend(frameon=False, fontsize=9)
    return drawn
