"""The control error curve: how far from its target the state's entropy ends.

    error(H*) = max over samples of |H_b - H*|  (nats), after the last refinement step

For targets, conditions of the mirror test and seeds, on untrained reactors. In `corrected` mode it
should stay under 1e-3 nats; in `published` mode it measures how far that control misses.
"""

from collections.abc import Sequence
from typing import Any

import torch

from cer.mirror import CONDITIONS, build_reactor, condition_input, step_record
from cer.reactor import Mode
from cer.trajectory import TrajectoryStep

TARGETS_NATS = (1.0, 2.0, 3.0, 4.0, 5.0)


@torch.no_grad()
def setpoint_curve(
    seeds: Sequence[int],
    targets_nats: Sequence[float] = TARGETS_NATS,
    mode: Mode = "corrected",
) -> dict[str, Any]:
    """One row for each target, seed and condition: the worst error, nats, and its steps.

    Raises ValueError when a target is outside (0, ln hidden_dim) or there are no seeds.
    """
    if not seeds:
        raise ValueError("seeds must be at least one")
    rows = []
    for target in targets_nats:
        for seed in seeds:
            reactor, generator = build_reactor(seed, mode, target_entropy=target)
            for name in CONDITIONS:
                x = condition_input(name, reactor.encoder.in_features, generator)
                steps = reactor(x, generator=generator).trajectory
                rows.append(
                    {
                        "target": target,
                        "seed": seed,
                        "condition": name,
                        "error": final_error(steps[-1], target),
                        "steps": [step_record(step) for step in steps],
                    }
                )
    return {"mode": mode, "seeds": list(seeds), "rows": rows}


def final_error(step: TrajectoryStep, target_nats: float) -> float:
    """|H - H*| of the worst sample (of the batch mean in `published`), nats."""
    return (torch.as_tensor(step.entropy) - target_nats).abs().max().item()


def worst_error(result: dict[str, Any], target: float, condition: str) -> float:
    """Largest error over the seeds, nats."""
    return max(
        row["error"]
        for row in result["rows"]
        if (row["target"], row["condition"]) == (target, condition)
    )


def targets_of(result: dict[str, Any]) -> list[float]:
    return sorted({row["target"] for row in result["rows"]})


def setpoint_table(result: dict[str, Any]) -> str:
    """Markdown: worst error of each target and condition, and the actions taken."""
    head = "".join(f" {name} |" for name in CONDITIONS)
    lines = [
        f"| target, nats |{head} brake/escape/none |",
        "|---" * (len(CONDITIONS) + 2) + "|",
    ]
    for target in targets_of(result):
        cells = "".join(f" {worst_error(result, target, name):.1e} |" for name in CONDITIONS)
        labels = [
            s["control"] for row in result["rows"] if row["target"] == target for s in row["steps"]
        ]
        counts = "/".join(str(labels.count(name)) for name in ("BRAKE", "ESCAPE", "NONE"))
        lines.append(f"| {target:g} |{cells} {counts} |")
    return "\n".join(lines)
