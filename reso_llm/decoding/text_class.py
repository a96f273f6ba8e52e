"""Class of a text: stable, periodic, chaotic or divergent, by its surprise and its repetition.

    excess      mean of s_t - H_t        0 where the model expects the text as it is
    spread      deviation of s_t - H_t   large where some tokens fit and others do not
    repetition  mean loop score of the last tokens, 0 to 1
    class       argmax_c  ln N(features; mean_c, covariance)     linear discriminant, equal priors

s_t is the surprise of token t and H_t the entropy of the distribution it was drawn from, in nats.
Means are exponential, over WINDOW tokens, and begin at those of clean text: a text is stable until
its tokens say otherwise. The four classes are what their texts do to a model: clean text; text that
repeats itself; text half of whose tokens are replaced; text whose order is lost. `calibrated` reads
such texts. Source of the discriminant: Fisher 1936.

Shapes: N texts, T tokens, 4 classes, F = 3 features. Plain floats: it runs once a token.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from entropy_core.checks import require
from entropy_core.signals import LoopTracker
from reso_llm.config import StabilityConfig
from reso_llm.decoding.damage import looped, replaced, shuffled
from reso_llm.decoding.onset import Evidence, Onset

CLASSES = ("stable", "periodic", "chaotic", "divergent")
WINDOW = 64  # tokens
LOOP_WINDOW, MAX_PERIOD = 12, 32  # tokens; as `entropy_core.signals.loop_score` means them
FALSE_ALARMS = {"surprise": 0.03, "loop": 0.05}  # share of clean texts in which a cause may warn
FULL_LOOP = 0.95  # repetition that always warns: some clean texts, such as tables, are loops
LEAST_LOOP = 0.75  # repetition that never warns, however little the clean texts repeat themselves
MIN_TEXTS = 8  # to calibrate on

Reader = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Ids (N,T) -> surprise and entropy (N,T-1), in nats, of every token but the first."""


class StabilityCalibration(NamedTuple):
    """What clean and damaged texts look like to one model; plain numbers, kept with a checkpoint.

    means (4,F) and covariance (F,F) of the features; surprise_nats: mean of clean text; evidence:
    what a token says of damage (`onset.Evidence`); damage_alarm and surprise_alarm (log odds of
    damage, and of replaced tokens) and loop_alarm (repetition): the values that warn. The defaults
    are those of the shipped model.
    """

    means: Sequence[Sequence[float]] = (
        (0.19, 2.36, 0.16),
        (-0.02, 0.08, 1.0),
        (5.76, 6.61, 0.08),
        (5.24, 5.34, 0.10),
    )
    covariance: Sequence[Sequence[float]] = ((1.34, 0.72, 0.0), (0.72, 0.76, 0.0), (0, 0, 0.0036))
    surprise_nats: float = 4.1
    evidence: Sequence[float] = (0.25, -1.9, 0.08)
    damage_alarm: float = 4.6
    surprise_alarm: float = 3.3
    loop_alarm: float = 0.92


DEFAULT = StabilityCalibration()


class TextClass:
    """Running features of one text, and its class; `add` takes each token."""

    def __init__(self, calibration: StabilityCalibration) -> None:
        means, covariance = np.array(calibration.means), np.array(calibration.covariance)
        weights, offsets = linear_scores(means, covariance)
        self._scores = [(*w, o) for w, o in zip(weights.tolist(), offsets.tolist(), strict=True)]
        excess, spread, self.repetition = means[0].tolist()
        self.excess, self._square = excess, excess**2 + spread**2

    def add(self, excess_nats: float, repetition: float) -> None:
        """Take s - H of a token, in nats, and the loop score after it."""
        weight = 2 / (WINDOW + 1)
        self.excess += weight * (excess_nats - self.excess)
        self._square += weight * (excess_nats**2 - self._square)
        self.repetition += weight * (repetition - self.repetition)

    @property
    def features(self) -> tuple[float, float, float]:
        """Excess and spread, in nats, and repetition."""
        spread = math.sqrt(max(0.0, self._square - self.excess**2))
        return self.excess, spread, self.repetition

    @property
    def name(self) -> str:
        """The class, one of CLASSES."""
        excess, spread, repetition = self.features
        scores = [a * excess + b * spread + c * repetition + d for a, b, c, d in self._scores]
        return CLASSES[scores.index(max(scores))]


def linear_scores(means: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C,F) and offsets (C,): the class of features f is argmax(weights @ f + offsets)."""
    weights = np.linalg.solve(covariance, means.T).T
    return weights, -0.5 * (weights * means).sum(1)


def text_class(
    surprises: Sequence[float],
    entropies: Sequence[float],
    ids: Sequence[int],
    calibration: StabilityCalibration = DEFAULT,
) -> TextClass:
    """The class of a text that has been read: surprise, entropy (nats) and id of each token."""
    read = TextClass(calibration)
    for s, h, repetition in zip(surprises, entropies, repetitions(ids), strict=True):
        read.add(s - h, repetition)
    return read


def repetitions(ids: Sequence[int]) -> list[float]:
    """The loop score after each id."""
    tracker = LoopTracker(LOOP_WINDOW, MAX_PERIOD)
    return [tracker.add(int(token)) for token in ids]


def discriminant(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means (C,F) of C classes and their common covariance (F,F), of features (n_c,F) of each."""
    within = np.mean([np.cov(values.T, ddof=0) for values in features], axis=0)
    floor = np.diag(1e-3 * np.var([values.mean(0) for values in features], axis=0) + 1e-9)
    return np.stack([values.mean(0) for values in features]), within + floor


def calibrated(read: Reader, clean: np.ndarray, rng: np.random.Generator) -> StabilityCalibration:
    """The calibration of a model: `read` is its reading of ids, clean (N,T) ids of clean texts.

    The texts of the other classes are made of the clean ones. Use texts that the model was not
    trained on. Raises ValueError for fewer than MIN_TEXTS texts.
    """
    require(len(clean) >= MIN_TEXTS, "texts", len(clean), f"at least {MIN_TEXTS}")
    kinds = (clean, looped(clean, 0, rng), replaced(clean, 0, 0.5, rng), shuffled(clean, rng))
    traces = [read(ids) for ids in kinds]
    surprise, entropy = traces[0]
    repeated, excess = np.array([repetitions(ids[1:]) for ids in clean]), surprise - entropy
    typical = (float(excess.mean()), float(excess.std()), float(repeated.mean()))
    start = DEFAULT._replace(means=(typical, *DEFAULT.means[1:]))
    means, covariance = discriminant(
        [features_of(ids, trace, start) for ids, trace in zip(kinds, traces, strict=True)]
    )
    evidence = evidence_of(surprise, traces[2][0], repeated)
    highest = np.array(
        [highest_odds(evidence, *row) for row in zip(surprise, repeated, strict=True)]
    )  # (N,2)
    loop_alarm = float(np.quantile(repeated.max(1), 1 - FALSE_ALARMS["loop"]))
    return StabilityCalibration(
        means=means.tolist(),
        covariance=covariance.tolist(),
        surprise_nats=float(surprise.mean()),
        evidence=list(evidence),
        damage_alarm=float(np.quantile(highest[:, 0], 1 - sum(FALSE_ALARMS.values()))),
        surprise_alarm=float(np.quantile(highest[:, 1], 1 - FALSE_ALARMS["surprise"])),
        loop_alarm=min(FULL_LOOP, max(LEAST_LOOP, loop_alarm)),
    )


def evidence_of(clean: np.ndarray, replaced: np.ndarray, repeated: np.ndarray) -> Evidence:
    """What a token says of damage, from surprises of clean and half replaced texts (N,T), in nats.

    repeated (N,T) are the loop scores of the clean texts.
    """
    means, variance = discriminant([clean.reshape(-1, 1), replaced.reshape(-1, 1)])
    weights, offsets = linear_scores(means, variance)
    before = np.pad(repeated, ((0, 0), (1, 0)))[:, :-1]
    rises = float(((repeated > before) | (repeated == 1)).mean())
    slope, offset = float(weights[1, 0] - weights[0, 0]), float(offsets[1] - offsets[0])
    return Evidence(slope, offset, min(0.5, max(0.01, rises)))


def highest_odds(
    evidence: Evidence, surprises: np.ndarray, repeated: np.ndarray
) -> tuple[float, float]:
    """The largest log odds in a text of damage, and of replaced tokens alone.

    surprises (T,) in nats and loop scores (T,).
    """
    onset = Onset(evidence, StabilityConfig().predictive_horizon)
    damaged, replaced = [], []
    for s, repetition in zip(surprises.tolist(), repeated.tolist(), strict=True):
        onset.add(s, repetition)
        damaged.append(onset.damaged_nats)
        replaced.append(onset.replaced_nats)
    return max(damaged), max(replaced)


def features_of(
    ids: np.ndarray, trace: tuple[np.ndarray, np.ndarray], calibration: StabilityCalibration
) -> np.ndarray:
    """Features (N,F) at the end of texts (N,T) with their surprise and entropy (N,T-1)."""
    rows = zip(*trace, ids[:, 1:], strict=True)
    return np.array([text_class(s, h, row, calibration).features for s, h, row in rows])
