"""Training data of a reactor from text: views of the next byte, to be joined into one.

    x_s = P(byte t | byte t-s),  s = S..1 (the nearest view last)    target: byte t, all mass on it

So KL(target ‖ q) is the cross-entropy -ln q(byte t), nats per byte. The views are counted in the
training texts and interpolated with the unigram by Witten & Bell 1991:
P(b | a) = (N_ab + T_a u_b) / (N_a + T_a), T_a different bytes seen after a. They are 128 outcomes,
ASCII; a run of other characters is one SUB (26), which ASCII has for what it cannot write.

Shapes: B batch, S views, V = 128 outcomes, L bytes of all texts of a side.
"""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from cer.tasks import Batch, TaskConfig

OUTCOMES = 128
OTHER = re.compile(r"[^\x00-\x7f]+")
SUB = "\x1a"


def ascii_bytes(texts: Sequence[str]) -> Tensor:
    """The texts one after the other, a newline between two: (L,) int64, each below 128."""
    joined = OTHER.sub(SUB, "\n".join(texts))
    return torch.frombuffer(bytearray(joined, "ascii"), dtype=torch.uint8).long()


def unigram(text: Tensor) -> Tensor:
    """Frequencies of the bytes, half a count added to each: (L,) -> (V,)."""
    counts = text.bincount(minlength=OUTCOMES) + 0.5
    return counts / counts.sum()


def interpolated(counts: Tensor, lower: Tensor) -> Tensor:
    """Counts (..., V) of what followed a context, and lower (..., V) where it is cut: (..., V)."""
    types = (counts > 0).sum(-1, keepdim=True)
    seen = counts.sum(-1, keepdim=True)
    joined = (counts + types * lower) / (seen + types).clamp_min(1)
    return torch.where(seen > 0, joined, lower)


def count_views(text: Tensor, num_views: int) -> Tensor:
    """Tables P(b | a, distance): (L,) -> (S,V,V), distance 1 first."""
    lower = unigram(text)
    tables = []
    for distance in range(1, num_views + 1):
        pairs = text[:-distance] * OUTCOMES + text[distance:]
        counts = pairs.bincount(minlength=OUTCOMES**2).view(OUTCOMES, OUTCOMES)
        tables.append(interpolated(counts, lower))
    return torch.stack(tables)


class NextBytes:
    """Batches of the task `next_byte`; one is a function of the generator alone.

    The last texts are held out, the views counted in the others. Raises ValueError for fewer than
    2 texts, a side no longer than the views, or outcomes other than 128.
    """

    def __init__(self, config: TaskConfig, texts: Sequence[str]) -> None:
        self.num_views = config.num_positions
        if config.num_outcomes != OUTCOMES:
            raise ValueError(
                f"task next_byte has 128 outcomes, num_outcomes is {config.num_outcomes}"
            )
        num_held_out = math.ceil(config.val_fraction * len(texts))
        if num_held_out >= len(texts):
            raise ValueError(f"task next_byte needs at least 2 texts, got {len(texts)}")
        self.train = ascii_bytes(texts[:-num_held_out])
        self.held_out = ascii_bytes(texts[-num_held_out:])
        shortest = min(len(self.train), len(self.held_out))
        if shortest <= self.num_views:
            raise ValueError(
                f"{self.num_views} views need more than {shortest} bytes on either side"
            )
        self.views = count_views(self.train, self.num_views)

    def batch(self, size: int, generator: torch.Generator, *, held_out: bool = False) -> Batch:
        """`size` places of the training or the held-out text: x (B,S,V), target (B,1,V)."""
        text = self.held_out if held_out else self.train
        return self.at(text, self.places(text, size, generator))

    def places(self, text: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Random positions of a text that have all views: (B,)."""
        return torch.randint(self.num_views, len(text), (size,), generator=generator)

    def at(self, text: Tensor, places: Tensor) -> Batch:
        """The views of the bytes at `places`, and the bytes: (L,), (B,) -> Batch."""
        distance = torch.arange(self.num_views, 0, -1)
        x = self.views[distance - 1, text[places.unsqueeze(-1) - distance]]
        target = torch.nn.functional.one_hot(text[places], OUTCOMES).to(x.dtype)
        return Batch(x, target.unsqueeze(1))
