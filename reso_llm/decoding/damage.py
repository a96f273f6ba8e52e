"""Damaged texts, made of clean ones: a span repeated, tokens replaced, the order lost.

Shapes: N texts, T tokens.
"""

import numpy as np


def replaced(ids: np.ndarray, c: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Texts (N, T) with a share of the tokens from c on drawn from all tokens of the data."""
    replace = rng.random(ids.shape) < share
    replace[:, :c], replace[:, c] = False, True
    return np.where(replace, rng.choice(ids.ravel(), ids.shape), ids)


def looped(ids: np.ndarray, c: int, rng: np.random.Generator) -> np.ndarray:
    """Texts (N, T) that from c on repeat 2 to 16 tokens: those before c, or the first for c = 0."""
    damaged = ids.copy()
    for row in damaged:
        period = rng.integers(2, 17)
        first = max(0, c - period)
        row[c:] = np.resize(row[first : first + period].copy(), len(row) - c)
    return damaged


def shuffled(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Texts (N, T), each with its own tokens in another order."""
    return rng.permuted(ids, axis=1)
