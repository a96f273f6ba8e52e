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
documents; of several seeds the table gives the means of values and ends.

Then the classes of whole texts are judged (`classes.py`); with --model, of a model of transformers,
they alone, as its states are not ours.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.kit import heldout
from benchmarks.kit.records import Records, Row
from benchmarks.kit.writers import ResoWriter
from benchmarks.tasks.stability.classes import TOKENS, class_study
from benchmarks.tasks.stability.damage import sampled, windows
from benchmarks.tasks.stability.scores import (
    RESAMPLES,
    Trace,
    damage_study,
    false_alarms,
    own_loop_study,
    trace,
)
from benchmarks.tasks.stability.tables import figure, text
from reso_llm.config import StabilityConfig
from reso_llm.decoding.damage import looped, replaced
from reso_llm.decoding.text_class import DEFAULT
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel

__all__ = ["add_options", "figure", "run", "text"]

QUICK_RESAMPLES = 10
QUICK_TEXTS, QUICK_CLASS_TOKENS = 40, 64
QUICK_WINDOWS, QUICK_TOKENS = 12, 128  # the bundled dialogues are short


def add_options(parser: Any) -> None:
    heldout.add_checkpoint_option(parser)
    heldout.add_data_option(parser)
    parser.add_argument("--model", type=str, help="classes of a model of transformers instead")
    parser.add_argument("--horizon", type=int, default=StabilityConfig().predictive_horizon)
    parser.add_argument("--share", type=float, default=0.5, help="of tokens replaced in corrupt")
    parser.add_argument("--temperature", type=float, default=0.15, help="of the model's own text")
    parser.add_argument("--max_windows", type=int, default=200)
    parser.add_argument("--texts", type=int, default=200, help="clean texts of the classes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def run(options: Any) -> list[Row]:
    """One row for each seed. ValueError where too few documents fill the model's context."""
    spec, quick = heldout.data_of(options), options.quick
    seeds = options.seeds[:1] if quick else options.seeds
    records, rows = Records("stability", options.record), []
    if options.model is None:
        rows += warning_rows(options, spec, seeds, records)
    writer = ResoWriter(options.checkpoint) if options.model is None else _pretrained(options.model)
    most, tokens = (QUICK_TEXTS, QUICK_CLASS_TOKENS) if quick else (options.texts, TOKENS)
    tokens = min(tokens, writer.context // 2)
    key = {"kind": "classes", "checkpoint": writer.name, "data": heldout.data_name(spec)}
    key |= {"weights": writer.weights, "max_texts": most, "tokens": tokens}
    for seed in tqdm(seeds, desc="classes", leave=False, disable=None):
        rows.append(records.row({**key, "seed": seed}, lambda seed=seed: class_study(
            writer, spec, most, seed, tokens
        )))  # fmt: skip
    return rows


def _pretrained(name: str) -> Any:
    from benchmarks.kit.pretrained import PretrainedWriter

    return PretrainedWriter(name)


def warning_rows(options: Any, spec: str, seeds: list[int], records: Records) -> list[Row]:
    """The rows of the warning. ValueError where too few documents fill the model's context."""
    engine, quick = ResoLLMInference.from_pretrained(options.checkpoint), options.quick
    split, _ = heldout.held_out(spec, engine.tokenizer)
    most = QUICK_WINDOWS if quick else options.max_windows
    context = engine.config.max_seq_len
    ids, docs = windows(split, min(context, QUICK_TOKENS) if quick else context, most)
    config = StabilityConfig(enabled=True, predictive_horizon=options.horizon)
    read = functools.partial(trace, engine.model, config, engine.stability_calibration or DEFAULT)
    clean = functools.cache(lambda: read(ids))  # the same for every seed
    resamples = QUICK_RESAMPLES if quick else RESAMPLES
    key = heldout.names_of(options.checkpoint, spec) | {"max_windows": most}
    key |= {name: options[name] for name in ("horizon", "share", "temperature")}
    rows = []
    for seed in tqdm(seeds, desc="seeds", leave=False, disable=None):
        rows.append(records.row({**key, "kind": "warning", "seed": seed}, lambda seed=seed: study(
            engine.model, read, clean(), docs, options.share, options.temperature, seed, resamples
        )))  # fmt: skip
    return rows


def study(
    model: ResoLLMModel, read: Callable[[np.ndarray], Trace], clean: Trace, docs: np.ndarray,
    share: float, temperature: float, seed: int, resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """The measurement of one seed on clean windows (N, T) of documents (N,), as plain values."""
    rng, ids = np.random.default_rng(seed), clean.ids
    c, start = ids.shape[1] * 5 // 8, ids.shape[1] // 8
    calibration = rng.permutation(np.unique(docs))[: len(np.unique(docs)) // 2]
    damaged_ids = {"corrupt": replaced(ids, c, share, rng), "loop": looped(ids, c, rng)}
    damaged = {name: read(rows) for name, rows in damaged_ids.items()}
    generator = torch.Generator().manual_seed(seed)
    own = sampled(model, ids[:, :start], temperature, generator)
    texts = read(own)
    report = ~np.isin(docs, calibration)
    return {
        "num_windows": len(ids), "num_documents": len(np.unique(docs)), "change_at": c,
        "false_alarms": false_alarms(clean, report),
        "classes": {"clean": clean.classes, "own": texts.classes}
        | {name: trace_.classes for name, trace_ in damaged.items()},
        **damage_study(clean, damaged, c, docs, calibration, resamples),
        **own_loop_study(texts, start, docs, calibration, resamples),
    }  # fmt: skip
