"""A liquid layer inside the corrected reactor, and what its oscillators buy.

python -m benchmarks.studies.liquid_reactor --seeds 0 1 2 3 4 5 6 7

One neuron and one oscillator of `KuramotoLiquid` rule each group of features. The layer reads how
far the sample's entropy is from the set point, e_b, and scales the features of neuron i by

    exp(a e_b (x_i + r cos(θ_i - ψ)))     x potential, θ phase, r e^{iψ} mean field, a strength

The drift then moves the entropy as in `cer.corrected`. An arm `frozen` is the same reactor with the
same weights to start from, and keeps its first phases; x still moves. Arms `kuramoto` have the
corrected reactor's own population instead of the layer, `none` neither.

Each is measured untrained, and after 200 steps of the denoising task (`reactor_training`):
* error: |H - H*| of a sample after the last of 6 steps, and steps: those it takes until the error
  stays below .05 nats, 7 where it does not; with the default control, which may change the entropy
  by 2 nats a step, and with a weak one that may change it by .25;
* moved: KL(undisturbed ‖ disturbed) of the reactions where every state gets noise of NOISE
  deviations before the weak control; noisy_error: the error then;
* kl: of the trained reactor on held-out examples.
A row is an arm and a seed. `table` prints means and paired differences, intervals over seeds.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.records import Records, Row, newest, read_rows
from benchmarks.kit.statistics import mean_of
from benchmarks.kit.tables import shown, table
from benchmarks.studies.reactor_training import fit, study_config
from cer.corrected import TIME_STEP, CorrectedControl, drift_to_target, modulate
from cer.liquid import KuramotoLiquid, LiquidState
from cer.reactor import CoherentEntropyReactor
from cer.training import held_out_batch, make_reactors
from cer.trajectory import StepOutcome
from entropy_core.information import entropy_nats, kl_nats

NAME = "liquid_reactor"
ARMS = ("liquid", "liquid, frozen", "kuramoto", "kuramoto, frozen", "none")
PAIRS = (("liquid", "liquid, frozen"), ("kuramoto", "kuramoto, frozen"), ("liquid", "kuramoto"))
MOST_NATS = {"default": 2.0, "weak": 0.25}
CLOSE_NATS, NOISE, SUBSTEPS = 0.05, 0.3, 2
TRAINING_STEPS = 200
EXAMPLES = 64


@dataclass
class FrozenControl(CorrectedControl):
    """The corrected control with oscillators of no frequency; without coupling they stay."""

    def step(self, z: Tensor, phases: Tensor, omega: Tensor, generator: Any) -> StepOutcome:
        """As `CorrectedControl.step`."""
        return super().step(z, phases, torch.zeros_like(omega), generator)


@dataclass
class LiquidControl(CorrectedControl):
    """The corrected control with a liquid layer; its state is phases and potentials, (B,2N)."""

    layer: KuramotoLiquid
    frozen: bool = False

    def init_phases(self, learned: Tensor, batch_size: int, like: Tensor) -> Tensor:
        """The learned first phases and potentials of 0: (B,2N)."""
        theta = super().init_phases(learned, batch_size, like)
        return torch.cat([theta, torch.zeros_like(theta)], -1)

    def step(self, z: Tensor, phases: Tensor, omega: Tensor, generator: Any) -> StepOutcome:
        """Liquid layer, modulation and drift: (B,S,D), (B,2N) -> the same; it draws nothing."""
        options, limit = self.options, self.options.max_deficit_nats
        theta, x = phases.chunk(2, -1)
        error = (entropy_nats(z).mean(-1) - options.target_nats).clamp(-limit, limit)
        for _ in range(SUBSTEPS):
            state = self.layer.step(
                error.unsqueeze(-1), LiquidState(x, theta), TIME_STEP / SUBSTEPS
            )
            x, theta = state.x, theta if self.frozen else state.theta
        drive = (options.drift_strength * error.unsqueeze(-1) * x).exp()  # (B,N)
        z = z * drive.repeat_interleave(z.shape[-1] // x.shape[-1], -1).unsqueeze(1)
        z = modulate(z, theta, error, options.drift_strength)
        z, wanted = drift_to_target(z, options)
        deficit = wanted.mean(-1)
        return StepOutcome(z, torch.cat([theta, x], -1), deficit.sign().long(), deficit)

    def record(self, outcome: StepOutcome) -> dict[str, Any]:
        """As `CorrectedControl.record`, of the phases alone."""
        theta = outcome.phases.chunk(2, -1)[0]
        return super().record(outcome._replace(phases=theta))


def dressed(reactor: CoherentEntropyReactor, arm: str, seed: int) -> CoherentEntropyReactor:
    """Give a corrected reactor the control of an arm; a layer becomes a part of its weights."""
    control = reactor.control
    if arm.startswith("liquid"):
        generator = torch.Generator().manual_seed(seed)
        layer = KuramotoLiquid(
            1, len(reactor.initial_phases), coupling=control.kuramoto_k, generator=generator
        )
        reactor.liquid = layer
        reactor.control = LiquidControl(
            control.options, control.kuramoto_k, layer, arm.endswith("frozen")
        )
    elif arm.endswith("frozen"):
        reactor.control = FrozenControl(control.options, kuramoto_k=0.0)
    elif arm == "none":
        control.options = replace(control.options, drift_strength=0.0)
    return reactor


def with_noise(reactor: CoherentEntropyReactor, generator: torch.Generator) -> Any:
    """The reactor's control step, on states with noise of NOISE of their own deviation."""
    step = type(reactor.control).step

    def noisy(z: Tensor, phases: Tensor, omega: Tensor, unused: Any) -> StepOutcome:
        xi = torch.randn(z.shape, generator=generator)
        return step(reactor.control, z + NOISE * z.std() * xi, phases, omega, unused)

    return noisy


@torch.no_grad()
def measured(reactor: CoherentEntropyReactor, x: Tensor, seed: int) -> dict[str, Any]:
    """Control error, steps to the set point and what noise does, on inputs (B,S,V)."""
    own, found = reactor.control.options, {}
    target = own.target_nats
    for name, most in MOST_NATS.items():
        reactor.control.options = replace(own, max_deficit_nats=most)
        out = reactor(x)
        errors = torch.stack([(s.entropy - target).abs() for s in out.trajectory])  # (steps,B)
        off = torch.arange(1, len(errors) + 1)[:, None] * (errors >= CLOSE_NATS)
        found[f"{name}_error"] = errors[-1].mean().item()
        found[f"{name}_steps"] = (off.amax(0) + 1).double().mean().item()
        if name == "default":
            continue
        reactor.control.step = with_noise(reactor, torch.Generator().manual_seed(seed))
        disturbed = reactor(x)
        del reactor.control.step
        moved = kl_nats(out.reactions.log_softmax(-1), disturbed.reactions)
        found["moved"] = moved.mean().item()
        found["noisy_error"] = (disturbed.trajectory[-1].entropy - target).abs().mean().item()
    reactor.control.options = own
    return found


def study(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """The values of a row: the arm untrained, and trained."""
    config = study_config(seed, steps)
    models = make_reactors(config)
    dressed(models[0], arm, seed)
    untrained = copy.deepcopy(models[0].state_dict())
    trainer = fit(config, models)
    batch = held_out_batch(config, trainer.data)
    x = batch.x[:EXAMPLES]
    row = {"trained": measured(models[0], x, seed)}
    with torch.no_grad():
        answers = models[0](batch.x, log=False).reactions
        row["trained"]["kl"] = kl_nats(batch.target.log(), answers).mean().item()
    models[0].load_state_dict(untrained)
    return row | {"untrained": measured(models[0], x, seed), "seconds": trainer.seconds}


# --- the table


def differences(rows: Sequence[Row], state: str, arm: str, other: str) -> dict[str, Any]:
    """Each measure of an arm minus the other's, by pairs of equal seeds: (value, low, high)."""
    ours, theirs = ({r["seed"]: r[state] for r in rows if r["arm"] == a} for a in (arm, other))
    seeds = sorted(ours.keys() & theirs.keys())
    return {
        name: mean_of([ours[seed][name] - theirs[seed][name] for seed in seeds])
        for name in (ours[seeds[0]] if seeds else ())
    }


def tables(rows: Sequence[Row]) -> str:
    parts = []
    for state in ("untrained", "trained"):
        names = list(rows[0][state])
        lines = []
        for arm in ARMS:
            values = [r[state] for r in rows if r["arm"] == arm]
            if values:
                means = [shown(mean_of([v[name] for v in values]), 3) for name in names]
                lines.append([arm, *means])
        for arm, other in PAIRS:
            found = differences(rows, state, arm, other)
            if found:
                lines.append([f"{arm} - {other}", *(shown(found[name], 4) for name in names)])
        parts.append(table((state, *names), lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Put a liquid layer into the corrected reactor.")
    parser.add_argument("command", choices=("run", "table"), nargs="?", default="run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(8)])
    parser.add_argument("--steps", type=int, default=TRAINING_STEPS)
    options = parser.parse_args()
    records = Records(NAME, on=True)
    if options.command == "run":
        for seed in options.seeds:
            for arm in ARMS:
                key = {"arm": arm, "seed": seed, "steps": options.steps}
                records.row(key, lambda arm=arm, seed=seed: study(arm, seed, options.steps))
    print(tables(newest(read_rows(NAME), "arm", "seed")))


if __name__ == "__main__":
    main()
