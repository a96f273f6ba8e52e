"""Scores of every token read, and how well each tells damaged windows from clean ones.

Shapes: N windows, T tokens.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.kit.records import Row
from benchmarks.kit.statistics import Interval, auroc, bootstrap_groups, groups_of
from benchmarks.tasks.stability.damage import loop_onset
from entropy_core.information import entropy_nats
from reso_llm.config import StabilityConfig
from reso_llm.decoding.alarms import ALARM
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.decoding.text_class import StabilityCalibration
from reso_llm.model import ResoLLMModel

READ = (0, 1, 2, 4, 8, 16, 32)  # d, damaged tokens read
AHEAD = (-10, -5, -2, 0, 4, 8)  # d, for the model's own loops
RESAMPLES = 300


class Trace(NamedTuple):
    """Scores (N, T) by name, NaN at token 0, of the distribution each token was drawn from."""

    ids: np.ndarray
    scores: dict[str, np.ndarray]
    num_warnings: np.ndarray  # (N,) sentences
    classes: dict[str, int]  # tokens by class


@torch.inference_mode()
def trace(
    model: ResoLLMModel,
    config: StabilityConfig,
    calibration: StabilityCalibration,
    ids: np.ndarray,
) -> Trace:
    """Read windows (N, T), teacher-forced: baselines and the monitor's warning at every token."""
    shape = ids.shape
    scores = {
        name: np.full(shape, math.nan)
        for name in ("entropy", "max_prob", "surprise", "order", "warning")
    }
    num_warnings, classes = np.zeros(len(ids), dtype=np.int64), {}
    for row, tokens in enumerate(tqdm(ids, desc="reading", leave=False, disable=None)):
        inputs = torch.from_numpy(tokens)[None]
        output = model(inputs)
        logits = output.logits[0, :-1].double()
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(-1, inputs[0, 1:, None])[:, 0]
        scores["entropy"][row, 1:] = entropy_nats(logits).numpy()
        scores["max_prob"][row, 1:] = log_probs.amax(-1).exp().numpy()
        scores["surprise"][row, 1:] = -chosen.numpy()
        order = output.diagnostics.get("coherence")
        if order is not None:
            scores["order"][row, 1:] = order[0, 1:].numpy()
        monitor = StabilityMonitor(config, calibration)
        for t in range(1, len(tokens)):
            entropy, surprise = scores["entropy"][row, t], scores["surprise"][row, t]
            reading = monitor.observe(entropy, int(tokens[t]), surprise_nats=surprise)
            scores["warning"][row, t] = reading.warning
            classes[reading.stability_class] = classes.get(reading.stability_class, 0) + 1
        num_warnings[row] = len(monitor.warnings)
    weight = 2 / (config.predictive_horizon + 1)
    if model.kuramoto is None:
        del scores["order"]
    for name in ("entropy", "max_prob", "surprise"):
        scores[f"{name}_ema"] = _ema(scores[name], weight)
    return Trace(ids, scores, num_warnings, classes)


def _ema(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential averages along time of (N, T), from token 1 on."""
    averages = values.copy()
    for t in range(2, values.shape[1]):
        averages[:, t] = weight * values[:, t] + (1 - weight) * averages[:, t - 1]
    return averages


Side = tuple[Trace, tuple[np.ndarray, np.ndarray], np.ndarray]
"""Windows, the rows and tokens of them to read, and the document of each."""


def auroc_interval(
    positive: np.ndarray, negative: np.ndarray, *docs: np.ndarray, resamples: int = RESAMPLES
) -> Interval:
    """AUROC, and its interval when whole documents are drawn again; `docs` are those of each."""
    scores = np.concatenate([positive, negative])

    def statistic(drawn: np.ndarray) -> float:
        damaged = drawn < len(positive)
        return auroc(scores[drawn[damaged]], scores[drawn[~damaged]])

    return bootstrap_groups(statistic, groups_of(np.concatenate(docs)), resamples)


def auroc_gain(
    scores: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray],
    *docs: np.ndarray, resamples: int,
) -> Interval:  # fmt: skip
    """AUROC of `scores` less that of `others` on the same windows, and its interval.

    Both are the scores of the damaged and of the clean windows; `docs` are the documents of each.
    """
    mine, theirs = np.concatenate(scores), np.concatenate(others)

    def statistic(drawn: np.ndarray) -> float:
        damaged = drawn < len(scores[0])
        p, n = drawn[damaged], drawn[~damaged]
        return auroc(mine[p], mine[n]) - auroc(theirs[p], theirs[n])

    return bootstrap_groups(statistic, groups_of(np.concatenate(docs)), resamples)


def compare(damaged: Side, clean: Side, calibration: np.ndarray, resamples: int) -> dict[str, Any]:
    """AUROC and interval of every score on the documents not used for calibration."""
    known = [np.isin(docs, calibration) for _, _, docs in (damaged, clean)]
    kept = [~those for those in known]
    counts = {"num_damaged": int(kept[0].sum()), "num_clean": int(kept[1].sum())}
    if not all(counts.values()):
        return counts
    result, paired = {}, {}
    docs = [side[2][mine] for side, mine in zip((damaged, clean), kept, strict=True)]
    for name in clean[0].scores:
        p, n = (windows.scores[name][at] for windows, at, _ in (damaged, clean))
        sign = 1.0
        if name != "warning" and known[0].any() and known[1].any():
            sign = 1.0 if auroc(p[known[0]], n[known[1]]) >= 0.5 else -1.0
        interval = auroc_interval(sign * p[kept[0]], sign * n[kept[1]], *docs, resamples=resamples)
        result[name] = {"auroc": list(interval), "sign": sign}
        if name in ("warning", "surprise_ema"):
            paired[name] = sign * p[kept[0]], sign * n[kept[1]]
    if len(paired) == 2:
        interval = auroc_gain(paired["warning"], paired["surprise_ema"], *docs, resamples=resamples)
        result["warning - surprise_ema"] = {"auroc": list(interval), "sign": 1.0}
    return counts | result


def damage_study(
    clean: Trace, damaged: dict[str, Trace], c: int, docs: np.ndarray, calibration: np.ndarray,
    resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """{damage: comparisons}, one for each d = "read": both windows read up to the same token."""
    rows = np.arange(len(docs))
    by_damage: dict[str, Any] = {}
    for name, trace_ in damaged.items():
        by_damage[name] = []
        for d in (d for d in READ if c + d <= clean.ids.shape[1]):
            at = (rows, np.full(len(rows), c + d - 1))
            sides = (trace_, at, docs), (clean, at, docs)
            by_damage[name].append({"read": d, **compare(*sides, calibration, resamples)})
    return by_damage


def own_loop_study(
    texts: Trace, start: int, docs: np.ndarray, calibration: np.ndarray, resamples: int
) -> dict[str, Any]:
    """Comparisons by d = "read": texts that fall into a loop at c, with those that never do.

    Each looping text is compared at its own token c + d - 1, every clean text at all these tokens.
    """
    onsets = [loop_onset(row, start) for row in texts.ids]
    room = max(-d for d in AHEAD) + start
    width = texts.ids.shape[1] - max(AHEAD)
    looping = np.array([i for i, c in enumerate(onsets) if c is not None and room <= c <= width])
    never = np.array([i for i, c in enumerate(onsets) if c is None])
    comparisons: list[Row] = []
    for d in AHEAD if len(looping) and len(never) else ():
        tokens = np.array([onsets[i] + d - 1 for i in looping])
        rows, at = np.repeat(never, len(tokens)), np.tile(tokens, len(never))
        sides = (texts, (looping, tokens), docs[looping]), (texts, (rows, at), docs[rows])
        comparisons.append({"read": d, **compare(*sides, calibration, resamples)})
    return {"num_looping": len(looping), "num_never": len(never), "own loop": comparisons}


def false_alarms(clean: Trace, report: np.ndarray) -> dict[str, Any]:
    """On the clean windows marked in `report`: share of tokens above ALARM, warnings a token."""
    warning = clean.scores["warning"][report, 1:]
    return {
        "share_of_tokens": float((warning > ALARM).mean()),
        "warnings_per_100_tokens": float(100 * clean.num_warnings[report].sum() / warning.size),
        "share_of_windows": float((clean.num_warnings[report] > 0).mean()),
    }
