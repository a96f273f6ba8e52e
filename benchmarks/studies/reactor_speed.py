"""Reactions per second of the reactor, against the obvious loop over torch's own modules.

python -m benchmarks.studies.reactor_speed --rounds 15

One reaction is one sample (16 positions of 128 outcomes) through six refinement steps. The naive
loop is `nn.MultiheadAttention`, `nn.Dropout` and the published control, which computes softmax and
entropy anew for each number it logs; both give the same numbers (checked before timing). Measured
in train mode, as the published protocol runs, in eval mode, and in corrected mode, each with and
without the trajectory log. Rounds are interleaved; a ratio is the median over rounds. No gradient.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.kit.records import write_row
from benchmarks.kit.timing import interleaved, median_ratio, rate
from cer.reactor import CoherentEntropyReactor

BATCHES = (1, 256)
POSITIONS = 16


class NaiveBlock(nn.Module):
    """Attention and feed-forward of torch's modules, with the weights of one of ours."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        attention, ffn = ours.attention, ours.ffn
        dim = attention.out.in_features
        self.attention = nn.MultiheadAttention(dim, attention.num_heads, 0.1, batch_first=True)
        self.attention.in_proj_weight = attention.in_weight
        self.attention.in_proj_bias = attention.in_bias
        self.attention.out_proj = attention.out
        self.ffn = nn.Sequential(ffn.up, nn.GELU(), nn.Dropout(0.1), ffn.down, nn.Dropout(0.1))
        self.norm1, self.norm2 = ours.attention_norm, ours.ffn_norm

    def forward(self, z: Tensor) -> Tensor:
        u = self.norm1(z)
        z = z + self.attention(u, u, u)[0]
        return z + self.ffn(self.norm2(z))


class NaiveReactor(nn.Module):
    """The published protocol as one would write it down."""

    def __init__(self, ours: CoherentEntropyReactor) -> None:
        super().__init__()
        self.encoder = nn.Sequential(ours.encoder, ours.encoder_norm)
        self.blocks = nn.ModuleList(map(NaiveBlock, ours.blocks))
        self.output = ours.output

    def forward(self, x: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        z, phase, log = self.encoder(x), 0.0, []
        for block in self.blocks:
            for _ in range(3):
                z = block(z)
                phase += 0.1 * 2.0 * math.sin(3.0 - entropy(z))
                z = z * (1 + 0.3 * math.sin(phase))
                z, deficit = drift(z)
                log.append(record(z, phase, deficit))
        return self.output(z), log


def entropy(z: Tensor) -> float:
    p = torch.softmax(z, -1)
    return -(p * torch.log(p + 1e-10)).sum(-1).mean().item()


def drift(z: Tensor) -> tuple[Tensor, float]:
    value = entropy(z)
    if value < 3.0:
        deficit = min(3.0 - value, 2.0)
        return z + torch.randn_like(z) * deficit * 0.1, deficit
    if value > 3.5:
        return z / max(0.5, 1 - 0.1 * (value - 3.0)), 3.0 - value
    return z, 0.0


def record(z: Tensor, phase: float, deficit: float) -> dict[str, float]:
    return {
        "entropy": entropy(z),
        "mass": 1 - torch.softmax(z, -1).pow(2).sum(-1).mean().item(),
        "phase": phase,
        "sum_p": torch.softmax(z, -1).sum(-1).mean().item(),
        "max_prob": torch.softmax(z, -1).max(-1).values.mean().item(),
        "deficit": deficit,
    }


def check_equal(naive: NaiveReactor, ours: CoherentEntropyReactor, x: Tensor) -> None:
    """Raise AssertionError unless both give the same numbers from the same seed."""
    torch.manual_seed(1)
    reactions, log = naive(x)
    torch.manual_seed(1)
    result = ours(x)
    torch.testing.assert_close(result.reactions, reactions, atol=1e-4, rtol=1e-3)
    for theirs, step in zip(log, result.trajectory, strict=True):
        assert all(abs(theirs[k] - getattr(step, k)) < 1e-4 for k in theirs)


def candidates(x: Tensor) -> dict[str, Callable[[], Any]]:
    """The calls to be timed, all with the same weights."""
    calls: dict[str, Callable[[], Any]] = {}
    for training in (True, False):
        torch.manual_seed(0)
        ours = CoherentEntropyReactor(mode="published").train(training)
        naive = NaiveReactor(ours).train(training)
        check_equal(naive, ours, x)
        name = "train" if training else "eval"
        calls |= {
            f"naive, {name}": lambda naive=naive: naive(x),
            f"published, {name}": lambda ours=ours: ours(x),
            f"published, {name}, no log": lambda ours=ours: ours(x, log=False),
        }
    corrected = CoherentEntropyReactor().eval()
    return calls | {
        "corrected": lambda: corrected(x),
        "corrected, no log": lambda: corrected(x, log=False),
    }


RATIOS = {
    "published over naive, train": ("published, train", "naive, train"),
    "published over naive, eval": ("published, eval", "naive, eval"),
    "corrected over naive, eval": ("corrected", "naive, eval"),
    "log cost, published, train": ("published, train, no log", "published, train"),
    "log cost, published, eval": ("published, eval, no log", "published, eval"),
    "log cost, corrected": ("corrected, no log", "corrected"),
}


def measure(batch: int, rounds: int) -> dict[str, Any]:
    """Reactions per second and ratios at one batch size."""
    x = torch.randn(batch, POSITIONS, 128, generator=torch.Generator().manual_seed(2)).softmax(-1)
    repeats = max(1, 24 // batch)
    timed = {
        name: rate(lambda call=call: [call() for _ in range(repeats)], batch * repeats)
        for name, call in candidates(x).items()
    }
    interleaved(timed, 1)  # warm
    speeds = interleaved(timed, rounds)
    medians = {name: statistics.median(some) for name, some in speeds.items()}
    ratios = {name: median_ratio(speeds[a], speeds[b]) for name, (a, b) in RATIOS.items()}
    return {"batch": batch, "rounds": rounds, "reactions_per_second": medians, "ratios": ratios}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Reactions per second.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    for batch in BATCHES:
        row = measure(batch, rounds)
        write_row("reactor_speed", row)
        print(f"batch {batch}")
        for name, speed in row["reactions_per_second"].items():
            print(f"  {name:28} {speed:9.1f} reactions/s")
        for name, ratio in row["ratios"].items():
            print(f"  {name:28} {ratio:9.3f}")


if __name__ == "__main__":
    main()
