"""Does a reactor learn, do several converge, and does attention diffuse entropy once trained?

python -m benchmarks.studies.reactor_training --seeds 0 1 2

Task: restore a distribution of 64 outcomes from eight views of 16 draws each (`cer.tasks`), scored
by KL(p ‖ q) on held-out examples. Arms, on the same batches with the same optimizer; the learning
rates are the best for seed 9 of 0.001, 0.003, 0.006, 0.01 (reactor) and 0.003, 0.01, 0.03, 0.1
(both perceptrons):
* reactor: two that differ by their start, and the same two with a coupling loss;
* uncontrolled: a reactor without drift and oscillators; all_losses: every term of the loss;
* mlp: a multi-layer perceptron of the same number of parameters, which reads a position;
  mlp_pooled also reads the mean over the positions.
Without training: the mean of the training targets, and the views averaged and smoothed, α of the
smoothing chosen on training examples.

Diffusion: entropy of the final state with mixing minus that with the attention matrix replaced by
the identity, control off; before and after training. Attention diffuses where it is positive.
"""

import argparse
import copy
import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kit.records import num_parameters, write_row
from cer.ablation import without_attention, without_control, without_mixing
from cer.losses import LossWeights, convergence_score, divergence_nats, mean_losses, reactor_losses
from cer.tasks import Batch, TaskConfig
from cer.training import CERTrainConfig, ReactorConfig, Trainer, held_out_batch, make_reactors
from entropy_core.information import entropy_nats, entropy_nats_from_probs, kl_nats_from_probs

REACTOR_RATE, PERCEPTRON_RATE = 3e-3, 3e-2
SMOOTHING = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # α, as a share of the uniform distribution
KL_ONLY = LossWeights(entropy=0.0, mass=0.0, commutation=0.0)
PROBE = LossWeights(entropy=1.0, mass=1.0, commutation=1.0)  # every term, to measure it


class Reactions(NamedTuple):
    """The output of a baseline, under the name that the trainer reads."""

    reactions: Tensor


class Perceptron(nn.Module):
    """Two hidden layers on each position, told the mean over the positions if `pooled`."""

    def __init__(self, V: int, hidden: int, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        sizes = [2 * V if pooled else V, hidden, hidden, V]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])

    def forward(self, x: Tensor, *, log: bool = False) -> Reactions:
        if self.pooled:
            x = torch.cat([x, x.mean(1, keepdim=True).expand_as(x)], dim=-1)
        return Reactions(self.layers(x))


def same_size(V: int, num: int, pooled: bool) -> Perceptron:
    """The perceptron whose number of parameters is nearest to `num`."""
    hidden = np.arange(8, 1024)
    inputs = 2 * V if pooled else V
    counts = (inputs + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * V
    return Perceptron(V, int(hidden[np.abs(counts - num).argmin()]), pooled)


def study_config(seed: int, steps: int, **changes: Any) -> CERTrainConfig:
    """The configuration that all arms share, with the changes of one."""
    shared = {
        "learning_rate": REACTOR_RATE, "reactor": ReactorConfig(hidden_dim=64, num_oscillators=8),
        "task": TaskConfig(num_outcomes=64, num_positions=8), "loss": KL_ONLY, "batch_size": 32,
        "val_size": 512, "wandb": "disabled",
    }  # fmt: skip
    return CERTrainConfig(seed=seed, steps=steps, **(shared | changes))


def fit(
    config: CERTrainConfig, models: nn.ModuleList | None = None, texts: list[str] | None = None
) -> Trainer:
    trainer = Trainer(config, models, texts)
    for _ in range(config.steps):
        trainer.train_step()
    return trainer


@torch.no_grad()
def answers(models: nn.ModuleList, batch: Batch) -> list[Tensor]:
    return [model(batch.x, log=False).reactions for model in models]


def constant_baselines(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """KL of the mean training target and of the smoothed mean of the views."""
    seen = trainer.data.batch(4096, torch.Generator().manual_seed(trainer.config.seed))
    mean = seen.target[:, 0].mean(0)

    def score(batch: Batch, alpha: float) -> float:
        smoothed = (1 - alpha) * batch.x.mean(1, keepdim=True) + alpha / batch.x.shape[-1]
        return kl_nats_from_probs(batch.target[:, :1], smoothed).mean().item()

    alpha = min(SMOOTHING, key=lambda a: score(seen, a))
    constant = kl_nats_from_probs(batch.target, mean.expand_as(batch.target)).mean().item()
    return {"mean_predictor": constant, "smoothed_views": score(batch, alpha)}


@torch.no_grad()
def diffusion(reactor: nn.Module, x: Tensor) -> dict[str, float]:
    """Final state's entropy in nats, control off: as built, without mixing, without attention."""
    entropies = {}
    for name, cut in (("mixing", None), ("no_mixing", without_mixing),
                      ("no_attention", without_attention)):  # fmt: skip
        variant = copy.deepcopy(reactor)
        without_control(variant)
        if cut is not None:
            cut(variant)
        zs = []
        handle = variant.output.register_forward_pre_hook(lambda _, z, zs=zs: zs.append(z[0]))
        variant(x, log=False)
        handle.remove()
        entropies[name] = entropy_nats(zs[0]).mean().item()
    entropies["encoder"] = entropy_nats(reactor.encode(x)).mean().item()
    entropies["diffusion"] = entropies["mixing"] - entropies["no_mixing"]
    return entropies


def convergence(models: nn.ModuleList, batch: Batch) -> dict[str, float]:
    reactions = answers(models, batch)
    return {
        "divergence_nats": divergence_nats(reactions).item(),
        "convergence": convergence_score(reactions).item(),
    }


def measured_terms(models: nn.ModuleList, batch: Batch, seed: int) -> dict[str, float]:
    """The terms beside the KL on 64 held-out examples, weighted or not in training."""
    few = Batch(batch.x[:64], batch.target[:64])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        terms = mean_losses(
            reactor_losses(model, few, model(few.x, log=False).reactions, PROBE, generator)
            for model in models
        )
    return {name: value for name, value in terms.items() if name != "kl_nats"}


def study(seed: int, steps: int) -> None:
    """Train and record all arms of one seed, a row each."""
    config = study_config(seed, steps, num_reactors=2)
    untrained = make_reactors(config)
    pair = fit(config)
    batch = held_out_batch(config, pair.data)
    shared = {"seed": seed, "steps": steps}

    def note(arm: str, models: nn.ModuleList, trainer: Trainer | None = None, **more: Any) -> None:
        said = answers(models, batch)
        target = batch.target
        kl = [kl_nats_from_probs(target, z.softmax(-1)).mean().item() for z in said]
        row = {"arm": arm, **shared, "parameters": num_parameters(models[0]), "kl_nats": kl}
        if trainer is not None:
            row["seconds"] = trainer.seconds
        write_row("reactor_training", {**row, **more})
        print(arm, seed, [round(v, 4) for v in kl], more, flush=True)

    for name, kl in constant_baselines(pair, batch).items():
        write_row("reactor_training", {"arm": name, **shared, "parameters": 0, "kl_nats": [kl]})
        print(name, seed, round(kl, 4), flush=True)
    entropies = {
        "input_nats": entropy_nats_from_probs(batch.x).mean().item(),
        "target_nats": entropy_nats_from_probs(batch.target).mean().item(),
    }
    for arm, models, trainer, more in (
        ("untrained", untrained, None, entropies), ("reactor", pair.reactors, pair, {}),
    ):  # fmt: skip
        note(
            arm, models, trainer, diffusion=[diffusion(r, batch.x) for r in models],
            **convergence(models, batch), **measured_terms(models, batch, seed), **more,
        )  # fmt: skip
    coupled = fit(dataclasses.replace(config, loss=dataclasses.replace(KL_ONLY, coupling=1.0)))
    note("coupled", coupled.reactors, coupled, **convergence(coupled.reactors, batch))
    off = dataclasses.replace(config.reactor, drift_strength=0.0, max_drift_deficit=0.0)
    free = fit(study_config(seed, steps, reactor=off))
    note("uncontrolled", free.reactors, free,
         diffusion=[diffusion(r, batch.x) for r in free.reactors])  # fmt: skip
    every = fit(study_config(seed, steps, loss=LossWeights()))
    note("all_losses", every.reactors, every, **measured_terms(every.reactors, batch, seed))
    size = num_parameters(pair.reactors[0])
    for name, pooled in (("mlp", False), ("mlp_pooled", True)):
        torch.manual_seed(seed)
        models = nn.ModuleList([same_size(config.task.num_outcomes, size, pooled)])
        trained = fit(study_config(seed, steps, learning_rate=PERCEPTRON_RATE), models)
        note(name, trained.reactors, trained)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train reactors and their baselines.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    for seed in options.seeds:
        study(seed, options.steps)


if __name__ == "__main__":
    main()
