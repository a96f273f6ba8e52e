"""The reactor that joins views of the next byte, against counting and a perceptron.

python train.py --config configs/cer_guanaco.yaml seed=1 out=runs/cer_1      (and seeds 0 and 2)
python -m benchmarks.studies.reactor_bytes --run runs/cer_0 runs/cer_1 runs/cer_2

Cross-entropy of a byte in nats, on random places of the texts that the run held out; paired
differences from the bigram have bootstrap intervals over the places. A run whose seed is recorded
with as many steps and places is not scored again. Arms:
* counted in the training texts: unigram; bigram, which is the nearest view; trigram (Witten–Bell);
* smoothed_views: the mean of the views, mixed with uniform, the share fitted on training places;
* log_linear: q ∝ u^w0 Π x_s^ws of unigram u and views x, a weight each fitted on training places;
* mlp_pooled: reads the nearest view and the mean of all, on the reactor's batches and rate;
* untrained and reactor, as the run began and as it ended.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.kit.records import Records, num_parameters, write_row
from benchmarks.kit.statistics import mean_of
from benchmarks.studies.reactor_training import SMOOTHING, answers, fit, same_size
from cer.next_byte import OUTCOMES, NextBytes, interpolated, unigram
from cer.tasks import Batch
from cer.training import CERTrainConfig, make_data, make_reactors
from entropy_core.information import kl_nats_from_probs
from reso.train import read_config, read_texts
from run_core.checkpoint import load_checkpoint
from run_core.run import resolve

FITTED_STEPS, FITTED_RATE = 200, 0.03  # of Adam, for the weights of log_linear
NAME, BASELINE, LAST = "reactor_bytes", "bigram", "mlp_pooled"


def nats(batch: Batch, q: Tensor) -> Tensor:
    """-ln q of the bytes that came: (B,1,V), q (B,V) -> (B,)."""
    return kl_nats_from_probs(batch.target[:, 0], q)


def trigrams(data: NextBytes) -> Tensor:
    """P(next | two back, one back): (V,V,V), interpolated with the bigram."""
    text = data.train
    triples = (text[:-2] * OUTCOMES + text[1:-1]) * OUTCOMES + text[2:]
    counts = triples.bincount(minlength=OUTCOMES**3).view(OUTCOMES, OUTCOMES, OUTCOMES)
    return interpolated(counts, data.views[0])


def smoothed(batch: Batch, alpha: float) -> Tensor:
    return (1 - alpha) * batch.x.mean(1) + alpha / OUTCOMES


def log_linear(seen: Batch, batch: Batch, lower: Tensor) -> Tensor:
    """The fitted product of powers of the unigram and the views: (B,V)."""

    def joined(x: Tensor, weights: Tensor) -> Tensor:
        views = torch.cat([x, lower.expand(len(x), 1, -1)], 1).log()
        return (weights.unsqueeze(-1) * views).sum(1).softmax(-1)

    weights = torch.zeros(seen.x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=FITTED_RATE)
    for _ in range(FITTED_STEPS):
        optimizer.zero_grad()
        nats(seen, joined(seen.x, weights)).mean().backward()
        optimizer.step()
    return joined(batch.x, weights.detach())


@torch.no_grad()
def answered(models: nn.ModuleList, batch: Batch) -> Tensor:
    return answers(models, batch)[0][:, -1].softmax(-1)


def arms(
    config: CERTrainConfig, texts: list[str], weights: dict[str, Tensor], num_places: int
) -> Iterator[tuple[str, int, Tensor]]:
    """Name, number of parameters, and nats (B,) of each."""
    data = make_data(config.task, texts)
    generator = torch.Generator().manual_seed(config.seed)
    seen = data.batch(4096, generator)
    places = data.places(data.held_out, num_places, generator)
    batch, text = data.at(data.held_out, places), data.held_out
    lower = unigram(data.train)
    yield "unigram", 0, nats(batch, lower.expand(num_places, -1))
    yield BASELINE, 0, nats(batch, batch.x[:, -1])
    yield "trigram", 0, nats(batch, trigrams(data)[text[places - 2], text[places - 1]])
    alpha = min(SMOOTHING, key=lambda a: nats(seen, smoothed(seen, a)).mean())
    yield "smoothed_views", 0, nats(batch, smoothed(batch, alpha))
    yield "log_linear", data.num_views + 1, nats(batch, log_linear(seen, batch, lower))
    models = make_reactors(config)
    size = num_parameters(models[0])
    yield "untrained", size, nats(batch, answered(models, batch))
    models.load_state_dict(weights)
    yield "reactor", size, nats(batch, answered(models, batch))
    torch.manual_seed(config.seed)
    mlp = nn.ModuleList([same_size(OUTCOMES, size, pooled=True)])
    trained = fit(config, mlp, texts).reactors
    yield LAST, num_parameters(mlp), nats(batch, answered(trained, batch))


def row_of(name: str, parameters: int, values: Tensor, bigram: Tensor) -> dict[str, Any]:
    """Mean and difference from the bigram, each (value, low, high) in nats."""
    difference = (values - bigram).double().numpy()
    return {
        "arm": name,
        "parameters": parameters,
        "nats_per_byte": mean_of(values.double().numpy()),
        "minus_bigram": mean_of(difference),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a reactor of next bytes.")
    parser.add_argument("--run", nargs="+", required=True, help="run directories of train.py")
    parser.add_argument("--places", type=int, default=4096, help="held-out bytes that are scored")
    options = parser.parse_args()
    for run in options.run:
        score(run, options.places)


def score(run: str, num_places: int) -> None:
    """Record the rows of one run, unless its last one is recorded."""
    config, texts = read_texts(read_config(["--out", run, "--resume"])[0])
    tensors, documents = load_checkpoint(resolve(run), ("model",))
    shared = {
        "seed": config.seed, "steps": documents["training.json"]["step"], "places": num_places,
    }  # fmt: skip
    if Records(NAME, on=True).find(arm=LAST, **shared):
        return
    scored = list(arms(config, texts, tensors["model"], num_places))
    bigram = next(values for name, _, values in scored if name == BASELINE)
    for name, parameters, values in scored:
        row = row_of(name, parameters, values, bigram)
        write_row(NAME, row | shared)
        print(config.seed, name, parameters, row["nats_per_byte"], row["minus_bigram"], flush=True)


if __name__ == "__main__":
    main()
