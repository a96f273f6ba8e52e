"""The cost and the saving of the coherence gate, over where it cuts at inference.

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
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.kit import heldout
from benchmarks.kit.figures import GREY, PALETTE, new_figure
from benchmarks.kit.records import Records, Row, grouped
from benchmarks.kit.statistics import ratio_interval
from benchmarks.kit.tables import number, shown, table
from benchmarks.kit.timing import interleaved, median_ratio
from reso_llm.config import ResoLLMConfig, control_of
from reso_llm.data.token_cache import Split
from reso_llm.model import ResoLLMModel
from run_core.hardware import keep_freed_memory

CUTS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8)
TOLERANCE = 0.01  # share of the best bits per byte that skipping may cost
PROMPT_TOKENS, TIMED_TOKENS, TIMED_DOCUMENTS = 32, 48, 4
QUICK_CUTS, QUICK_DOCUMENTS = (0.25, 0.8), 4


def with_cut(model: ResoLLMModel, skip_below: float) -> ResoLLMModel:
    """A model of the same weights that skips layers of which at most skip_below is left."""
    gate = dataclasses.replace(model.config.coherence_gate, skip_below=skip_below)
    config: ResoLLMConfig = dataclasses.replace(model.config, coherence_gate=gate)
    changed = ResoLLMModel(config)
    changed.load_weights(model.state_dict(), "the same model")
    return changed.eval()


def cheapest(rows: Sequence[Row]) -> Row:
    """The cut of fewest layers within TOLERANCE of the best bits per byte."""
    limit = (1 + TOLERANCE) * min(row["bits_per_byte"][0] for row in rows)
    allowed = [row for row in rows if row["bits_per_byte"][0] <= limit]
    return min(allowed, key=lambda row: (row["layers"][0], row["bits_per_byte"][0]))


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
    heads = [torch.from_numpy(ids[:length])[None] for ids in heldout.document_ids(split)]
    return [ids for ids in heads if ids.shape[1] == length][:TIMED_DOCUMENTS]


def random_control(config: ResoLLMConfig) -> ResoLLMModel:
    """The control of a configuration with the weights of seed 0; no global generator moves."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResoLLMModel(control_of(config)).eval()


def sweep(
    model: ResoLLMModel, split: Split, sizes: Tensor, cuts: Sequence[float], rounds: int
) -> list[Row]:
    """One row for each cut."""
    models = {str(cut): with_cut(model, cut) for cut in cuts}
    bar = tqdm(models.items(), desc="cuts", leave=False, disable=None)
    scores = {t: heldout.document_scores(m, split, sizes) for t, m in bar}
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
            "bits_per_byte": ratio_interval(bits, s.bytes),
            "above_best": ratio_interval(extra, s.bytes),
            "layers": ratio_interval(s.layers, s.tokens), "depth": s.depth.sum().item() / tokens,
            "num_layers": model.config.num_layers, "documents": len(sizes), "tokens": tokens,
            "timed_tokens": sum(ids.shape[1] - PROMPT_TOKENS for ids in texts),
            "tokens_per_second": statistics.median(speeds[t]) if rounds else None,
            "ratio_to_control": median_ratio(speeds[t], speeds["control"]) if rounds else None,
        })  # fmt: skip
    return rows


# --- the task


def add_options(parser: Any) -> None:
    heldout.add_checkpoint_option(parser, several=True)
    heldout.add_data_option(parser)
    parser.add_argument("--cuts", type=float, nargs="+", default=list(CUTS))
    parser.add_argument("--rounds", type=int, default=7, help="of timing; 0 measures no speed")


def run(options: Any) -> list[Row]:
    """One row for each checkpoint and cut. ValueError where a checkpoint has no gate."""
    keep_freed_memory()
    spec, records = heldout.data_of(options), Records("gating", options.record)
    cuts, rounds, limit = options.cuts, options.rounds, None
    if options.quick:
        cuts, rounds, limit = QUICK_CUTS, 1, QUICK_DOCUMENTS
    engines = {c: heldout.engine_with(c, "coherence_gate") for c in options.checkpoint or [None]}
    rows = []
    for checkpoint, engine in tqdm(engines.items(), desc="checkpoints", leave=False, disable=None):
        key = heldout.names_of(checkpoint, spec) | {"rounds": rounds, "cuts": list(cuts)}
        recorded = [records.find(**key, skip_below=cut) for cut in cuts]
        if None in recorded:  # cuts are compared and timed together: all or none
            split, sizes = heldout.held_out(spec, engine.tokenizer, limit)
            recorded = [{**key, **row} for row in sweep(engine.model, split, sizes, cuts, rounds)]
            for row in recorded:
                records.add(row)
        rows += recorded
    return rows


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """The cuts of each checkpoint on each data set, by skip_below."""
    ordered = sorted(rows, key=lambda row: row["skip_below"])
    return list(grouped(ordered, "checkpoint", "data", "cuts").values())


def text(rows: Sequence[Row]) -> str:
    """The curve of each checkpoint, and its chosen point."""
    return "\n\n".join(_table(some) for some in groups(rows))


def _table(rows: Sequence[Row]) -> str:
    head = rows[0]
    title = (
        f"**{head['checkpoint']}** on {head['documents']} documents of {head['data']}: "
        f"ponder_weight {head['ponder_weight']}, trained with skip_below {head['trained_cut']:g}, "
        f"{head['num_layers']} layers"
    )
    columns = ("skip_below", "bits/byte", "above the best", "layers used", "soft depth",
               "tokens/s against the control")  # fmt: skip
    lines = [
        [number(row["skip_below"], "g"), shown(row["bits_per_byte"]), shown(row["above_best"]),
         shown(row["layers"], 2), number(row["depth"]), number(row["ratio_to_control"])]
        for row in rows
    ]  # fmt: skip
    point = cheapest(rows)
    layers = point["layers"][0]
    skipped = 1 - layers / head["num_layers"]
    note = (
        f"Within {TOLERANCE:.0%} of the best: skip_below {point['skip_below']:g}, "
        f"{layers:.2f} layers ({skipped:.0%} skipped)."
    )
    return "\n\n".join((title, table(columns, lines), note))


def figure(rows: Sequence[Row]) -> Any:
    """Bits per byte over layers used, one point for each cut, the chosen one ringed."""
    drawn = new_figure(7.5, 4.6)
    axes = drawn.subplots()
    for i, some in enumerate(groups(rows)):
        color = PALETTE[i % len(PALETTE)]
        layers = [row["layers"][0] for row in some]
        bits = [row["bits_per_byte"][0] for row in some]
        head = some[0]
        name = f"{head['checkpoint']}, {head['data']}"
        axes.plot(layers, bits, "o-", color=color, lw=1, ms=5, label=name)
        point = cheapest(some)
        place = point["layers"][0], point["bits_per_byte"][0]
        axes.plot(*place, "o", ms=13, mfc="none", mec=color, mew=2)
        _name_cuts(axes, some)
    axes.plot([], [], "o", ms=12, mfc="none", mec=GREY, mew=2,
              label=f"fewest layers within {TOLERANCE:.0%} of the best")  # fmt: skip
    axes.set(xlabel="layers used, mean over tokens", ylabel="bits per byte of held-out text")
    axes.margins(0.12)
    axes.legend()
    drawn.suptitle("The coherence gate, cut at inference")
    return drawn


def _name_cuts(axes: Any, rows: Sequence[Row]) -> None:
    """Each place on the curve with the cuts that lead there; close ones share a name."""
    layers = [row["layers"][0] for row in rows]
    close = 0.03 * (max(layers) - min(layers))
    places: list[list[Row]] = []
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
