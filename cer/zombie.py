"""The zombie test: how much noise on its embeddings hurts a language model, and whether it matters
that the noise comes before or after the model reads them.

    ΔPPL(σ) = PPL(e + σξ) - PPL(e),    μ(σ) = KL( E_ξ[P_ξ(S(e))] ‖ E_ξ[S(P_ξ(e))] ),    ξ ~ N(0, 1)

e (B,T,D) are the token embeddings of a text. S reads them: all layers and the final norm, so that
the head U (V,D) turns a state s = S(e) into the next token's distribution softmax(U s). P adds
noise: before the reading to all T embeddings, after it to the states s. So S∘P perturbs and then
reads T tokens, and P∘S reads and then perturbs the states. Both use the same draw ξ, position by
position. None of this depends on how a model carries its state, so attention and recurrence are
measured alike. For S = id, and for S = a·id with a > 0, the two orders are the same and μ is 0.
μ > 0 means that reading does more to noise than rescale it.

The size of the noise is a scale and a level σ. On the scale `norm` its deviation per component is
σ times the mean length of the vectors it is added to, over √D. On the scale `absolute`, that of
the published figures, it is σ in both places and for both models. A pre-norm network written in
other units (embeddings and all that is added to them times c, head unchanged) is the same
function: `absolute` then measures something else, `norm` does not.
Source: CER README, "MCC Prediction 4".
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from entropy_core.commutation import CommutationCost, commutation_cost

SCALES = ("norm", "absolute")
UNIT_CHANGES = (0.1, 10.0)
QUANTITIES = ("delta_ppl", "commutation_nats")
# Published for gpt2 against mamba-130m: the feed-forward model is lower in both.
PUBLISHED = {"delta_ppl": (407.67, 4470.95), "commutation_nats": (0.4437, 0.8525)}
# Student's t, two-sided, by number of seeds; beyond the last its value is kept.
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


class Subject(NamedTuple):
    """A language model, reduced to what the test needs."""

    name: str
    table: Tensor  # (V,D) token embeddings
    states: Callable[[Tensor], Tensor]  # S: embeddings (B,T,D) -> input of the head (B,T,D)
    head: Tensor  # (V,D)


@dataclass(frozen=True)
class NoiseConfig:
    """Options of measuring a subject."""

    levels: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    num_draws: int = 16  # of ξ for μ
    num_ppl_draws: int = 4  # of ξ for ΔPPL
    num_positions: int = 4  # in the second half of a window, at which μ is taken


class Embedded(NamedTuple):
    """Embeddings (B,T,D) of a text before the model reads it; after that it is a distribution."""

    embeddings: Tensor


class Deviations(NamedTuple):
    """Standard deviations of the noise, per component."""

    before: float  # on embeddings
    after: float  # on states


def in_other_units(subject: Subject, factor: float) -> Subject:
    """The same function with embeddings `factor` times as long."""
    return subject._replace(
        name=f"{subject.name}, units x {factor:g}",
        table=subject.table * factor,
        states=lambda e: subject.states(e / factor),
    )


@torch.no_grad()
def deviations(subject: Subject, ids: Tensor, scale: str, level: float) -> Deviations:
    """Noise deviations at `level` for the text ids (B,T). ValueError for an unknown scale."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if scale == "absolute":
        return Deviations(level, level)
    embeddings = subject.table[ids]
    vectors = (embeddings, subject.states(embeddings))
    return Deviations(*(level * mean_length(v) / math.sqrt(v.shape[-1]) for v in vectors))


def mean_length(vectors: Tensor) -> float:
    """(..., D) -> mean Euclidean length."""
    return vectors.norm(dim=-1).mean().item()


@torch.no_grad()
def noisy_nats(subject: Subject, ids: Tensor, deviation: float, noise: Tensor) -> float:
    """Cross-entropy in nats per token of ids (B,T+1), mean over the draws noise (M,B,T,D)."""
    embeddings = subject.table[ids[:, :-1]]
    nats = []
    for draw in noise:
        logits = subject.states(embeddings + deviation * draw) @ subject.head.T
        nats.append(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    return torch.stack(nats).mean().item()


@torch.no_grad()
def commutation(
    subject: Subject, ids: Tensor, size: Deviations, noise: Tensor, num_positions: int = 1
) -> CommutationCost:
    """μ of the text ids (B,T) over the draws noise (M,B,T,D): fields (B, num_positions), nats.

    The positions are evenly spaced from the middle of the window to its end, or just its end.
    """
    T = ids.shape[1]
    at = torch.linspace(T - 1, T // 2, num_positions).long()

    def system(text: Embedded) -> Tensor:
        # In float64 no probability of a large vocabulary is rounded to 0.
        logits = subject.states(text.embeddings)[:, at] @ subject.head.T
        return logits.double().softmax(-1)

    def perturb(state: Embedded | Tensor, draw: Tensor) -> Embedded | Tensor:
        if isinstance(state, Embedded):
            return Embedded(state.embeddings + size.before * draw)
        # The head is linear: U(s + aξ) = Us + aUξ, and Us is ln p up to a constant.
        return (state.log() + size.after * (draw[:, at] @ subject.head.T)).softmax(-1)

    return commutation_cost(system, perturb, Embedded(subject.table[ids]), noise)


def measure(subject: Subject, ids: Tensor, config: NoiseConfig, seed: int) -> dict[str, Any]:
    """The record of one subject on ids (B,T+1) as plain values; `seed` draws the noise."""
    text, width = ids[:, :-1], subject.table.shape[1]
    noise = torch.randn(
        max(config.num_draws, config.num_ppl_draws), *text.shape, width,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    few = noise[: config.num_ppl_draws]
    clean = noisy_nats(subject, ids, 0.0, noise[:1])
    rows = []
    for scale in SCALES:
        for level in config.levels:
            size = deviations(subject, text, scale, level)
            nats = noisy_nats(subject, ids, size.before, few)
            cost = commutation(subject, text, size, noise[: config.num_draws], config.num_positions)
            rows.append({
                "scale": scale, "level": level, "nats": nats,
                "delta_ppl": math.exp(nats) - math.exp(clean),
                "commutation_nats": cost.corrected_nats.mean().item(),
                "commutation_plug_in_nats": cost.mu_nats.mean().item(),
            })  # fmt: skip
    embeddings = subject.table[text]
    return {
        "name": subject.name, "clean_nats": clean, "clean_ppl": math.exp(clean),
        "embedding_norm": mean_length(embeddings),
        "embedding_spread": mean_length(embeddings - embeddings.mean((0, 1))),
        "noise": rows,
    }  # fmt: skip


def unit_changes(
    subject: Subject, ids: Tensor, config: NoiseConfig, seed: int
) -> list[dict[str, float]]:
    """ΔPPL of the same function in other units, on the absolute scale."""
    shape = (config.num_ppl_draws, *ids[:, :-1].shape, subject.table.shape[1])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    clean = math.exp(noisy_nats(subject, ids, 0.0, noise[:1]))
    rows = []
    for factor in UNIT_CHANGES:
        other = in_other_units(subject, factor)
        for level in config.levels:
            delta = math.exp(noisy_nats(other, ids, level, noise)) - clean
            rows.append({"factor": factor, "level": level, "delta_ppl": delta})
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per scale, level and quantity over rows (one a seed) of two measured models.

    `difference` is state-space minus feed-forward, by pairs of equal seeds; its 95 % interval is
    Student's t, None for one seed. `published_direction` is "holds" where the interval is above 0
    (feed-forward the more robust), "reversed" below, else "open".
    """
    lines = []
    for k, noise in enumerate(rows[0]["models"][0]["noise"]):
        for quantity in QUANTITIES:
            ours, theirs = (
                [row["models"][i]["noise"][k][quantity] for row in rows] for i in range(2)
            )
            low, high = interval([b - a for a, b in zip(ours, theirs, strict=True)])
            verdict = "holds" if low and low > 0 else "reversed" if high and high < 0 else "open"
            lines.append({
                "scale": noise["scale"], "level": noise["level"], "quantity": quantity,
                "feed_forward": _mean(ours), "state_space": _mean(theirs),
                "difference": _mean(theirs) - _mean(ours), "low": low, "high": high,
                "published_direction": verdict,
            })  # fmt: skip
    return lines


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the mean, (None, None) for a single value."""
    if len(values) < 2:
        return None, None
    spread = torch.tensor(values, dtype=torch.float64).std().item() / math.sqrt(len(values))
    margin = T_95[min(len(values), max(T_95))] * spread
    return _mean(values) - margin, _mean(values) + margin


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return math.fsum(kept) / len(kept)
