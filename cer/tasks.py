"""Training data of a reactor: distributions seen through a few samples, to be restored.

    x_s = histogram of n draws from p_s / n,   s = 1..S       target p

* denoise: p_s = p for all s: S independent views of one distribution; the target is p at each.
* predict: p_s moves on from position to position; the target is the distribution after the last.
* next_byte: p_s is the next byte of a text as its s-th byte back tells it (`cer.next_byte`).

Synthetic distributions live on a circle of V outcomes: peaked, uniform on an arc, Zipf,
discretised Gaussian, and mixtures of two of them. To move is to turn by a constant number of
outcomes a step. A file holds sequences of next-token distributions dumped from a language model.

Shapes: B batch, S positions, V outcomes, R sequences of T distributions in a file.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

FAMILIES = ("peaked", "uniform", "zipf", "gaussian", "mixture")
MAX_SPEED = 3  # outcomes a step
Task = Literal["denoise", "predict", "next_byte"]


class Batch(NamedTuple):
    """Inputs of the reactor and the answers wanted."""

    x: Tensor  # (B,S,V) distributions
    target: Tensor  # denoise (B,S,V); predict (B,1,V), the answer wanted at the last position


def _rows(num: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(num, 1, generator=generator)


def _pure(family: str, num: int, V: int, generator: torch.Generator) -> Tensor:
    """`num` distributions of one family, centred on outcome 0: (num,V)."""
    k = torch.arange(V)
    away = torch.minimum(k, V - k).float()  # distance from outcome 0 on the circle
    if family == "peaked":
        share = _rows(num, 0.7, 0.99, generator)
        return (1 - share) / (V - 1) + (share - (1 - share) / (V - 1)) * (k == 0)
    if family == "uniform":
        p = (k < _rows(num, V / 8, V, generator)).float()
    elif family == "zipf":
        p = (k + 1.0) ** -_rows(num, 0.8, 2.0, generator)
    else:
        p = torch.exp(-0.5 * (away / _rows(num, 0.7, V / 8, generator)).square())
    return p / p.sum(-1, keepdim=True)


def turn(p: Tensor, steps: Tensor) -> Tensor:
    """Turn the circle: outcome k of p moves to k + steps: (N,V), (N,) int64 -> (N,V)."""
    V = p.shape[-1]
    return p.gather(-1, (torch.arange(V) - steps.unsqueeze(-1)) % V)


def draw_family(family: str, num: int, V: int, generator: torch.Generator) -> Tensor:
    """`num` distributions of one family, turned at random: (num,V).

    Raises ValueError for an unknown family or fewer than 8 outcomes.
    """
    if family not in FAMILIES or V < 8:
        raise ValueError(f"need a family of {FAMILIES} and V >= 8, got {family!r} and {V}")
    if family != "mixture":
        p = _pure(family, num, V, generator)
        return turn(p, torch.randint(V, (num,), generator=generator))
    parts = torch.stack([draw_family(f, num, V, generator) for f in FAMILIES[:-1]], 1)  # (num,4,V)
    weights = torch.rand(num, 4, generator=generator)
    chosen = weights.topk(2, dim=-1)
    weights = torch.zeros(num, 4).scatter(-1, chosen.indices, chosen.values)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights.unsqueeze(-1) * parts).sum(1)


def observe(p: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Histograms of num_draws independent draws, summing to 1: (..., V) -> (..., V)."""
    flat = p.reshape(-1, p.shape[-1])
    drawn = torch.multinomial(flat, num_draws, replacement=True, generator=generator)
    counts = torch.zeros_like(flat).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=p.dtype))
    return (counts / num_draws).view(p.shape)


@dataclass(frozen=True)
class TaskConfig:
    """Data of a reactor. Raises ValueError for an option out of range.

    Args:
        task: restore a distribution, predict the one after the last, or the next byte of a text.
        data: an .npz dumped from a language model; without it the synthetic families. For
            next_byte: whatever a language model trains on.
        num_outcomes: V, outcomes of a distribution.
        num_positions: S, views of a distribution.
        num_draws: n, draws behind each view; fewer are more noise. next_byte has none.
        val_fraction: share of the file's sequences, or of the texts, held out.
    """

    task: Task = "denoise"
    data: str | None = None
    num_outcomes: int = 128
    num_positions: int = 16
    num_draws: int = 16
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(f"task must be denoise, predict or next_byte, got {self.task!r}")
        for name, least in (("num_outcomes", 8), ("num_positions", 1), ("num_draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must be inside (0, 1), got {self.val_fraction}")


class Distributions:
    """Batches of a task; one is a function of the generator alone.

    Raises ValueError when the file has no fitting distributions (see `load_distributions`).
    """

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self._train = self._held_out = None
        if config.data is not None:
            rows = load_distributions(config.data, config.num_outcomes, self._length)
            num_held_out = math.ceil(config.val_fraction * len(rows))
            if num_held_out == len(rows):
                raise ValueError(f"{config.data} needs at least 2 sequences, it has {len(rows)}")
            self._train, self._held_out = rows[:-num_held_out], rows[-num_held_out:]

    @property
    def _length(self) -> int:
        """Consecutive distributions behind one example."""
        return self.config.num_positions + 1 if self.config.task == "predict" else 1

    def batch(self, size: int, generator: torch.Generator, *, held_out: bool = False) -> Batch:
        """`size` examples; held_out takes the file's held-out sequences."""
        c = self.config
        p = self._clean(size, generator, held_out)  # (B,length,V)
        if c.task == "predict":
            return Batch(observe(p[:, :-1], c.num_draws, generator), p[:, -1:])
        p = p.expand(-1, c.num_positions, -1)
        return Batch(observe(p, c.num_draws, generator), p)

    def _clean(self, size: int, generator: torch.Generator, held_out: bool) -> Tensor:
        if self._train is None:
            return self._synthetic(size, generator)
        rows = self._held_out if held_out else self._train
        row = torch.randint(len(rows), (size, 1), generator=generator)
        last_start = rows.shape[1] - self._length
        start = torch.randint(last_start + 1, (size, 1), generator=generator)
        return rows[row, start + torch.arange(self._length)]

    def _synthetic(self, size: int, generator: torch.Generator) -> Tensor:
        V, T = self.config.num_outcomes, self._length
        drawn = torch.stack([draw_family(f, size, V, generator) for f in FAMILIES], 1)  # (B,5,V)
        family = torch.randint(len(FAMILIES), (size,), generator=generator)
        p = drawn[torch.arange(size), family]
        speed = torch.randint(-MAX_SPEED, MAX_SPEED + 1, (size, 1), generator=generator)
        moved = (speed * torch.arange(T)).flatten()  # (B·T,)
        return turn(p.repeat_interleave(T, 0), moved).view(size, T, V)


def load_distributions(path: str | Path, num_outcomes: int, length: int) -> Tensor:
    """Array `probabilities` (R,T,V) of an .npz: sequences of next-token distributions, float32.

    Raises ValueError naming the file when it is unreadable or lacks the array, when V differs from
    num_outcomes, T is below `length`, or a row is no distribution.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            p = torch.from_numpy(file["probabilities"]).float()
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no .npz with an array `probabilities`: {error}") from error
    if p.dim() != 3 or p.shape[-1] != num_outcomes or p.shape[1] < length:
        expected = f"(R, T >= {length}, {num_outcomes})"
        raise ValueError(f"{path}: probabilities must be {expected}, got {tuple(p.shape)}")
    if not ((p >= 0).all() and ((p.sum(-1) - 1).abs() < 1e-3).all()):
        raise ValueError(f"{path}: a row of probabilities is not a distribution")
    return p / p.sum(-1, keepdim=True)
