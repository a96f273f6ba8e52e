"""What the coherence gate saves and what it costs, over where it cuts at inference.

python -m benchmarks.gating --checkpoint RUN [RUN ...] --data HELDOUT.jsonl [--json OUT]

The same weights are read at every `skip_below`: bits per byte, the layers a token uses (those whose
gate is not 0) and its soft depth (the sum of its gates), both means over the scored tokens.
Speed is that of batch-1 steps over held-out text, with the greedy choice made and the text's own
token read next, so that all cuts work on the same tokens. Cuts take turns, and so does the control
with random weights.

The chosen point is the one with the fewest layers whose bits per byte are within 1 % of the best.
Intervals are 95 % bootstrap percentiles over documents. Rows go to results/gating.jsonl.

`document_scores`, `interval` and `save` are shared with goals.py and long_context.py.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import interleaved, median_ratio, write_row
from reso_llm.config import ResoLLMConfig, control_of
from reso_llm.data import Split, tokenise_all
from reso_llm.hardware import keep_freed_memory
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel, ResoOutput
from reso_llm.sources import read_documents
from reso_llm.windows import EvalWindow, eval_windows

CUTS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8)
TOLERANCE = 0.01  # share of the best bits per byte that skipping may cost
BATCH_SIZE, DRAWS = 16, 2000
PROMPT_TOKENS, TIMED_TOKENS, TIMED_DOCUMENTS = 32, 48, 4


class Scores(NamedTuple):
    """Sums over the tokens of each of N documents, all (N,) float64."""

    nats: Tensor
    tokens: Tensor
    bytes: Tensor
    depth: Tensor
    layers: Tensor

    @property
    def bits_per_byte(self) -> float:
        return (self.nats.sum() / math.log(2) / self.bytes.sum()).item()


class Point(NamedTuple):
    """One cut of the curve: what it costs and what it leaves out."""

    skip_below: float
    bits_per_byte: float
    layers: float
    depth: float


# --- shared: documents, scores, intervals, records


def held_out(spec: str, tokenizer) -> tuple[Split, Tensor]:
    """All documents of a file, and the UTF-8 bytes of each, (N,)."""
    sizes = torch.tensor([document.num_bytes for document in read_documents(spec)])
    return tokenise_all(spec, tokenizer), sizes.double()


def document_ids(split: Split) -> list[np.ndarray]:
    """The ids of each document, <|bos|> first."""
    return np.split(np.asarray(split.tokens, dtype=np.int64), split.doc_starts[1:])


def document_scores(model: ResoLLMModel, split: Split, sizes: Tensor) -> Scores:
    """Every token of every document scored once, in windows half a context apart."""
    context, origin = model.config.max_seq_len, np.zeros(1, dtype=np.int64)
    windows = [
        (index, window)
        for index, ids in enumerate(document_ids(split))
        for window in eval_windows(ids, origin, context, context // 2)
    ]
    windows.sort(key=lambda item: len(item[1].inputs))
    sums = torch.zeros(4, len(sizes), dtype=torch.float64)
    for first in range(0, len(windows), BATCH_SIZE):
        indices, some = zip(*windows[first : first + BATCH_SIZE], strict=True)
        sums.index_add_(1, torch.tensor(indices), _window_sums(model, some))
    return Scores(sums[0], sums[1], sizes, sums[2], sums[3])


@torch.inference_mode()
def _window_sums(model: ResoLLMModel, windows: Sequence[EvalWindow]) -> Tensor:
    """Nats, targets, depth and layers of each window, (4,B)."""
    ids, targets, scored = (
        torch.nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in arrays], batch_first=True)
        for arrays in zip(*windows, strict=True)
    )
    output = model(ids)
    nats = F.cross_entropy(output.logits.transpose(1, 2), targets, reduction="none")
    depth, layers = depths(model, output)
    values = torch.stack(
        (nats, torch.ones_like(nats), depth.expand_as(nats), layers.expand_as(nats))
    )
    return (values.double() * scored).sum(-1)


def depths(model: ResoLLMModel, output: ResoOutput) -> tuple[Tensor, Tensor]:
    """Soft depth and layers used of each token, (B,T); all layers, (1,1), without a gate."""
    if not model.config.coherence_gate.enabled:
        every = torch.full((1, 1), float(model.config.num_layers))
        return every, every
    gates = output.diagnostics["gates"]  # (B,T,L-1)
    return 1 + gates.sum(-1), 1 + (gates > 0).to(gates.dtype).sum(-1)


def interval(sums: Tensor, counts: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Sum of sums (N,) / sum of counts (N,), and its 95 % bootstrap interval over the N."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(sums), (DRAWS, len(sums)), generator=generator)
    ratios = sums.double()[picks].sum(1) / counts.double()[picks].sum(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return (sums.sum() / counts.sum()).item(), low, high


def shown(values: Sequence[float], digits: int = 4) -> str:
    """`value [low, high]` for a table."""
    value, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{value} [{low}, {high}]"


def save(name: str, rows: Sequence[dict[str, Any]], path: str | None) -> None:
    """Append the rows to results/NAME.jsonl, and write them to `path` where one is given."""
    for row in rows:
        write_row(name, row)
    if path is not None:
        Path(path).write_text(json.dumps(list(rows), indent=1) + "\n")


# --- the gate


def with_cut(model: ResoLLMModel, skip_below: float) -> ResoLLMModel:
    """A model of the same weights that skips layers of which at most skip_below is left."""
    gate = dataclasses.replace(model.config.coherence_gate, skip_below=skip_below)
    config: ResoLLMConfig = dataclasses.replace(model.config, coherence_gate=gate)
    made = ResoLLMModel(config)
    made.load_weights(model.state_dict(), "the same model")
    return made.eval()


def cheapest(points: Sequence[Point], tolerance: float = TOLERANCE) -> Point:
    """The point of fewest layers within `tolerance` of the best bits per byte."""
    limit = (1 + tolerance) * min(point.bits_per_byte for point in points)
    allowed = [point for point in points if point.bits_per_byte <= limit]
    return min(allowed, key=lambda point: (point.layers, point.bits_per_byte))


def decoder(model: ResoLLMModel, texts: Sequence[Tensor]) -> Callable[[], float]:
    """A function that reads texts (1,T) step by step after a prompt and returns tokens/s."""

    @torch.inference_mode()
    def measure() -> float:
        seconds = 0.0
        for ids in texts:
            state = model(ids[:, :PROMPT_TOKENS], model.init_state()).state
            started = time.perf_counter()
            for t in range(PROMPT_TOKENS, ids.shape[1]):
                output = model(ids[:, t : t + 1], state)
                output.logits.argmax(-1)  # the greedy choice costs its time; the text goes on
                state = output.state
            seconds += time.perf_counter() - started
        return sum(ids.shape[1] - PROMPT_TOKENS for ids in texts) / seconds

    return measure


def timed_texts(split: Split) -> list[Tensor]:
    """The heads of the first documents that are long enough, each (1,T)."""
    length = PROMPT_TOKENS + TIMED_TOKENS
    heads = [torch.from_numpy(ids[:length])[None] for ids in document_ids(split)]
    return [ids for ids in heads if ids.shape[1] == length][:TIMED_DOCUMENTS]


def sweep(
    name: str, model: ResoLLMModel, split: Split, sizes: Tensor, cuts: Sequence[float],
    rounds: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row for each cut."""
    models = {str(cut): with_cut(model, cut) for cut in cuts}
    scores = {t: document_scores(m, split, sizes) for t, m in models.items()}
    texts = timed_texts(split)
    measures = {t: decoder(m, texts) for t, m in models.items()}
    measures["control"] = decoder(ResoLLMModel(control_of(model.config)).eval(), texts)
    interleaved(measures, 1 if rounds else 0)  # warm up
    speeds = interleaved(measures, rounds)
    best = min(scores.values(), key=lambda s: s.bits_per_byte)
    rows = []
    for t, s in scores.items():
        tokens = s.tokens.sum().item()
        bits, extra = s.nats / math.log(2), (s.nats - best.nats) / math.log(2)
        rows.append({
            "run": name, "ponder_weight": model.config.coherence_gate.ponder_weight,
            "trained_cut": model.config.coherence_gate.skip_below, "skip_below": float(t),
            "bits_per_byte": interval(bits, s.bytes), "above_best": interval(extra, s.bytes),
            "layers": interval(s.layers, s.tokens), "depth": s.depth.sum().item() / tokens,
            "num_layers": model.config.num_layers, "documents": len(sizes), "tokens": tokens,
            "rounds": rounds, "timed_tokens": sum(ids.shape[1] - PROMPT_TOKENS for ids in texts),
            "tokens_per_second": statistics.median(speeds[t]) if rounds else None,
            "ratio_to_control": median_ratio(speeds[t], speeds["control"]) if rounds else None,
        })  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The curve in markdown, and the chosen point."""
    head = rows[0]
    lines = [
        f"**{head['run']}**: ponder_weight {head['ponder_weight']}, trained with skip_below "
        f"{head['trained_cut']:g}, {head['num_layers']} layers, {head['documents']} "
        "documents", "",
        "| skip_below | bits/byte | above the best | layers used | soft depth | tokens/s "
        "| / control |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        speed = "- | -"
        if row["tokens_per_second"] is not None:
            speed = f"{row['tokens_per_second']:.0f} | {row['ratio_to_control']:.2f}"
        lines.append(
            f"| {row['skip_below']:g} | {shown(row['bits_per_byte'])} | {shown(row['above_best'])} "
            f"| {shown(row['layers'], 2)} | {row['depth']:.2f} | {speed} |"
        )
    chosen = cheapest(
        [Point(r["skip_below"], r["bits_per_byte"][0], r["layers"][0], r["depth"]) for r in rows]
    )
    skipped = 1 - chosen.layers / head["num_layers"]
    lines += ["", f"Within {TOLERANCE:.0%} of the best: skip_below {chosen.skip_below:g}, "
              f"{chosen.layers:.2f} layers ({skipped:.0%} skipped)."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", nargs="+", required=True, help="run directories")
    parser.add_argument("--data", required=True, help="held-out rows")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--cuts", type=float, nargs="+", default=list(CUTS))
    parser.add_argument("--rounds", type=int, default=7, help="of timing; 0 measures no speed")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows = []
    for directory in options.checkpoint:
        engine = ResoLLMInference.from_pretrained(directory)
        if not engine.config.coherence_gate.enabled:
            parser.error(f"{directory} has no coherence gate")
        split, sizes = held_out(options.data, engine.tokenizer)
        swept = sweep(
            Path(directory).name, engine.model, split, sizes, options.cuts, options.rounds
        )
        print(table(swept), flush=True)
        rows += swept
    save("gating", rows, options.json)


if __name__ == "__main__":
    main()
