"""One of several processes has a loss or gradient that is not finite: do all skip the step?

python -m benchmarks.studies.bad_steps --runs 10 --json benchmarks/results/bad_steps.json

In each run two processes train. A random one has, at a random step, NaN or infinity as its loss or
as a random gradient. "skipped" counts the runs whose processes are equal throughout, and pass over
that step and no other. Then one process goes on with the run, or four: "resumed" counts those that
read on where it was. Three cannot share its batch: "refused" counts those that say so and leave the
run as it is.
"""

import argparse
import hashlib
import json
import math
import os
import random
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies.crash import prepare_training, show_row
from benchmarks.studies.processes import run_processes
from reso_llm.config import ResoLLMConfig
from reso_llm.training.config import TrainConfig
from reso_llm.training.learner import Learner
from reso_llm.training.run import train
from run_core.run import TrainingError

STEPS, WINDOWS, PASSES = 6, 4, 2


@dataclass(frozen=True)
class BadStep:
    """What is not finite in process `rank` at `step`: its loss, or gradient `parameter`."""

    rank: int
    step: int
    value: float
    parameter: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    row = show_row(parser, measure)
    if {row["skipped"], row["resumed"], row["refused"]} != {row["runs"]}:
        raise SystemExit("a run did not go as it should")


def measure(options: argparse.Namespace, directory: Path) -> dict:
    """The row of results."""
    generator = random.Random(options.seed)
    prepare_training(directory, generator, STEPS)
    os.environ["RESO_CACHE"] = str(directory / "cache")
    counts = {"skipped": 0, "resumed": 0, "refused": 0}
    for number in range(options.runs):
        bad = BadStep(
            generator.randrange(2),
            generator.randrange(STEPS),
            generator.choice([math.nan, math.inf]),
            generator.choice([None, generator.randrange(10**6)]),
        )
        out = directory / str(number)
        first = steps_of(2, out, STEPS, bad)
        counts["skipped"] += all(skipped_alone(steps, bad.step) for steps in first) and (
            first[0] == first[1]
        )
        counts["refused"] += steps_of(3, out, 2 * STEPS) == [[]] * 3
        second = steps_of(generator.choice([1, 4]), out, 2 * STEPS)
        places = [step["place"] for step in first[0] + second[0]]
        whole = [WINDOWS * PASSES * step for step in range(2 * STEPS)]
        counts["resumed"] += places == whole and all(steps == second[0] for steps in second)
        print(f"run {number + 1}: {bad}, {counts}", flush=True)
    return {"seed": options.seed, "steps": STEPS, "runs": options.runs, **counts}


def skipped_alone(steps: list[dict], bad: int) -> bool:
    """Whether weights and optimizers stayed as they were in step `bad` and in no other."""
    return [step["before"] == step["after"] for step in steps] == [n == bad for n in range(STEPS)]


def steps_of(size: int, out: Path, steps: int, bad: BadStep | None = None) -> list[list[dict]]:
    """The steps of each of `size` processes that begin the run or go on; none if refused."""
    run_processes(size, learn, out, steps, bad)
    return [json.loads(Path(f"{out}.{rank}.json").read_bytes()) for rank in range(size)]


def learn(rank: int, out: Path, steps: int, bad: BadStep | None) -> None:
    """Train as one of the processes; leave place, state before and state after each step."""
    found: list[dict] = []
    step, backward = Learner.step, Learner.backward

    def noting_step(self, progress):
        found.append({"place": self.stream.position, "before": hash_of(self)})
        result = step(self, progress)
        found[-1]["after"] = hash_of(self)
        return result

    def bad_backward(self, objective, index):
        loss = backward(self, objective, index)
        if bad is None or (rank, len(found) - 1) != (bad.rank, bad.step):
            return loss
        if bad.parameter is None:
            return bad.value
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        gradients[bad.parameter % len(gradients)].fill_(bad.value)
        return loss

    Learner.step, Learner.backward = noting_step, bad_backward
    model = ResoLLMConfig(vocab_size=261, dim=32, num_layers=2, num_heads=2, max_seq_len=32)
    config = TrainConfig(
        data=str(out.parent / "rows.jsonl"), out=str(out), steps=steps, model=model,
        batch_size=WINDOWS, grad_accumulation=PASSES, validate_tokens=100, sample_prompt="",
        wandb="disabled", device="cpu",
    )  # fmt: skip
    try:
        train(config, resume=bad is None, report=lambda text: None)
    except TrainingError as error:
        if "expected a multiple of the number of processes" not in str(error):
            raise
    Path(f"{out}.{rank}.json").write_text(json.dumps(found))


def hash_of(learner: Learner) -> str:
    """sha256 of the weights and of the optimizers' state."""
    states = [state for o in learner.optimizers.values() for state in o.state.values()]
    tensors = [*learner.model.parameters(), *(t for state in states for t in state.values())]
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
