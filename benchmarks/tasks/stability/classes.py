"""Does the monitor's class tell clean text, a loop, damaged text and lost text apart?

Texts of T tokens from held-out documents, and what the class should be:
* stable: the text as it is;
* periodic: the model's own text at a low temperature, where it has fallen into a loop;
* chaotic: half of the tokens replaced by tokens drawn from all of the data;
* divergent: the text shuffled, or, of every second one, the model's own text at T = 3.

The class at the end of a text is judged: balanced accuracy, with a bootstrap interval over texts.
"kept" is the calibration that came with the checkpoint. "refitted" is one made on half of the
documents, from clean texts and what `text_class.calibrated` makes of them, and judged on the other
half. "with exponent" has the exponent of the states as one more feature, "no spread" has one less.

Shapes: N texts, T tokens, F features, 4 classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.kit.pretrained import Writer
from benchmarks.kit.statistics import bootstrap_groups, groups_of
from benchmarks.kit.writers import ResoWriter
from benchmarks.tasks.stability.damage import loop_onset
from entropy_core.information import entropy_nats
from reso_llm.data.prepare import tokenise_all
from reso_llm.data.sources import read_documents
from reso_llm.decoding.damage import looped, replaced, shuffled
from reso_llm.decoding.text_class import (
    CLASSES,
    DEFAULT,
    MIN_TEXTS,
    calibrated,
    discriminant,
    features_of,
    linear_scores,
)
from reso_llm.generation.nudge import text_exponents

TOKENS = 128  # of a text; of its prompt an eighth, and half of a looping text is in the loop
RESAMPLES = 300
LOOP_TEMPERATURE, HOT_TEMPERATURE = 0.15, 3.0


def class_study(writer: Writer, spec: str, most: int, seed: int, tokens: int = TOKENS) -> dict:
    """The measurement of one model on at most `most` clean texts, as plain values."""
    rng = np.random.default_rng(seed)
    ids, docs = clean_texts(writer, spec, most, tokens, rng)
    reader = _Reader(writer)
    fitted = np.isin(docs, rng.permutation(np.unique(docs))[: len(np.unique(docs)) // 2])
    if min(fitted.sum(), (~fitted).sum()) < MIN_TEXTS:
        raise ValueError(f"{len(ids)} texts of {tokens} tokens: expected {2 * MIN_TEXTS} or more")
    calibration = calibrated(reader.read, ids[fitted], rng)
    clean = ids[fitted]
    made = [clean, looped(clean, 0, rng), replaced(clean, 0, 0.5, rng), shuffled(clean, rng)]
    texts = test_texts(writer, ids, rng, seed)
    kept = getattr(writer, "engine", None) and writer.engine.stability_calibration
    result: dict[str, Any] = {"num_texts": {k: len(v) for k, v in zip(CLASSES, texts, strict=True)}}
    if kept:
        features = [reader.features(rows, kept) for rows in texts]
        result["kept"] = accuracy(np.array(kept.means), np.array(kept.covariance), features)
    fit = [reader.features(rows, calibration) for rows in made]
    test = [reader.features(rows, calibration) for rows in unseen(texts, ~fitted, len(ids))]
    result["refitted"] = accuracy(*discriminant(fit), test)
    without = [0, 2]
    result["no spread"] = accuracy(*discriminant([f[:, without] for f in fit]),
                                   [f[:, without] for f in test])  # fmt: skip
    if isinstance(writer, ResoWriter):
        more = reader.widened(fit, made)
        wider = reader.widened(test, unseen(texts, ~fitted, len(ids)))
        result["with exponent"] = accuracy(*discriminant(more), wider)
        result["exponent alone"] = accuracy(*discriminant([f[:, 3:] for f in more]),
                                            [f[:, 3:] for f in wider])  # fmt: skip
        result["exponents"] = {
            name: [float(f[:, 3].mean()), float(f[:, 3].std())]
            for name, f in zip(CLASSES, wider, strict=True)
        }
    return result


def clean_texts(
    writer: Writer, spec: str, most: int, tokens: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Texts (N,T) of the documents of a file, at most `most`, and the document of each (N,)."""
    if isinstance(writer, ResoWriter):
        split = tokenise_all(spec, writer.engine.tokenizer)
        documents = np.split(np.asarray(split.tokens, dtype=np.int64), split.doc_starts[1:])
    else:
        documents = [
            np.array(writer.encode(d.text or "\n\n".join(m.content for m in d.messages)))
            for d in read_documents(spec)
        ]
    pieces = [
        (doc, ids[t : t + tokens])
        for doc, ids in enumerate(documents)
        for t in range(0, len(ids) - tokens + 1, tokens)
    ]
    drawn = [pieces[i] for i in rng.permutation(len(pieces))[:most]]
    if not drawn:
        raise ValueError(f"{spec}: no document of {tokens} tokens or more")
    return np.stack([ids for _, ids in drawn]), np.array([doc for doc, _ in drawn])


def test_texts(
    writer: Writer, ids: np.ndarray, rng: np.random.Generator, seed: int
) -> list[np.ndarray]:
    """Texts of each class, made of clean ones (N,T); of the looping ones those that do loop."""
    tokens, prompt, looping = ids.shape[1], ids.shape[1] // 8, ids.shape[1] // 2
    prompts = [writer.spell(row[:prompt].tolist()) for row in ids]
    seeds = list(range(seed, seed + len(ids)))
    room = min(tokens + looping, writer.context - 2 * prompt)
    own = _written(writer, prompts, seeds, LOOP_TEMPERATURE, room)
    onsets = [loop_onset(row, 0) for row in own]
    loops = [row[-tokens:] for row, at in zip(own, onsets, strict=True)
             if at is not None and at <= len(row) - looping]  # fmt: skip
    lost = shuffled(ids, rng)
    lost[::2] = _written(writer, prompts[::2], seeds[::2], HOT_TEMPERATURE, tokens)
    return [ids, np.array(loops).reshape(-1, tokens), replaced(ids, 0, 0.5, rng), lost]


def _written(
    writer: Writer, prompts: Sequence[str], seeds: Sequence[int], temperature: float, length: int
) -> np.ndarray:
    texts = writer.write(prompts, seeds, {"temperature": temperature}, length)
    return np.array([text.ids for text in texts])


def unseen(texts: list[np.ndarray], kept: np.ndarray, num_clean: int) -> list[np.ndarray]:
    """Of each class the texts made of the documents `kept` (N,); own loops are all unseen."""
    return [rows[kept] if len(rows) == num_clean else rows for rows in texts]


class _Reader:
    """Reads texts by a writer's model."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._read: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    @torch.inference_mode()
    def read(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Surprise and entropy (N,T-1), in nats, of every token but the first."""
        return tuple(np.stack(rows) for rows in zip(*map(self._row, ids), strict=True))

    def _row(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = ids.tobytes()
        if key not in self._read:
            tokens = torch.from_numpy(ids)[None]
            log_p = self.writer.logits(tokens)[0, :-1].float().log_softmax(-1)
            surprise = -log_p.gather(-1, tokens[0, 1:, None])[:, 0]
            self._read[key] = surprise.numpy(), entropy_nats(log_p).numpy()
        return self._read[key]

    def features(self, ids: np.ndarray, calibration=DEFAULT) -> np.ndarray:
        return features_of(ids, self.read(ids), calibration)

    def widened(self, features: list[np.ndarray], texts: list[np.ndarray]) -> list[np.ndarray]:
        """Features (n,F+1): those (n,F) and the exponent of our model on texts (n,T)."""
        pairs = zip(features, map(self._exponents, texts), strict=True)
        return [np.column_stack(pair) for pair in pairs]

    def _exponents(self, ids: np.ndarray) -> list[float]:
        rows = torch.from_numpy(ids).split(16)
        return [x for some in rows for x in text_exponents(self.writer.engine.model, some)]


def accuracy(means: np.ndarray, covariance: np.ndarray, features: list[np.ndarray]) -> dict:
    """Balanced accuracy with its interval, and the share of each class (row) called each (column).

    features: (n_c,F) of each class, means (4,F) and covariance (F,F) of the discriminant.
    """
    weights, offsets = linear_scores(means, covariance)
    called = [(f @ weights.T + offsets).argmax(1) for f in features]
    labels = np.repeat(np.arange(4), [len(c) for c in called])
    right = np.concatenate([c == k for k, c in enumerate(called)]).astype(float)

    def balanced(drawn: np.ndarray) -> float:
        shares = [right[drawn][labels[drawn] == k] for k in range(4)]
        return float(np.mean([share.mean() if len(share) else 0.0 for share in shares]))

    interval = bootstrap_groups(balanced, groups_of(np.arange(len(right))), RESAMPLES)
    return {
        "balanced_accuracy": list(interval),
        "called": {
            name: [float((c == k).mean()) for k in range(4)]
            for name, c in zip(CLASSES, called, strict=True)
        },
    }
