"""The mirror test: the reactor's entropy on peaked, uniform and random distributions.

    PEAKED softmax(10 e_0),  UNIFORM 1/D_in,  RANDOM softmax(randn):  x (4,16,D_in)

One untrained reactor a seed, in train mode as published; the conditions follow each other on it
with one stream of random numbers, which goes on where the construction stopped. All numbers are
means over batch and positions, six decimals; entropies in nats; ± is the population standard
deviation over seeds. Source: the Coherent Entropy Reactor's README and published trajectories.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cer.reactor import CoherentEntropyReactor, Mode
from cer.trajectory import TrajectoryStep, batch_mean
from entropy_core.information import entropy_nats, entropy_nats_from_probs

CONDITIONS = ("PEAKED", "UNIFORM", "RANDOM")
BATCH, POSITIONS = 4, 16
PEAK = 10.0  # logit of the peaked outcome
DECIMALS = 6
PUBLISHED_SEEDS = 10
PUBLISHED = {  # input nats, mean and deviation of the final nats, BRAKE, ESCAPE
    "PEAKED": ("0.063", 3.84, 0.49, 58, 1),
    "UNIFORM": ("4.852", 4.11, 0.23, 60, 0),
    "RANDOM": ("4.4", 4.10, 0.24, 60, 0),
}


def build_reactor(
    seed: int, mode: Mode = "published", **options: Any
) -> tuple[CoherentEntropyReactor, torch.Generator]:
    """A reactor drawn from `seed` and the generator standing where its construction stopped.

    Leaves torch's global generator as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reactor = CoherentEntropyReactor(mode=mode, **options)
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
    return reactor, generator


def condition_input(name: str, input_dim: int, generator: torch.Generator) -> Tensor:
    """Distributions (4,16,D_in) of a condition. Raises ValueError for an unknown name."""
    shape = (BATCH, POSITIONS, input_dim)
    if name == "PEAKED":
        peak = F.one_hot(torch.zeros(BATCH, POSITIONS, dtype=torch.long), input_dim)
        return (PEAK * peak).softmax(-1)
    if name == "UNIFORM":
        return torch.full(shape, 1 / input_dim)
    if name == "RANDOM":
        return torch.randn(shape, generator=generator).softmax(-1)
    raise ValueError(f"condition must be one of {', '.join(CONDITIONS)}, got {name!r}")


@torch.no_grad()
def run_conditions(
    reactor: CoherentEntropyReactor, generator: torch.Generator
) -> list[dict[str, Any]]:
    """The three conditions in turn on one reactor, each from a fresh state."""
    results = []
    for name in CONDITIONS:
        x = condition_input(name, reactor.encoder.in_features, generator)
        out = reactor(x, generator=generator)
        results.append(
            {
                "name": name,
                "input_entropy": _rounded(entropy_nats_from_probs(x)),
                "output_entropy": _rounded(entropy_nats(out.reactions)),
                "steps": [step_record(step) for step in out.trajectory],
            }
        )
    return results


def step_record(step: TrajectoryStep) -> dict[str, Any]:
    """One step as JSON, in the numbers of `batch_mean`."""
    step = batch_mean(step)
    return {
        "layer": step.layer_idx,
        "step": step.step_idx,
        "entropy": _rounded(step.entropy),
        "mass": _rounded(step.mass),
        "phase": _rounded(step.phase),
        "sum_p": _rounded(step.sum_p),
        "max_prob": _rounded(step.max_prob),
        "max_entropy": _rounded(step.max_entropy),
        "drift_applied": step.drift_applied,
        "deficit": _rounded(step.deficit),
        "control": step.control.name,
    }


def mirror_test(
    seeds: Sequence[int],
    mode: Mode = "published",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    trained: CoherentEntropyReactor | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run the seeds: {metadata, seed_results, summary} in the schema of the published file.

    `options` are the reactor's; `progress` wraps the seeds (tqdm, say). With a `trained` reactor
    no other is built, and a seed draws its inputs alone. Raises ValueError without
    seeds or with the same seed twice.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be at least one and all different, got {list(seeds)}")
    results = []
    for seed in progress(seeds):
        if trained is None:
            reactor, generator = build_reactor(seed, mode, **options)
        else:
            reactor, generator = trained, torch.Generator().manual_seed(seed)
        results.append({"seed": seed, "conditions": run_conditions(reactor, generator)})
    return {
        "metadata": metadata(reactor, len(seeds)),
        "seed_results": results,
        "summary": {"conditions": {name: summarise(results, name) for name in CONDITIONS}},
    }


def metadata(reactor: CoherentEntropyReactor, num_seeds: int) -> dict[str, Any]:
    hidden, output = reactor.encoder.out_features, reactor.output.out_features
    return {
        "mode": reactor.mode,
        "target_entropy": reactor.control.options.target_nats,
        "max_state_entropy": _rounded(torch.tensor(hidden, dtype=torch.float64).log()),
        "max_output_entropy": _rounded(torch.tensor(output, dtype=torch.float64).log()),
        "input_dim": reactor.encoder.in_features,
        "hidden_dim": hidden,
        "output_dim": output,
        "num_layers": len(reactor.blocks),
        "num_refinement_steps": reactor.num_refinement_steps,
        "num_parameters": sum(p.numel() for p in reactor.parameters()),
        "n_seeds": num_seeds,
    }


def summarise(seed_results: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Means, spreads and control counts of one condition over the seeds."""
    runs = [c for r in seed_results for c in r["conditions"] if c["name"] == name]
    by_step = list(zip(*[[s["entropy"] for s in run["steps"]] for run in runs], strict=True))
    labels = [s["control"] for run in runs for s in run["steps"]]
    outputs = _spread([run["output_entropy"] for run in runs])
    return {
        "entropy_trajectory": {
            f"step_{i}": _spread(values) | {"min": min(values), "max": max(values)}
            for i, values in enumerate(by_step)
        },
        "output_entropy": outputs,
        "control_actions": {
            "brake": labels.count("BRAKE"),
            "escape": labels.count("ESCAPE"),
            "total_steps": len(labels),
        },
    }


def mirror_table(result: dict[str, Any]) -> str:
    """The table of the README, Markdown; of its ten seeds and mode, with its values and a tick."""
    about = result["metadata"]
    compared = (about["mode"], about["n_seeds"]) == ("published", PUBLISHED_SEEDS)
    lines = [
        "| Condition | Input Entropy | Final State Entropy | Control Actions |",
        "|-----------|---------------|---------------------|-----------------|",
    ]
    if compared:
        lines = [f"{lines[0]} Published | |", f"{lines[1]}---|---|"]
    for name in CONDITIONS:
        summary = result["summary"]["conditions"][name]
        inputs = [
            c["input_entropy"]
            for r in result["seed_results"]
            for c in r["conditions"]
            if c["name"] == name
        ]
        final = list(summary["entropy_trajectory"].values())[-1]
        counts = summary["control_actions"]
        none = counts["total_steps"] - counts["brake"] - counts["escape"]
        lines.append(
            f"| {name} | {statistics.fmean(inputs):.3f} nats "
            f"| {final['mean']:.2f} ± {final['std']:.2f} nats "
            f"| {counts['brake']} BRAKE, {counts['escape']} ESCAPE, {none} none |"
        )
        if compared:
            given, mean, std, brake, escape = PUBLISHED[name]
            ours = (round(final["mean"], 2), round(final["std"], 2), counts["brake"],
                    counts["escape"])  # fmt: skip
            tick = "✓" if ours == (mean, std, brake, escape) else "✗"
            lines[-1] += (
                f" {given} nats; {mean:.2f} ± {std:.2f} nats; {brake} BRAKE, {escape} ESCAPE "
                f"| {tick} |"
            )
    return "\n".join(lines)


def output_table(result: dict[str, Any]) -> str:
    """Markdown: entropy of input, final state and output of each condition, nats."""
    lines = [
        "| Condition | Input Entropy | Final State Entropy | Output Entropy |",
        "|---|---|---|---|",
    ]
    for i, name in enumerate(CONDITIONS):
        summary = result["summary"]["conditions"][name]
        final = list(summary["entropy_trajectory"].values())[-1]
        runs = [r["conditions"][i]["input_entropy"] for r in result["seed_results"]]
        cells = [f"{s['mean']:.2f} ± {s['std']:.2f}" for s in (final, summary["output_entropy"])]
        lines.append(f"| {name} | {statistics.fmean(runs):.3f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.fmean(values), DECIMALS),
        "std": round(statistics.pstdev(values), DECIMALS),
    }


def _rounded(value: Tensor | float) -> float:
    return round(value.mean().item() if isinstance(value, Tensor) else value, DECIMALS)
