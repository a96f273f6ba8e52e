"""Does the stability monitor's warning tell damaged text from clean text, and how early?

python -m benchmarks.stability --checkpoint RUN --data heldout.jsonl --json stability.json

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
Intervals: 95 %, bootstrap over documents.
"""

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from entropy_core.information import entropy_nats
from entropy_core.signals import LoopTracker
from reso_llm.config import StabilityConfig
from reso_llm.data import tokenise_all
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.stability import ALARM, LOOP_WINDOW, MAX_PERIOD, StabilityMonitor

READ = (0, 1, 2, 4, 8, 16, 32)  # d, damaged tokens read
AHEAD = (-10, -5, -2, 0, 4, 8)  # d, for the model's own loops
RESAMPLES = 300


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
) -> tuple[float, float]:
    """95 % interval of the AUROC when whole documents are drawn again with replacement."""
    docs = np.union1d(positive_docs, negative_docs)
    values = []
    while len(values) < RESAMPLES:
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
    for row, tokens in enumerate(ids):
        inputs = torch.from_numpy(tokens)[None]
        logits = model(inputs).logits[0, :-1].double()
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(-1, inputs[0, 1:, None])[:, 0]
        scores["entropy"][row, 1:] = entropy_nats(logits).numpy()
        scores["max_prob"][row, 1:] = log_probs.amax(-1).exp().numpy()
        scores["surprise"][row, 1:] = -chosen.numpy()
        hidden = model.trunk(inputs)[0][0].numpy()
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


def compare(cases: Cases, calibration: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
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
        interval = bootstrap_interval(p, n, *docs, rng)
        result[name] = {"auroc": auroc(p, n), "interval": interval, "sign": sign}
    return {"num_damaged": len(p), "num_clean": len(n), **result}


def damage_study(
    clean: Trace,
    damaged: dict[str, Trace],
    c: int,
    docs: np.ndarray,
    calibration: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """{damage: {d: comparison}}: both windows read up to the same token."""
    rows = np.arange(len(docs))
    study = {}
    for name, trace_ in damaged.items():
        for d in READ:
            at = (rows, np.full(len(rows), c + d - 1))
            cases = Cases(trace_, clean, at, at, (docs, docs))
            study.setdefault(name, {})[d] = compare(cases, calibration, rng)
    return study


def own_loop_study(
    texts: Trace, start: int, docs: np.ndarray, calibration: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """{d: comparison}: texts that fall into a loop at c, d tokens on, with those that never do.

    Each looping text is compared at its own token c + d - 1, every clean text at all these tokens.
    """
    onsets = [loop_onset(row, start) for row in texts.ids]
    room = max(-d for d in AHEAD) + start
    width = texts.ids.shape[1] - max(AHEAD)
    looping = np.array([i for i, c in enumerate(onsets) if c is not None and room <= c <= width])
    never = np.array([i for i, c in enumerate(onsets) if c is None])
    study: dict[str, Any] = {"num_looping": len(looping), "num_never": len(never)}
    if not len(looping) or not len(never):
        return study
    for d in AHEAD:
        tokens = np.array([onsets[i] + d - 1 for i in looping])
        rows, at = np.repeat(never, len(tokens)), np.tile(tokens, len(never))
        cases = Cases(texts, texts, (looping, tokens), (rows, at), (docs[looping], docs[rows]))
        study[d] = compare(cases, calibration, rng)
    return study


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


def windows(engine: ResoLLMInference, spec: str, max_windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows (N, T) of max_seq_len tokens that do not overlap, and their documents (N,)."""
    split, T = tokenise_all(spec, engine.tokenizer), engine.config.max_seq_len
    bounds = np.append(split.doc_starts, len(split.tokens))
    found = [
        (doc, np.asarray(split.tokens[t : t + T], dtype=np.int64))
        for doc, (a, b) in enumerate(itertools.pairwise(bounds))
        for t in range(a, b - T + 1, T)
    ][:max_windows]
    docs = np.array([doc for doc, _ in found], dtype=np.int64)
    if len(np.unique(docs)) < 4:
        raise SystemExit(f"{spec}: needs at least 4 documents of {T} tokens or more")
    return np.stack([ids for _, ids in found]), docs


def study(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement, as plain values."""
    engine = ResoLLMInference.from_pretrained(options.checkpoint)
    rng = np.random.default_rng(options.seed)
    config = StabilityConfig(enabled=True, predictive_horizon=options.horizon)
    ids, docs = windows(engine, options.data, options.max_windows)
    c = ids.shape[1] * 5 // 8
    calibration = rng.permutation(np.unique(docs))[: len(np.unique(docs)) // 2]
    damaged_ids = {
        "corrupt": corrupted(ids, c, options.share, rng),
        "loop": looped(ids, c, rng),
    }
    clean = trace(engine.model, ids, config)
    damaged = {name: trace(engine.model, rows, config) for name, rows in damaged_ids.items()}
    generator = torch.Generator().manual_seed(options.seed)
    start = ids.shape[1] // 8
    own = sampled(engine.model, ids[:, :start], options.temperature, generator)
    texts = trace(engine.model, own, config)
    report = ~np.isin(docs, calibration)
    return {
        **{key: value for key, value in vars(options).items() if key != "json"},
        "num_windows": len(ids), "num_documents": len(np.unique(docs)), "change_at": c,
        "calibration": calibration_values(clean, ~report, options.horizon),
        "false_alarms": false_alarms(clean, report),
        "classes": {"clean": clean.classes, "own": texts.classes}
        | {name: trace_.classes for name, trace_ in damaged.items()},
        **damage_study(clean, damaged, c, docs, calibration, rng),
        "own_loop": own_loop_study(texts, start, docs, calibration, rng),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """AUROC by damage and d, one column for each score."""
    names = None
    lines = []
    for kind in ("corrupt", "loop", "own_loop"):
        for d, comparison in result[kind].items():
            if not isinstance(comparison, dict) or "warning" not in comparison:
                continue
            if names is None:
                names = [name for name in comparison if not name.startswith("num_")]
                lines = [f"| damage | d | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
            cells = [
                "{:.3f} [{:.3f}, {:.3f}]".format(v["auroc"], *v["interval"])
                for v in (comparison[name] for name in names)
            ]
            lines.append(f"| {kind} | {d} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="run or checkpoint directory")
    parser.add_argument("--data", required=True, help="text the model was not trained on")
    parser.add_argument("--json", help="write the result here, not to results/stability.jsonl")
    parser.add_argument("--horizon", type=int, default=StabilityConfig().predictive_horizon)
    parser.add_argument("--share", type=float, default=0.5, help="of tokens replaced in corrupt")
    parser.add_argument("--temperature", type=float, default=0.15, help="of the model's own text")
    parser.add_argument("--max_windows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = study(options)
    print(table(result))
    print({key: result[key] for key in ("calibration", "false_alarms", "classes")})
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
        return
    from benchmarks.common import write_row  # here, as it imports transformers

    write_row("stability", result)


if __name__ == "__main__":
    main()
