"""The cost and the saving of the coherence gate, over the share of tokens that it lets go deep.

    share        of the tokens of the held-out text whose doubt is at least tau; tau follows from it
    layers       those a token goes through, mean over tokens
    above best   bits per byte minus those of the best share

The same weights are read at every share, on every token of the held-out documents; the threshold
that the model was trained with is one point more. Nothing is drawn, so there are no seeds but that
of the control's random weights, which only its speed is measured of. Speed is that of the one-token
form (`reso_llm.generation.stepper`) over held-out text, with the greedy choice made and the text's
own token read next, so that all shares work on the same tokens; shares and the control take turns.

The chosen point is the one with the fewest layers whose bits per byte are within 1 % of the best.
Intervals are 95 % bootstrap percentiles over documents.
"""

import copy
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
from reso_llm.generation.stepper import Stepper
from reso_llm.model import ResoLLMModel
from reso_llm.stages.gate import CoherenceGate
from run_core.hardware import keep_freed_memory

SHARES = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0)
TOLERANCE = 0.01  # share of the best bits per byte that staying shallow may cost
PROMPT_TOKENS, TIMED_TOKENS, TIMED_DOCUMENTS = 32, 48, 4
QUICK_SHARES, QUICK_DOCUMENTS = (0.25, 1.0), 4


def with_threshold(model: ResoLLMModel, threshold: float) -> ResoLLMModel:
    """The model with another threshold of doubt; the weights are shared."""
    changed = copy.copy(model)
    changed._modules = {**model._modules, "gate": CoherenceGate(model.config.coherence_gate)}
    changed.gate.threshold.fill_(threshold)
    return changed.eval()


def thresholds(model: ResoLLMModel, split: Split, shares: Sequence[float]) -> list[float]:
    """For each share the tau that this share of the text's tokens doubt at least as much as."""
    tail = torch.full((1, model.tail_length), -1)
    texts = [torch.from_numpy(ids)[None] for ids in heldout.document_ids(split)]
    ordered = torch.cat([heldout.doubts(model, ids, tail)[0] for ids in texts]).sort().values
    places = [round((1 - share) * len(ordered)) for share in shares]
    return [ordered[min(place, len(ordered) - 1)].item() for place in places]


def cheapest(rows: Sequence[Row]) -> Row:
    """The share of fewest layers within TOLERANCE of the best bits per byte."""
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
            stepper, tokens = Stepper(model, [state]), ids[0, PROMPT_TOKENS:].tolist()
            started = time.perf_counter()
            for token in tokens:
                stepper.step([token]).logits.argmax()  # the greedy choice; the text goes on
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
    model: ResoLLMModel, split: Split, sizes: Tensor, shares: Sequence[float], rounds: int
) -> list[Row]:
    """One row for each share, and one, of share None, at the threshold of the training."""
    points = dict(zip(shares, thresholds(model, split, shares), strict=True))
    points[None] = model.gate.threshold.item()
    models = {str(share): with_threshold(model, tau) for share, tau in points.items()}
    bar = tqdm(models.items(), desc="shares", leave=False, disable=None)
    scores = {name: heldout.document_scores(m, split, sizes) for name, m in bar}
    texts = timed_texts(split)
    rounds = rounds if texts else 0
    measures = {name: decoder(m, texts) for name, m in models.items()}
    measures["control"] = decoder(random_control(model.config), texts)
    interleaved(measures, 1 if rounds else 0)  # warm up
    speeds = interleaved(measures, rounds)
    best = min(scores.values(), key=lambda s: s.bits_per_byte)
    rows = []
    for (share, tau), (name, s) in zip(points.items(), scores.items(), strict=True):
        bits, extra = s.nats / math.log(2), (s.nats - best.nats) / math.log(2)
        deep = (s.layers - s.tokens) / max(model.config.num_layers - 1, 1)
        rows.append({
            "share": share, "threshold": tau if math.isfinite(tau) else None,
            "deep": (deep.sum() / s.tokens.sum()).item(),
            "bits_per_byte": ratio_interval(bits, s.bytes),
            "above_best": ratio_interval(extra, s.bytes),
            "layers": ratio_interval(s.layers, s.tokens), "num_layers": model.config.num_layers,
            "documents": len(sizes), "tokens": s.tokens.sum().item(),
            "timed_tokens": sum(ids.shape[1] - PROMPT_TOKENS for ids in texts),
            "tokens_per_second": statistics.median(speeds[name]) if rounds else None,
            "ratio_to_control": median_ratio(speeds[name], speeds["control"]) if rounds else None,
        })  # fmt: skip
    return rows


# --- the task


def add_options(parser: Any) -> None:
    heldout.add_checkpoint_option(parser, several=True)
    heldout.add_data_option(parser)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--rounds", type=int, default=7, help="of timing; 0 measures no speed")


def run(options: Any) -> list[Row]:
    """One row for each checkpoint and share. ValueError where a checkpoint has no gate."""
    keep_freed_memory()
    spec, records = heldout.data_of(options), Records("gating", options.record)
    shares, rounds, limit = options.shares, options.rounds, None
    if not all(0 < share <= 1 for share in shares):
        raise ValueError(f"--shares {shares}: expected numbers above 0, at most 1")
    if options.quick:
        shares, rounds, limit = QUICK_SHARES, 1, QUICK_DOCUMENTS
    engines = {c: heldout.engine_with(c, "coherence_gate") for c in options.checkpoint or [None]}
    rows = []
    for checkpoint, engine in tqdm(engines.items(), desc="checkpoints", leave=False, disable=None):
        key = heldout.names_of(checkpoint, spec) | {"rounds": rounds, "shares": list(shares)}
        recorded = [records.find(**key, share=share) for share in (*shares, None)]
        if None in recorded:  # shares are compared and timed together: all or none
            split, sizes = heldout.held_out(spec, engine.tokenizer, limit)
            recorded = [{**key, **row} for row in sweep(engine.model, split, sizes, shares, rounds)]
            for row in recorded:
                records.add(row)
        rows += recorded
    return rows


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """The points of each checkpoint on each data set, by layers used."""
    ordered = sorted(rows, key=lambda row: row["layers"][0])
    return list(grouped(ordered, "checkpoint", "data", "shares").values())


def text(rows: Sequence[Row]) -> str:
    """The curve of each checkpoint, and its chosen point."""
    return "\n\n".join(_table(some) for some in groups(rows))


def name_of(row: Row) -> str:
    """The share of a point, or that it is the model's own."""
    return "as trained" if row["share"] is None else f"{row['share']:g}"


def _table(rows: Sequence[Row]) -> str:
    head = rows[0]
    title = (
        f"**{head['checkpoint']}** on {head['documents']} documents of {head['data']}, "
        f"{head['num_layers']} layers"
    )
    columns = ("share deep", "measured", "threshold, nats", "bits/byte", "above the best",
               "layers used", "tokens/s", "against the control")  # fmt: skip
    lines = [
        [name_of(row), f"{row['deep']:.0%}", number(row["threshold"]), shown(row["bits_per_byte"]),
         shown(row["above_best"]), shown(row["layers"], 2),
         number(row["tokens_per_second"], ",.0f"), number(row["ratio_to_control"])]
        for row in rows
    ]  # fmt: skip
    point = cheapest(rows)
    layers = point["layers"][0]
    skipped = 1 - layers / head["num_layers"]
    note = (
        f"Within {TOLERANCE:.0%} of the best: share {name_of(point)}, {layers:.2f} layers "
        f"({skipped:.0%} skipped)."
    )
    return "\n\n".join((title, table(columns, lines), note))


def figure(rows: Sequence[Row]) -> Any:
    """Bits per byte over layers used, one point for each share, the chosen one ringed."""
    drawn = new_figure(7.5, 4.6)
    axes = drawn.subplots()
    for i, some in enumerate(groups(rows)):
        color = PALETTE[i % len(PALETTE)]
        layers = [row["layers"][0] for row in some]
        bits = [row["bits_per_byte"][0] for row in some]
        name = f"{some[0]['checkpoint']}, {some[0]['data']}"
        axes.plot(layers, bits, "o-", color=color, lw=1, ms=5, label=name)
        point = cheapest(some)
        place = point["layers"][0], point["bits_per_byte"][0]
        axes.plot(*place, "o", ms=13, mfc="none", mec=color, mew=2)
        for row, *at in zip(some, layers, bits, strict=True):
            axes.annotate(name_of(row), at, textcoords="offset points", xytext=(6, 6), fontsize=9)
    axes.plot([], [], "o", ms=12, mfc="none", mec=GREY, mew=2,
              label=f"fewest layers within {TOLERANCE:.0%} of the best")  # fmt: skip
    axes.set(xlabel="layers used, mean over tokens", ylabel="bits per byte of held-out text")
    axes.margins(0.12)
    axes.legend()
    drawn.suptitle("The coherence gate, by the share of tokens that go deep")
    return drawn
