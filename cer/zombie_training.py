"""Two language models trained to the same validation loss on the same bytes.

Both read windows in the same order and are snapshot on the way. The common loss is the worse of
their two best; each model becomes the point on its own path at which it first had that loss, found
between the two snapshots around it by bisection:

    w(α) = (1 - α) w_k + α w_{k+1},   loss(w(α)) = common loss

Without this a comparison of two models measures which one was trained further.
Shapes: ids (B,T+1) hold inputs and targets. Losses are nats per byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cer.zombie_models import TinyLM

MARKOV_SYMBOLS = 24
VALID_SHARE = 0.1
BISECTIONS = 8
WARMUP_STEPS = 20


@dataclass(frozen=True)
class TrainingConfig:
    """Options of training the pair."""

    steps: tuple[int, int] = (900, 200)  # feed-forward, state-space, which learns in fewer
    batch_size: int = 16
    learning_rate: float = 3e-3
    eval_every: int = 10  # steps from one snapshot to the next


class Corpus(NamedTuple):
    """Bytes as ids 0..V-1, in the order of their values; the last tenth is held out."""

    train: Tensor  # (number of bytes,)
    valid: Tensor
    vocab_size: int


class Path(NamedTuple):
    """Snapshots of one training and their validation losses."""

    weights: tuple[Mapping[str, Tensor], ...]
    losses: tuple[float, ...]  # nats per byte


def make_corpus(text: bytes, context: int) -> Corpus:
    """Raises ValueError when the held-out tenth is shorter than 8 windows of `context`."""
    values, ids = np.unique(np.frombuffer(text, dtype=np.uint8), return_inverse=True)
    cut = int(len(ids) * (1 - VALID_SHARE))
    if len(ids) - cut < 8 * (context + 1):
        need = int(8 * (context + 1) / VALID_SHARE) + 10
        raise ValueError(f"the text has {len(text)} bytes, at least {need} are needed")
    data = torch.from_numpy(ids.astype(np.int64))
    return Corpus(data[:cut], data[cut:], len(values))


def markov_text(num_bytes: int, seed: int) -> bytes:
    """Letters of a random second-order Markov chain, where no text is given."""
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(MARKOV_SYMBOLS, 0.1), size=(MARKOV_SYMBOLS, MARKOV_SYMBOLS))
    sums, draws = rows.cumsum(-1), rng.random(num_bytes)
    text, before, last = bytearray(), 0, 0
    for draw in draws:
        following = min(int(sums[before, last].searchsorted(draw)), MARKOV_SYMBOLS - 1)
        before, last = last, following
        text.append(ord("a") + following)
    return bytes(text)


def valid_windows(corpus: Corpus, context: int, num_windows: int) -> Tensor:
    """Evenly spaced held-out windows (B,T+1)."""
    last = len(corpus.valid) - context - 1
    starts = torch.linspace(0, last, num_windows).long()
    return corpus.valid[starts[:, None] + torch.arange(context + 1)]


@torch.no_grad()
def mean_nats(model: TinyLM, ids: Tensor) -> float:
    """Cross-entropy of ids (B,T+1), nats per byte."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()


def train(
    model: TinyLM, corpus: Corpus, valid: Tensor, config: TrainingConfig, steps: int, seed: int
) -> Path:
    """Train in place; `seed` draws the windows, so that two models may see the same ones."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    weights, losses = [_copy(model)], [mean_nats(model, valid)]
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, step / WARMUP_STEPS)
        ids = _batch(corpus.train, model.context, config.batch_size, generator)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % config.eval_every == 0 or step == steps:
            weights.append(_copy(model))
            losses.append(mean_nats(model, valid))
    return Path(tuple(weights), tuple(losses))


def common_loss(paths: tuple[Path, ...]) -> float:
    """The lowest loss that every path has reached."""
    return max(min(path.losses) for path in paths)


def stop_at(model: TinyLM, path: Path, target: float, valid: Tensor) -> None:
    """Give `model` the weights at which `path` first had the loss `target`, to about 1e-3 of it.

    Raises ValueError when the path never gets there, or was there before training.
    """
    reached = [k for k, loss in enumerate(path.losses) if loss <= target]
    if not reached or reached[0] == 0:
        raise ValueError(
            f"training from {path.losses[0]:.4f} to {min(path.losses):.4f} nats does not cross "
            f"{target:.4f}; more steps are needed"
        )
    start, end = path.weights[reached[0] - 1], path.weights[reached[0]]
    low, high = 0.0, 1.0  # the loss is above the target at low, at or below it at high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        _set(model, start, end, middle)
        low, high = (low, middle) if mean_nats(model, valid) <= target else (middle, high)
    _set(model, start, end, high)


def _set(
    model: TinyLM, start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> None:
    model.load_state_dict({name: torch.lerp(w, end[name], share) for name, w in start.items()})


def _copy(model: TinyLM) -> dict[str, Tensor]:
    return {name: w.detach().clone() for name, w in model.state_dict().items()}


def _batch(data: Tensor, context: int, size: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(data) - context, (size,), generator=generator)
    return data[starts[:, None] + torch.arange(context + 1)]
