"""Inputs of a reactor: every position of every sample is a probability distribution.

`as_distributions` turns an array into a tensor (B,S,D_in), or raises an error that names the first
wrong entry, before the reactor runs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ArrayLike = Tensor | np.ndarray | Sequence

SUM_TOLERANCE = 1e-3  # of a row's distance from 1
HALF_SUM_TOLERANCE = 1e-2  # the same where the caller's numbers have 8 to 11 bits


def as_distributions(x: ArrayLike, like: Tensor, width: int, *, normalise: bool = False) -> Tensor:
    """x as distributions (B,S,width) of the dtype and device of `like`.

    x is a tensor, an array or nested lists of real numbers. normalise=True divides each row of
    weights by its sum; without it a row that does not sum to 1 is refused.

    Raises TypeError for what is no array of real numbers; ValueError for another shape, an empty
    batch, a number that is not finite or negative, or a row that does not sum to 1.
    """
    x = _as_tensor(x)
    if x.dim() != 3 or x.shape[-1] != width:
        raise ValueError(f"x must be (batch, positions, {width}), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x is empty: {tuple(x.shape)}; give at least one sample and position")
    is_half = x.is_floating_point() and x.dtype.itemsize < 4
    tolerance = HALF_SUM_TOLERANCE if is_half else SUM_TOLERANCE
    exact = x.double() if x.dtype == torch.float64 else x.float()
    if normalise:
        _check_numbers(exact)
        exact = exact / exact.amax(-1, keepdim=True)  # so that no sum overflows; 0/0 is refused
        exact = exact / exact.sum(-1, keepdim=True)
        _refuse(exact.isnan(), exact, "cannot be normalised: its row is all 0")
        return exact.to(like)
    wrong = ~((exact.sum(-1) - 1).abs() <= tolerance)  # NaN and infinity among them
    if bool(wrong.any()) or bool((exact < 0).any()):
        _check_numbers(exact)
        row = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"x[{row[0]}, {row[1]}] sums to {exact[row].sum().item():.6g}, not 1: give probability "
            "distributions, softmax(x) say, or pass normalise=True to divide each row by its sum"
        )
    return x.to(like)


def _check_numbers(x: Tensor) -> None:
    _refuse(~x.isfinite(), x, "is not finite")
    _refuse(x < 0, x, "is negative: a probability is at least 0")


def _as_tensor(x: ArrayLike) -> Tensor:
    """Tensor of real numbers; TypeError for anything else."""
    if not isinstance(x, Tensor):
        try:
            x = torch.from_numpy(np.array(x))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"x must be a tensor, an array or nested lists of equal length, holding real "
                f"numbers: {error}"
            ) from error
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"x must hold real numbers, got {x.dtype}")
    return x


def _refuse(wrong: Tensor, x: Tensor, why: str) -> None:
    """ValueError naming the first entry that is wrong."""
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f"x[{', '.join(map(str, at))}] = {x[at].item()} {why}")
