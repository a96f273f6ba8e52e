"""Claims of the CER's README on training, the zombie test, its measures and the 2.9 nat cage."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.claims import Evidence, Finding, Missing, combined, decided, newest
from benchmarks.heldout import shown
from cer.zombie import PUBLISHED
from entropy_core.commutation import commutation_cost
from entropy_core.information import semantic_mass

TRAINING = "python -m benchmarks.reactor_training"
NOISES = {"norm": "of an embedding's length", "absolute": "of deviation 1"}
CAGE_NATS, ABOUT = 2.9, 0.3


def training_diffusion(evidence: Evidence, arm: str) -> list[float]:
    """Nats that mixing adds in every reactor trained in an arm."""
    rows = newest(evidence.rows("reactor_training", arm=arm), "seed")
    return [reactor["diffusion"] for row in rows for reactor in row["diffusion"]]


def convergence(evidence: Evidence) -> Finding:
    """Do two reactors agree more when they are trained coupled than apart, in every seed?"""
    apart, coupled = (
        {r["seed"]: r["convergence"] for r in evidence.rows("reactor_training", arm=arm)}
        for arm in ("reactor", "coupled")
    )
    seeds = sorted(apart.keys() & coupled.keys())
    if not seeds:
        raise Missing("no seed of benchmarks/results/reactor_training.jsonl has both arms")
    means = [statistics.fmean(arm[s] for s in seeds) for arm in (apart, coupled)]
    return Finding(
        "agreement of two reactors' outputs (1 is equal): {:.3f} trained apart, {:.3f} coupled, "
        "{} seeds".format(*means, len(seeds)),
        decided(all(coupled[s] > apart[s] for s in seeds)), TRAINING,
    )  # fmt: skip


def zombie(quantity: str) -> Callable[[Evidence], Finding]:
    """Is the state-space model's quantity the larger one, for both sizes of noise, in every seed?

    The published noise is of deviation 1 whatever the embeddings' length, so it depends on the
    units that a model is written in; the other does not.
    """

    def decide(evidence: Evidence) -> Finding:
        rows = evidence.rows("zombie", data="tinyshakespeare.txt", quick=False)
        rows = newest(rows, "seed")
        words, verdicts = [], []
        for scale, title in NOISES.items():
            pairs = [[_noisy(m, quantity, scale) for m in row["models"]] for row in rows]
            means = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
            words.append("{:.2f} against {:.2f} with noise {}".format(*means, title))
            verdicts.append(decided(all(b > a for a, b in pairs)))
        published = "{} against {}".format(*PUBLISHED[quantity])
        return Finding(
            f"feed-forward against state-space, a pair equal in size and loss, {len(rows)} seeds: "
            f"{', '.join(words)} (published, an unequal pair: {published})",
            combined(*verdicts), "python evaluate.py zombie --data FILE",
        )  # fmt: skip

    return decide


def _noisy(model: dict, quantity: str, scale: str) -> float:
    return next(n[quantity] for n in model["noise"] if (n["scale"], n["level"]) == (scale, 1.0))


def cage(evidence: Evidence) -> Finding:
    """Mean entropy of a tuned model's tokens in its own replies, within .3 nats of 2.9."""
    row = evidence.row("srb", kind="study", model="SmolLM2-135M-Instruct")
    entropy = row["arms"]["static"]["own_entropy_nats"]
    return Finding(
        f"SmolLM2-135M-Instruct, the one tuned model we have: {shown(entropy, 2)} nats a token on "
        f"its own replies (holds within {ABOUT} of {CAGE_NATS})",
        decided(abs(entropy[0] - CAGE_NATS) <= ABOUT), "python evaluate.py srb --model DIR",
    )  # fmt: skip


def mass_limits(evidence: Evidence) -> Finding:
    """Computed now, on K = 128."""
    peaked, uniform = torch.zeros(2, 128, dtype=torch.float64)
    peaked[0] = 1e3
    masses = [float(semantic_mass(z)) for z in (peaked, uniform)]
    close = masses[0] < 1e-6 and abs(masses[1] - (1 - 1 / 128)) < 1e-6
    words = "M = {:.3g} peaked, {:.6f} uniform; 1 - 1/128 = {:.6f}".format(*masses, 1 - 1 / 128)
    return Finding(words, decided(close), "pytest tests/test_core_information.py")


def order_matters(evidence: Evidence) -> Finding:
    """Computed now: 0 where the order makes no difference, more where it does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64).softmax(-1)
    shifts = torch.tensor([0, 1, 2, 5, 3, 1, 4])
    same, other = (
        float(commutation_cost(system, _rotate, x, shifts).mu_nats.abs().max())
        for system in (_towards_uniform, _towards_first)
    )
    return Finding(
        f"{abs(round(same, 9)):g} nats where perturbing and evolving commute, {other:.2f} where "
        "they do not",
        decided(same < 1e-9 and other > 1e-3), "pytest tests/test_core_commutation.py",
    )  # fmt: skip


def _rotate(p: Tensor, shift: Tensor) -> Tensor:
    return p.roll(int(shift), -1)


def _towards_uniform(p: Tensor) -> Tensor:
    return 0.6 * p + 0.4 / p.shape[-1]


def _towards_first(p: Tensor) -> Tensor:
    first = torch.zeros_like(p)
    first[..., 0] = 0.4
    return 0.6 * p + first
