"""Where a reply is stopped: by SRB, calibrated, and by others that spend as many tokens.

    srb        E <= θ_H, |ΔE| <= θ_Δ and C+ >= θ_C for τ steps (SRB derivation notes, section 4)
    fixed      after L tokens
    end_rule   before the first token at which p(end) >= a threshold
    random     after the tokens of another reply, dealt by chance

Calibration: for each of 27 triples (τ, θ_Δ and θ_C at quantiles of the signals), θ_H is the least
at which a target share of the replies exits; of the triples, the one whose exits are the cheapest
places of the same replies to end the turn, in nats under the model itself.

A trace (T,3) holds E, |ΔE| and C+ of each step of a reply. Shapes: N replies, R deals, T steps.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from reso_llm.decoding.controllers import SRB

PATIENCE, QUANTILES = (2, 4, 8), (0.25, 0.5, 0.75)
DEALS = 200


def trace_of(ema_nats: np.ndarray, coherence: np.ndarray) -> np.ndarray:
    """The trace of averaged entropies and C+, both (T,)."""
    change = np.abs(np.diff(ema_nats, prepend=math.nan))
    return np.stack([ema_nats, change, coherence], axis=-1)


def exit_after(trace: np.ndarray, options: SRB) -> int:
    """Tokens (T,3) that SRB lets through: up to the one after the first τ settled steps, or T."""
    needed = needed_nats(trace, options)
    fired = np.flatnonzero(needed <= options.settled_nats)
    return int(fired[0]) + 1 if len(fired) else len(trace)


def exit_share(traces: Sequence[np.ndarray], options: SRB) -> float:
    """Share of the replies that the rule ends before the model, or the cap, does."""
    return float(np.mean([exit_after(t, options) < len(t) for t in traces]))


def needed_nats(trace: np.ndarray, options: SRB) -> np.ndarray:
    """The least θ_H at which each step (T,) ends τ settled ones; inf where none does."""
    ema, change, coherence = trace.T
    steady = change <= options.settled_delta_nats
    held = np.where(steady & (coherence >= options.settled_coherence), ema, math.inf)
    held = np.concatenate([np.full(int(options.patience) - 1, math.inf), held])
    return np.lib.stride_tricks.sliding_window_view(held, int(options.patience)).max(-1)


def calibrated(traces: Sequence[np.ndarray], ends: Sequence[np.ndarray], target: float) -> SRB:
    """The rule that exits in a target share of the replies where ending costs fewest nats.

    ends[i] (T_i + 1,) are the nats of ending reply i after k tokens. Raises ValueError where no
    triple of thresholds reaches the target.
    """
    steps = np.concatenate(traces)
    candidates = []
    for patience, still, near in itertools.product(PATIENCE, QUANTILES, QUANTILES):
        triple = {
            "patience": patience,
            "settled_delta_nats": round(float(np.nanquantile(steps[:, 1], still)), 3),
            "settled_coherence": min(round(float(np.nanquantile(steps[:, 2], near)), 3), 1.0),
            "max_tokens": math.inf,
            "candidates": 0,
        }
        tried = SRB.published(**triple)
        least = sorted(needed_nats(t, tried)[:-1].min(initial=math.inf) for t in traces)
        nats = least[math.ceil(target * len(least)) - 1]
        if nats < math.inf:
            rule = SRB.published(settled_nats=math.ceil(nats * 1000) / 1000, **triple)
            candidates.append((_advantage(rule, traces, ends), rule))
    if not candidates:
        raise ValueError(f"no thresholds make {target:.0%} of these replies exit: ask for less")
    return max(candidates, key=lambda pair: pair[0])[1]


def _advantage(rule: SRB, traces: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> float:
    """Nats by which ending at the exits is cheaper than anywhere in the same replies, mean."""
    stops = [exit_after(t, rule) for t in traces]
    cut = [(e, k) for e, k, t in zip(ends, stops, traces, strict=True) if k < len(t)]
    return float(np.mean([e[1:].mean() - e[k] for e, k in cut])) if cut else -math.inf


# --- other places to stop


def dealt(
    stops: np.ndarray, lengths: np.ndarray, rng: np.random.Generator, deals: int = DEALS
) -> np.ndarray:
    """Stops (N,) dealt anew (R,N), evenly over all deals in which none exceeds its length (N,).

    A chain of swaps that are made where both fit: symmetric, so all deals are equally likely.
    """
    stops, all_deals = stops.copy(), []
    for deal in range(deals):
        for i, j in rng.integers(len(stops), size=((10 if deal else 100) * len(stops), 2)):
            if stops[i] <= lengths[j] and stops[j] <= lengths[i]:
                stops[i], stops[j] = stops[j], stops[i]
        all_deals.append(stops.copy())
    return np.stack(all_deals)


def fixed_stop(lengths: np.ndarray, mean: float) -> np.ndarray:
    """All cut at the one length whose mean tokens come nearest to `mean`."""
    cuts = [np.minimum(lengths, length) for length in range(1, lengths.max() + 1)]
    return min(cuts, key=lambda stops: abs(stops.mean() - mean))


def end_stops(ends: Sequence[np.ndarray], nats: float) -> np.ndarray:
    """Stops before the first token, but one, at which the end costs at most `nats`."""
    early = [np.flatnonzero(e[1:-1] <= nats) for e in ends]
    return np.array([x[0] + 1 if len(x) else len(e) - 1 for x, e in zip(early, ends, strict=True)])


def end_threshold(ends: Sequence[np.ndarray], mean: float) -> float:
    """The threshold in nats of `end_stops` whose mean tokens come nearest to `mean`."""
    values = np.quantile(np.concatenate([e[1:] for e in ends]), np.linspace(0, 1, 401))
    return float(min(values, key=lambda v: abs(end_stops(ends, v).mean() - mean)))
