"""Does the stability monitor's warning tell damaged text from clean text, and how early?

    AUROC = P(score of damaged > score of clean) + P(equal) / 2        0.5 is chance

Held-out text, cut into windows of the model's context, damaged from token c on in two ways:
* corrupt: a share of the tokens is replaced by tokens drawn from all of the data;
* loop: the span of 2 to 16 tokens before c is repeated to the end.

The detector has read d damaged tokens (up to c + d - 1) and says whether the text h =
predictive_horizon tokens on is damaged. It is, exactly where damage has begun, since damage goes on
to the end: nothing can announce damage from outside before it begins, and at d = 0 the damaged and
the clean window are the same, so every score has AUROC 1/2 there. What can be announced is
* own_loop: text sampled from the model itself at a low temperature, which falls into a loop by
  itself at c. Here d < 0 is a true prediction, -d tokens ahead; clean are texts that never loop.

Baselines on the same tokens: entropy, largest probability and surprise (negative log-likelihood),
at the token read last, and each averaged over as many tokens as the monitor averages. The sign of
a baseline is chosen on the calibration half of the documents; all numbers are of the other half.
A seed draws the damage, the model's own texts, and the halves. Intervals: 95 %, bootstrap over
documents; of several seeds the table gives the means of values and ends. The statistic is not the
ratio of sums of `heldout.interval`: it ranks all pairs of two samples that share their documents.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import Records
from benchmarks.heldout import (
    add_checkpoint_option,
    add_data_option,
    checkpoint_name,
    data_name,
    data_of,
    error_bars,
    held_out,
    mean_interval,
    shown,
)
from entropy_core.information import entropy_nats
from entropy_core.signals import LoopTracker
from reso_llm.config import StabilityConfig
from reso_llm.data.token_cache import Split
from reso_llm.decoding.stability import ALARM, LOOP_WINDOW, MAX_PERIOD, StabilityMonitor
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel

READ = (0, 1, 2, 4, 8, 16, 32)  # d, damaged tokens read
AHEAD = (-10, -5, -2, 0, 4, 8)  # d, for the model's own loops
RESAMPLES, QUICK_RESAMPLES = 300, 10
QUICK_WINDOWS, QUICK_TOKENS = 12, 128  # the bundled dialogues are short
MIN_DOCUMENTS = 4  # two for each half


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(positive > negative) + P(equal) / 2, from the ranks (Mann & Whitney 1947)."""
    scores = np.concatenate([positive, negative])
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]  # ties share their mean rank
    k = len(positive)
    return float((ranks[:k].sum() - k * (k + 1) / 2) / (k * len(negative)))


def bootstrap_interval(
    positive: np.ndarray,
    negative: np.ndarray,
    positive_docs: np.ndarray,
    negative_docs: np.ndarray,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % interval of the AUROC when whole documents are drawn again with replacement."""
    docs = np.union1d(positive_docs, negative_docs)
    values = []
    while len(values) < resamples:
        drawn = rng.choice(docs, len(docs))
        weight = np.bincount(drawn, minlength=docs.max() + 1)
        p = np.repeat(positive, weight[positive_docs])
        n = np.repeat(negative, weight[negative_docs])
        if len(p) and len(n):
            values.append(auroc(p, n))
    return tuple(float(v) for v in np.quantile(values, [0.025, 0.975]))


def corrupted(ids: np.ndarray, c: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Windows (N, T) with a share of the tokens from c on drawn from all tokens of the data."""
    replace = rng.random(ids.shape) < share
    replace[:, :c], replace[:, c] = False, True
    return np.where(replace, rng.choice(ids.ravel(), ids.shape), ids)


def looped(ids: np.ndarray, c: int, rng: np.random.Generator) -> np.ndarray:
    """Windows (N, T) in which the 2 to 16 tokens before c are repeated to the end."""
    damaged = ids.copy()
    for row in damaged:
        row[c:] = np.resize(row[c - rng.integers(2, 17) : c], len(row) - c)
    return damaged


def loop_onset(ids: np.ndarray, start: int) -> int | None:
    """First token from `start` on of 2 LOOP_WINDOW or more that repeat with one period, or None."""
    onsets = []
    for period in range(1, MAX_PERIOD + 1):
        run = 0
        for t in range(max(start, period), len(ids)):
            run = run + 1 if ids[t] == ids[t - period] else 0
            if run == 2 * LOOP_WINDOW:
                onsets.append(t - run + 1)
                break
    return min(onsets, default=None)


class Trace(NamedTuple):
    """Scores (N, T) by name, NaN at token 0, of the distribution each token was drawn from."""

    ids: np.ndarray
    scores: dict[str, np.ndarray]
    num_warnings: np.ndarray  # (N,) sentences
    classes: dict[str, int]  # tokens by class


@torch.inference_mode()
def trace(model: ResoLLMModel, ids: np.ndarray, config: StabilityConfig) -> Trace:
    """Read windows (N, T), teacher-forced: baselines and the monitor's warning at every token."""
    shape = ids.shape
    scores = {
        name: np.full(shape, math.nan) for name in ("entropy", "max_prob", "surprise", "warning")
    }
    num_warnings, classes = np.zeros(len(ids), dtype=np.int64), {}
    for row, tokens in enumerate(tqdm(ids, desc="reading", leave=False)):
        inputs = torch.from_numpy(tokens)[None]
        output = model(inputs)
        logits = output.logits[0, :-1].double()
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(-1, inputs[0, 1:, None])[:, 0]
        scores["entropy"][row, 1:] = entropy_nats(logits).numpy()
        scores["max_prob"][row, 1:] = log_probs.amax(-1).exp().numpy()
        scores["surprise"][row, 1:] = -chosen.numpy()
        hidden = output.diagnostics["hidden"][0].numpy()
        monitor = StabilityMonitor(config)
        for t in range(1, len(tokens)):
            reading = monitor.observe(
                scores["entropy"][row, t],
                int(tokens[t]),
                surprise_nats=scores["surprise"][row, t],
                hidden=hidden[t],
            )
            scores["warning"][row, t] = reading.warning
            classes[reading.stability_class] = classes.get(reading.stability_class, 0) + 1
        num_warnings[row] = len(monitor.warnings)
    weight = 2 / (config.predictive_horizon + 1)
    for name in ("entropy", "max_prob", "surprise"):
        scores[f"{name}_ema"] = _ema(scores[name], weight)
    return Trace(ids, scores, num_warnings, classes)


def _ema(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential averages along time of (N, T), from token 1 on."""
    averages = values.copy()
    for t in range(2, values.shape[1]):
        averages[:, t] = weight * values[:, t] + (1 - weight) * averages[:, t - 1]
    return averages


@torch.inference_mode()
def sampled(
    model: ResoLLMModel, prompts: np.ndarray, temperature: float, generator: torch.Generator
) -> np.ndarray:
    """Continue prompts (N, P) to the full context by sampling: (N, max_seq_len) ids."""
    ids = torch.from_numpy(prompts)
    output = model(ids, model.init_state(len(ids)))
    while ids.shape[1] < model.config.max_seq_len:
        probs = (output.logits[:, -1] / temperature).softmax(-1)
        token = torch.multinomial(probs, 1, generator=generator)
        ids = torch.cat([ids, token], dim=1)
        if ids.shape[1] < model.config.max_seq_len:
            output = model(token, output.state)
    return ids.numpy()


class Cases(NamedTuple):
    """Where to read: rows and tokens of damaged and clean windows, and their documents."""

    damaged: Trace
    clean: Trace
    damaged_at: tuple[np.ndarray, np.ndarray]  # rows, tokens
    clean_at: tuple[np.ndarray, np.ndarray]
    docs: tuple[np.ndarray, np.ndarray]  # of the damaged, of the clean


def compare(
    cases: Cases, calibration: np.ndarray, rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    """AUROC and interval of every score on the documents not used for calibration."""
    result = {}
    sides = [np.isin(docs, calibration) for docs in cases.docs]
    for name in cases.clean.scores:
        p = cases.damaged.scores[name][cases.damaged_at]
        n = cases.clean.scores[name][cases.clean_at]
        sign = 1.0
        if name != "warning" and sides[0].any() and sides[1].any():
            sign = 1.0 if auroc(p[sides[0]], n[sides[1]]) >= 0.5 else -1.0
        p, n = sign * p[~sides[0]], sign * n[~sides[1]]
        if not len(p) or not len(n):
            return {"num_damaged": len(p), "num_clean": len(n)}
        docs = [d[~side] for d, side in zip(cases.docs, sides, strict=True)]
        interval = bootstrap_interval(p, n, *docs, rng, resamples)
        result[name] = {"auroc": [auroc(p, n), *interval], "sign": sign}
    return {"num_damaged": len(p), "num_clean": len(n), **result}


def damage_study(
    clean: Trace, damaged: dict[str, Trace], c: int, docs: np.ndarray, calibration: np.ndarray,
    rng: np.random.Generator, resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """{damage: comparisons}, one for each d = "read": both windows read up to the same token."""
    rows = np.arange(len(docs))
    found: dict[str, Any] = {}
    for name, trace_ in damaged.items():
        found[name] = []
        for d in (d for d in READ if c + d <= clean.ids.shape[1]):
            at = (rows, np.full(len(rows), c + d - 1))
            cases = Cases(trace_, clean, at, at, (docs, docs))
            found[name].append({"read": d, **compare(cases, calibration, rng, resamples)})
    return found


def own_loop_study(
    texts: Trace, start: int, docs: np.ndarray, calibration: np.ndarray, rng: np.random.Generator,
    resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """Comparisons by d = "read": texts that fall into a loop at c, with those that never do.

    Each looping text is compared at its own token c + d - 1, every clean text at all these tokens.
    """
    onsets = [loop_onset(row, start) for row in texts.ids]
    room = max(-d for d in AHEAD) + start
    width = texts.ids.shape[1] - max(AHEAD)
    looping = np.array([i for i, c in enumerate(onsets) if c is not None and room <= c <= width])
    never = np.array([i for i, c in enumerate(onsets) if c is None])
    found: list[dict[str, Any]] = []
    for d in AHEAD if len(looping) and len(never) else ():
        tokens = np.array([onsets[i] + d - 1 for i in looping])
        rows, at = np.repeat(never, len(tokens)), np.tile(tokens, len(never))
        cases = Cases(texts, texts, (looping, tokens), (rows, at), (docs[looping], docs[rows]))
        found.append({"read": d, **compare(cases, calibration, rng, resamples)})
    return {"num_looping": len(looping), "num_never": len(never), "own loop": found}


def false_alarms(clean: Trace, report: np.ndarray) -> dict[str, Any]:
    """On the clean windows marked in `report`: share of tokens above ALARM, warnings a token."""
    warning = clean.scores["warning"][report, 1:]
    return {
        "share_of_tokens": float((warning > ALARM).mean()),
        "warnings_per_100_tokens": float(100 * clean.num_warnings[report].sum() / warning.size),
        "share_of_windows": float((clean.num_warnings[report] > 0).mean()),
    }


def calibration_values(clean: Trace, rows: np.ndarray, horizon: int) -> dict[str, float]:
    """99 % quantiles on clean text of what the monitor's midpoints are set to."""
    excess = clean.scores["surprise"] - clean.scores["entropy"]
    excess[:, 1] *= 2 / (horizon + 1)  # the monitor's average starts at 0
    averages = _ema(excess, 2 / (horizon + 1))[rows, 1:]
    trackers = [(LoopTracker(LOOP_WINDOW, MAX_PERIOD), ids[1:]) for ids in clean.ids[rows]]
    repetition = [tracker.add(int(token)) for tracker, ids in trackers for token in ids]
    return {
        "excess_nats": float(np.quantile(averages, 0.99)),
        "repetition": float(np.quantile(repetition, 0.99)),
    }


def windows(split: Split, T: int, max_windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows (N, T) of T tokens that do not overlap, and their documents (N,).

    No document has so many of them that the least number of documents could not be met.
    """
    bounds, share = np.append(split.doc_starts, len(split.tokens)), max_windows // MIN_DOCUMENTS
    found = [
        (doc, np.asarray(split.tokens[t : t + T], dtype=np.int64))
        for doc, (a, b) in enumerate(itertools.pairwise(bounds))
        for t in range(a, b - T + 1, T)[:share]
    ][:max_windows]
    docs = np.array([doc for doc, _ in found], dtype=np.int64)
    if len(np.unique(docs)) < MIN_DOCUMENTS:
        raise ValueError(
            f"{len(np.unique(docs))} documents of {T} tokens or more; expected at least "
            f"{MIN_DOCUMENTS}"
        )
    return np.stack([ids for _, ids in found]), docs


# --- the task


def add_options(parser: Any) -> None:
    add_checkpoint_option(parser)
    add_data_option(parser)
    parser.add_argument("--horizon", type=int, default=StabilityConfig().predictive_horizon)
    parser.add_argument("--share", type=float, default=0.5, help="of tokens replaced in corrupt")
    parser.add_argument("--temperature", type=float, default=0.15, help="of the model's own text")
    parser.add_argument("--max_windows", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def run(options: Any) -> list[dict[str, Any]]:
    """One row for each seed. ValueError where too few documents fill the model's context."""
    engine, spec = ResoLLMInference.from_pretrained(options.checkpoint), data_of(options)
    quick = options.quick
    split, _ = held_out(spec, engine.tokenizer)
    most = QUICK_WINDOWS if quick else options.max_windows
    context = engine.config.max_seq_len
    ids, docs = windows(split, min(context, QUICK_TOKENS) if quick else context, most)
    config = StabilityConfig(enabled=True, predictive_horizon=options.horizon)
    clean = functools.cache(lambda: trace(engine.model, ids, config))  # the same for every seed
    resamples = QUICK_RESAMPLES if quick else RESAMPLES
    about = {"checkpoint": checkpoint_name(options.checkpoint), "data": data_name(spec),
             "horizon": options.horizon, "share": options.share,
             "temperature": options.temperature, "max_windows": most}  # fmt: skip
    records = Records("stability", options.record)
    rows = []
    for seed in tqdm(options.seeds[:1] if quick else options.seeds, desc="seeds", leave=False):
        rows.append(records.row({**about, "seed": seed}, lambda seed=seed: study(
            engine.model, clean(), docs, config, options.share, options.temperature, seed, resamples
        )))  # fmt: skip
    return rows


def study(
    model: ResoLLMModel, clean: Trace, docs: np.ndarray, config: StabilityConfig, share: float,
    temperature: float, seed: int, resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """The measurement of one seed on clean windows (N, T) of documents (N,), as plain values."""
    rng, ids = np.random.default_rng(seed), clean.ids
    c, start = ids.shape[1] * 5 // 8, ids.shape[1] // 8
    calibration = rng.permutation(np.unique(docs))[: len(np.unique(docs)) // 2]
    damaged_ids = {"corrupt": corrupted(ids, c, share, rng), "loop": looped(ids, c, rng)}
    damaged = {name: trace(model, rows, config) for name, rows in damaged_ids.items()}
    generator = torch.Generator().manual_seed(seed)
    own = sampled(model, ids[:, :start], temperature, generator)
    texts = trace(model, own, config)
    report = ~np.isin(docs, calibration)
    return {
        "num_windows": len(ids), "num_documents": len(np.unique(docs)), "change_at": c,
        "calibration": calibration_values(clean, ~report, config.predictive_horizon),
        "false_alarms": false_alarms(clean, report),
        "classes": {"clean": clean.classes, "own": texts.classes}
        | {name: trace_.classes for name, trace_ in damaged.items()},
        **damage_study(clean, damaged, c, docs, calibration, rng, resamples),
        **own_loop_study(texts, start, docs, calibration, rng, resamples),
    }  # fmt: skip


# --- what is shown


KINDS = ("corrupt", "loop", "own loop")
TITLES = ("a share of the tokens replaced", "a span repeated", "the model's own loop")
STYLES = {
    "warning": ("#0072B2", "o-", "monitor's warning"),
    "surprise_ema": ("#E69F00", "s--", "surprise, averaged"),
    "entropy": ("#009E73", "^:", "entropy"),
    "max_prob": ("#CC79A7", "v-.", "largest probability"),
}


def groups(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The seeds of each checkpoint, data set and setting."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    names = ("checkpoint", "data", "horizon", "share", "temperature", "max_windows")
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(found.values())


def over_seeds(rows: Sequence[dict[str, Any]], kind: str) -> dict[int, dict[str, list[float]]]:
    """{d: {score: value, low, high}}, means over the seeds that could be compared there."""
    found: dict[int, dict[str, list[list[float]]]] = {}
    for comparison in (c for row in rows for c in row[kind]):
        for name in (n for n in comparison if n != "read" and not n.startswith("num_")):
            scores = found.setdefault(comparison["read"], {})
            scores.setdefault(name, []).append(comparison[name]["auroc"])
    return {d: {n: mean_interval(v) for n, v in scores.items()} for d, scores in found.items()}


def text(rows: Sequence[dict[str, Any]]) -> str:
    """AUROC by damage and d, and the false alarms, for each checkpoint."""
    return "\n\n".join(_table(some) for some in groups(rows))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head, lines = rows[0], []
    seeds = ", ".join(str(row["seed"]) for row in rows)
    for kind in KINDS:
        for d, scores in over_seeds(rows, kind).items():
            lines = lines or [
                f"| damage | d | {' | '.join(scores)} |", "|---" * (len(scores) + 2) + "|"
            ]  # fmt: skip
            lines.append(f"| {kind} | {d} | {' | '.join(shown(v, 3) for v in scores.values())} |")
    alarms = {k: np.mean([row["false_alarms"][k] for row in rows]) for k in head["false_alarms"]}
    clean = [row["classes"]["clean"] for row in rows]
    unknown = sum(c.get("unknown", 0) for c in clean) / sum(sum(c.values()) for c in clean)
    return "\n".join([
        f"**{head['checkpoint']}**, {head['num_windows']} windows of {head['num_documents']} "
        f"documents of {head['data']}, seeds {seeds}; texts that looped "
        f"{sum(row['num_looping'] for row in rows)}, that never did "
        f"{sum(row['num_never'] for row in rows)}", "", *lines, "",
        f"False alarms on clean text: {alarms['share_of_tokens']:.2%} of tokens, "
        f"{alarms['warnings_per_100_tokens']:.2f} warnings per 100 tokens, "
        f"{alarms['share_of_windows']:.0%} of the windows have one. "
        f"Class unknown: {unknown:.1%} of clean tokens.",
    ])  # fmt: skip


def figure(rows: Sequence[dict[str, Any]]) -> Any:
    """AUROC over damaged tokens read, the monitor beside baselines; one line of panels a group."""
    from matplotlib.figure import Figure

    some = groups(rows)
    drawn = Figure(figsize=(13.5, 4.3 * len(some)), layout="constrained")
    panels = drawn.subplots(len(some), len(KINDS), squeeze=False, sharey=True)
    for line, group in zip(panels, some, strict=True):
        for axes, kind, title in zip(line, KINDS, TITLES, strict=True):
            _curves(axes, over_seeds(group, kind))
            axes.set(title=title, xlabel="damaged tokens read", ylim=(0, 1.04))
        line[0].set_ylabel(f"AUROC, {group[0]['checkpoint']} on {group[0]['data']}")
        line[1].legend(loc="lower right")
    return drawn


def _curves(axes: Any, by_read: dict[int, dict[str, list[float]]]) -> None:
    places = np.arange(len(by_read))
    for i, (name, (color, style, label)) in enumerate(STYLES.items() if by_read else ()):
        middle, bars = error_bars([scores[name] for scores in by_read.values()])
        axes.errorbar(places + 0.06 * (i - 1.5), middle, bars, fmt=style, color=color, capsize=2,
                      ms=5, label=label)  # fmt: skip
    axes.axhline(0.5, color="#555555", lw=0.8)
    axes.set_xticks(places, [str(d) for d in by_read])
