"""What the coherence gate saves and what it costs, over where it cuts at inference.

python -m benchmarks.gating --checkpoint RUN [RUN ...] --data HELDOUT.jsonl [--json OUT]

The same weights are read at every `skip_below`: bits per byte, the layers a token uses (those whose
gate is not 0) and its soft depth (the sum of its gates), both means over the scored tokens.
Speed is that of batch-1 steps over held-out text, with the greedy choice made and the text's own
token read next, so that all cuts work on the same tokens. Cuts take turns, and so does the control
with random weights.

The chosen point is the one with the fewest layers whose bits per byte are within 1 % of the best.
Intervals are 95 % bootstrap percentiles over documents. Rows go to results/gating.jsonl.
"""

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import interleaved, median_ratio
from benchmarks.heldout import document_ids, document_scores, held_out, interval, save, shown
from reso_llm.config import ResoLLMConfig, control_of
from reso_llm.data import Split
from reso_llm.hardware import keep_freed_memory
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel

CUTS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8)
TOLERANCE = 0.01  # share of the best bits per byte that skipping may cost
PROMPT_TOKENS, TIMED_TOKENS, TIMED_DOCUMENTS = 32, 48, 4


class Point(NamedTuple):
    """One cut of the curve: what it costs and what it leaves out."""

    skip_below: float
    bits_per_byte: float
    layers: float
    depth: float


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
