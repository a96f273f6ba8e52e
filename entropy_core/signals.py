"""Streaming signals of a decoding run: entropy, its differences, its average, and coherence.

    ΔH_t = H_t - H_{t-1}          Δ²H_t = ΔH_t - ΔH_{t-1}
    E_t  = a H_t + (1 - a) E_{t-1},  E_0 = H_0          ΔE_t = E_t - E_{t-1}
    C+_t = cos(e_{t-1}, e_t),  e_t = mean of the last W token embeddings (fewer at the start)

Source: SRB derivation notes, sections 1 to 3. Shapes: B rows, T steps, V vocabulary, D width.

A value that does not exist yet is NaN: ΔH, ΔE and C+ at the first step, Δ²H at the first two, C+
of a zero vector. Every comparison with NaN is false, so a controller whose conditions are
comparisons that must hold cannot fire on it, whereas a 0 would read as "entropy has settled".
A NaN entropy is passed on; the average starts again at the next defined entropy.

`trace` reads whole sequences, in parallel over time; `SignalTracker` one row, token by token, as
plain numbers on the host, where decisions are taken. Each row owns its state, so rows may start at
different times.
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_core.information import entropy_nats, normalised_entropy


class Signals(NamedTuple):
    """Readings of one step of one row, or of a trace, each (B, T). NaN means undefined."""

    entropy_nats: float | Tensor
    normalised_entropy: float | Tensor
    delta_nats: float | Tensor
    delta2_nats: float | Tensor
    ema_nats: float | Tensor
    delta_ema_nats: float | Tensor
    coherence: float | Tensor


class SignalState(NamedTuple):
    """Past values that the next step needs; NaN and zeros before the first step."""

    entropy_nats: Tensor  # (B,)
    delta_nats: Tensor  # (B,)
    ema_nats: Tensor  # (B,)
    recent: Tensor  # (B, W, D) last W embeddings, oldest first


def init_state(
    batch_size: int,
    width: int,
    *,
    window: int = 8,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> SignalState:
    """State before the first token, for embeddings of `width` averaged over `window` tokens.

    Raises ValueError when window < 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    undefined = torch.full((batch_size,), math.nan, dtype=dtype, device=device)
    recent = torch.zeros(batch_size, window, width, dtype=dtype, device=device)
    return SignalState(undefined, undefined, undefined, recent)


def trace(
    state: SignalState,
    logits: Tensor,
    embeddings: Tensor,
    *,
    ema_weight: float = 0.2,
    min_prob: float | None = None,
) -> tuple[Signals, SignalState]:
    """Read T tokens: logits (B, T, V), embeddings (B, T, D) -> readings (B, T), new state.

    ema_weight is `a` above; min_prob selects the effective support of `normalised_entropy`.
    O(log T) sequential operations. Raises ValueError when ema_weight is outside (0, 1].
    """
    _check_weight(ema_weight)
    window = state.recent.shape[1]
    entropy = entropy_nats(logits)
    delta = entropy - _shifted(state.entropy_nats, entropy)
    ema = _ema_scan(entropy, state.ema_nats, ema_weight)
    history = torch.cat([state.recent, embeddings], dim=1)  # (B, W + T, D)
    sums = history.unfold(1, window, 1).sum(-1)  # (B, T + 1, D), the first one before this trace
    signals = Signals(
        entropy_nats=entropy,
        normalised_entropy=normalised_entropy(logits, min_prob),
        delta_nats=delta,
        delta2_nats=delta - _shifted(state.delta_nats, delta),
        ema_nats=ema,
        delta_ema_nats=ema - _shifted(state.ema_nats, ema),
        coherence=cosine(sums[:, :-1], sums[:, 1:]),
    )
    final = SignalState(entropy[:, -1], delta[:, -1], ema[:, -1], history[:, -window:])
    return signals, final


class SignalTracker:
    """`trace` of one row, one token at a time; the state of a decoding run.

    Raises ValueError for window < 1, and when ema_weight is outside (0, 1].
    """

    def __init__(self, window: int = 8, ema_weight: float = 0.2) -> None:
        _check_weight(ema_weight)
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window, self.ema_weight = window, ema_weight
        self._entropy = self._delta = self._ema = math.nan
        self._num_read, self._recent = 0, np.zeros((window, 0))  # (W, D) once D is known
        self._sum, self._norm = np.zeros(0), 0.0

    def update(
        self, entropy_nats: float, normalised_entropy: float, embedding: np.ndarray
    ) -> Signals:
        """Read the entropies of the next distribution and the embedding (D,) before it."""
        delta, last_delta = entropy_nats - self._entropy, self._delta
        last_ema = self._ema
        blend = self.ema_weight * entropy_nats + (1 - self.ema_weight) * last_ema
        ema = entropy_nats if math.isnan(last_ema) else blend
        self._entropy, self._delta, self._ema = entropy_nats, delta, ema
        coherence = self._turn(embedding)
        return Signals(
            entropy_nats,
            normalised_entropy,
            delta,
            delta - last_delta,
            ema,
            ema - last_ema,
            coherence,
        )

    def _turn(self, embedding: np.ndarray) -> float:
        """C+ after one more embedding. Sums stand for means; sums of few terms do not drift."""
        if self._num_read == 0:
            self._recent = np.zeros((self.window, *embedding.shape))
            self._sum = np.zeros(embedding.shape)
        self._recent[self._num_read % self.window] = embedding
        self._num_read += 1
        last, last_norm = self._sum, self._norm
        self._sum = np.add.reduce(self._recent)
        self._norm = math.sqrt(self._sum.dot(self._sum))
        if not (self._norm > 0 and last_norm > 0):
            return math.nan
        return float(last.dot(self._sum)) / (last_norm * self._norm)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """cos(a, b): (..., D) -> (...); NaN where either vector is zero, with zero gradient there.

    The scale of a vector does not matter, so sums may stand for means.
    """
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    defined = norms > 0
    return torch.where(defined, (a * b).sum(-1) / torch.where(defined, norms, 1.0), math.nan)


def loop_score(ids: Tensor, *, window: int, max_period: int) -> Tensor:
    """Periodicity of the last tokens: ids (B, T) -> (B,) in [0, 1], no unit.

    The largest share, over periods 1..max_period, of the last `window` tokens that equal the
    token one period earlier; 1 is an exact loop. NaN while T < window + max_period. Text whose
    entropy is low can be a fact or a loop: this tells which.
    """
    if ids.shape[1] < window + max_period:
        return torch.full((ids.shape[0],), math.nan, device=ids.device)
    T = ids.shape[1]
    tail = ids[:, T - window :]
    shares = [
        (tail == ids[:, T - window - period : T - period]).float().mean(1)
        for period in range(1, max_period + 1)
    ]
    return torch.stack(shares).amax(0)


class LoopTracker:
    """`loop_score` of the ids of one row so far, one id at a time; missing ids match nothing."""

    def __init__(self, window: int, max_period: int) -> None:
        self.window = window
        self._recent: deque[int] = deque(maxlen=max_period)  # newest first
        self._matched: deque[list[int]] = deque([[]] * window, maxlen=window)  # periods - 1
        self._counts = [0] * max_period

    def add(self, token_id: int) -> float:
        """The score after one more id."""
        matched = []
        if token_id in self._recent:  # most ids of a text that does not repeat are not
            matched = [i for i, recent in enumerate(self._recent) if recent == token_id]
        for i in self._matched[0]:
            self._counts[i] -= 1
        for i in matched:
            self._counts[i] += 1
        self._matched.append(matched)
        self._recent.appendleft(token_id)
        return max(self._counts) / self.window


def _check_weight(ema_weight: float) -> None:
    if not 0.0 < ema_weight <= 1.0:
        raise ValueError(f"ema_weight must be in (0, 1], got {ema_weight}")


def _shifted(first: Tensor, values: Tensor) -> Tensor:
    """values (B, T) one step later in time, starting with first (B,)."""
    return torch.cat([first[:, None], values[:, :-1]], dim=1)


def _ema_scan(values: Tensor, start: Tensor, weight: float) -> Tensor:
    """All averages E_t of values (B, T) after E = start (B,), by doubling (Hillis & Steele 1986).

    Step t is the affine map E -> keep·E + add; a scan composes maps over spans of 1, 2, 4, ...
    """
    restart = _shifted(start, values).isnan()
    keep = torch.where(restart, 0.0, 1 - weight).to(values.dtype)
    add = torch.where(restart, values, weight * values)
    first = torch.where(restart[:, 0], add[:, 0], add[:, 0] + keep[:, 0] * start)
    add = torch.cat([first[:, None], add[:, 1:]], dim=1)
    span = 1
    while span < values.shape[1]:
        # A map that keeps nothing must not see the past: 0 · NaN is NaN.
        past = torch.where(keep[:, span:] == 0, 0.0, add[:, :-span])
        add = torch.cat([add[:, :span], add[:, span:] + keep[:, span:] * past], dim=1)
        keep = torch.cat([keep[:, :span], keep[:, span:] * keep[:, :-span]], dim=1)
        span *= 2
    return add
