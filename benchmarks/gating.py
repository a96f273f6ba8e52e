"""What the coherence gate saves and what it costs, over where it cuts at inference.

    skip_below   a layer of which at most this share is left is not computed
    layers       those a token uses (gate not 0), and depth the sum of its gates: means over tokens
    above best   bits per byte minus those of the best cut

The same weights are read at every cut, on every token of the held-out documents. Nothing is drawn,
so there are no seeds but that of the control's random weights, which only its speed is measured of.
Speed is that of batch-1 steps over held-out text, with the greedy choice made and the text's own
token read next, so that all cuts work on the same tokens; cuts and the control take turns.

The chosen point is the one with the fewest layers whose bits per byte are within 1 % of the best.
Intervals are 95 % bootstrap percentiles over documents.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import Records, interleaved, median_ratio
from benchmarks.heldout import (
    add_checkpoint_option,
    add_data_option,
    checkpoint_name,
    data_name,
    data_of,
    document_ids,
    document_scores,
    engine_with,
    held_out,
    interval,
    shown,
)
from reso_llm.config import ResoLLMConfig, control_of
from reso_llm.data.token_cache import Split
from reso_llm.model import ResoLLMModel
from run_core.hardware import keep_freed_memory

CUTS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8)
TOLERANCE = 0.01  # share of the best bits per byte that skipping may cost
PROMPT_TOKENS, TIMED_TOKENS, TIMED_DOCUMENTS = 32, 48, 4
QUICK_CUTS, QUICK_DOCUMENTS = (0.25, 0.8), 4
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")


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


def random_control(config: ResoLLMConfig) -> ResoLLMModel:
    """The control of a configuration with the weights of seed 0; no global generator moves."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResoLLMModel(control_of(config)).eval()


def sweep(
    model: ResoLLMModel, split: Split, sizes: Tensor, cuts: Sequence[float], rounds: int
) -> list[dict[str, Any]]:
    """One row for each cut."""
    models = {str(cut): with_cut(model, cut) for cut in cuts}
    bar = tqdm(models.items(), desc="cuts", leave=False)
    scores = {t: document_scores(m, split, sizes) for t, m in bar}
    texts = timed_texts(split)
    rounds = rounds if texts else 0
    measures = {t: decoder(m, texts) for t, m in models.items()}
    measures["control"] = decoder(random_control(model.config), texts)
    interleaved(measures, 1 if rounds else 0)  # warm up
    speeds = interleaved(measures, rounds)
    best = min(scores.values(), key=lambda s: s.bits_per_byte)
    rows = []
    for t, s in scores.items():
        tokens = s.tokens.sum().item()
        bits, extra = s.nats / math.log(2), (s.nats - best.nats) / math.log(2)
        rows.append({
            "skip_below": float(t), "ponder_weight": model.config.coherence_gate.ponder_weight,
            "trained_cut": model.config.coherence_gate.skip_below,
            "bits_per_byte": interval(bits, s.bytes), "above_best": interval(extra, s.bytes),
            "layers": interval(s.layers, s.tokens), "depth": s.depth.sum().item() / tokens,
            "num_layers": model.config.num_layers, "documents": len(sizes), "tokens": tokens,
            "timed_tokens": sum(ids.shape[1] - PROMPT_TOKENS for ids in texts),
            "tokens_per_second": statistics.median(speeds[t]) if rounds else None,
            "ratio_to_control": median_ratio(speeds[t], speeds["control"]) if rounds else None,
        })  # fmt: skip
    return rows


# --- the task


def add_options(parser: Any) -> None:
    add_checkpoint_option(parser, several=True)
    add_data_option(parser)
    parser.add_argument("--cuts", type=float, nargs="+", default=list(CUTS))
    parser.add_argument("--rounds", type=int, default=7, help="of timing; 0 measures no speed")


def run(options: Any) -> list[dict[str, Any]]:
    """One row for each checkpoint and cut. ValueError where a checkpoint has no gate."""
    keep_freed_memory()
    spec, records = data_of(options), Records("gating", options.record)
    cuts, rounds, limit = options.cuts, options.rounds, None
    if options.quick:
        cuts, rounds, limit = QUICK_CUTS, 1, QUICK_DOCUMENTS
    engines = {c: engine_with(c, "coherence_gate") for c in options.checkpoint or [None]}
    rows = []
    for checkpoint, engine in tqdm(engines.items(), desc="checkpoints", leave=False):
        key = {"checkpoint": checkpoint_name(checkpoint), "data": data_name(spec),
               "rounds": rounds, "cuts": list(cuts)}  # fmt: skip
        found = [records.find(**key, skip_below=cut) for cut in cuts]
        if None in found:  # cuts are compared and timed together: all or none
            split, sizes = held_out(spec, engine.tokenizer, limit)
            found = [{**key, **row} for row in sweep(engine.model, split, sizes, cuts, rounds)]
            for row in found:
                records.add(row)
        rows += found
    return rows


def groups(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The cuts of each checkpoint on each data set, by skip_below."""
    by_key: dict[tuple, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["skip_below"]):
        by_key.setdefault((row["checkpoint"], row["data"], *row["cuts"]), []).append(row)
    return list(by_key.values())


def chosen(rows: Sequence[dict[str, Any]]) -> Point:
    return cheapest(
        [Point(r["skip_below"], r["bits_per_byte"][0], r["layers"][0], r["depth"]) for r in rows]
    )


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The curve of each checkpoint, and its chosen point."""
    return "\n\n".join(_table(some) for some in groups(rows))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = rows[0]
    lines = [
        f"**{head['checkpoint']}** on {head['documents']} documents of {head['data']}: "
        f"ponder_weight {head['ponder_weight']}, trained with skip_below {head['trained_cut']:g}, "
        f"{head['num_layers']} layers", "",
        "| skip_below | bits/byte | above the best | layers used | soft depth | tokens/s against "
        "the control |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        ratio = row["ratio_to_control"]
        lines.append(
            f"| {row['skip_below']:g} | {shown(row['bits_per_byte'])} | {shown(row['above_best'])} "
            f"| {shown(row['layers'], 2)} | {row['depth']:.2f} "
            f"| {'-' if ratio is None else format(ratio, '.2f')} |"
        )
    point = chosen(rows)
    skipped = 1 - point.layers / head["num_layers"]
    lines += ["", f"Within {TOLERANCE:.0%} of the best: skip_below {point.skip_below:g}, "
              f"{point.layers:.2f} layers ({skipped:.0%} skipped)."]  # fmt: skip
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Bits per byte over layers used, one point for each cut, the chosen one ringed."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = drawn.subplots()
    for i, some in enumerate(groups(rows)):
        color = COLORS[i % len(COLORS)]
        layers = [row["layers"][0] for row in some]
        bits = [row["bits_per_byte"][0] for row in some]
        head = some[0]
        name = f"{head['checkpoint']}, {head['data']}"
        axes.plot(layers, bits, "o-", color=color, lw=1, ms=5, label=name)
        point = chosen(some)
        axes.plot(point.layers, point.bits_per_byte, "o", ms=13, mfc="none", mec=color, mew=2)
        _name_cuts(axes, some)
    axes.plot([], [], "o", ms=12, mfc="none", mec="#555555", mew=2,
              label=f"fewest layers within {TOLERANCE:.0%} of the best")  # fmt: skip
    axes.set(xlabel="layers used, mean over tokens", ylabel="bits per byte of held-out text")
    axes.margins(0.12)
    axes.legend()
    drawn.suptitle("The coherence gate, cut at inference")
    return drawn


def _name_cuts(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Each place on the curve with the cuts that lead there; close ones share a name."""
    close = 0.03 * (max(row["layers"][0] for row in rows) - min(row["layers"][0] for row in rows))
    places: list[list[dict[str, Any]]] = []
    for row in rows:
        if places and abs(places[-1][0]["layers"][0] - row["layers"][0]) <= close:
            places[-1].append(row)
        else:
            places.append([row])
    for place in places:
        first, last = place[0], place[-1]
        name = f"{first['skip_below']:g}"
        name += f" to {last['skip_below']:g}" if last is not first else ""
        at = first["layers"][0], first["bits_per_byte"][0]
        axes.annotate(name, at, textcoords="offset points", xytext=(9, 6), fontsize=9)
