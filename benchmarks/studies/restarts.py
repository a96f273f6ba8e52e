"""Kill a process of a run under torchrun: does the run end as it should?

python -m benchmarks.studies.restarts --runs 10 --json benchmarks/results/restarts.json

In each of the runs one process of two, a random one, is killed with SIGKILL at a random time after
the first logged step; torchrun may start them anew once (--max-restarts 1). One more run may not be
restarted: counted are the seconds until torchrun has failed, and the processes that outlive it.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.studies.crash import ROOT, newest_step, prepare_training, show_row

PROCESSES = 2
# torchrun's store, shared by all starts, now and then holds what the killed ones left in it.
STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    row = show_row(parser, measure)
    if row["recovered"] != row["runs"] or row["alone"]["status"] == 0 or row["alone"]["orphans"]:
        raise SystemExit("a run was not recovered, or its failure went unseen")


def measure(options: argparse.Namespace, directory: Path) -> dict:
    """The row of results: runs with one restart, and one without."""
    generator = random.Random(options.seed)
    command, environment = prepare_training(directory, generator, options.steps)

    def kill_one(name: str, restarts: int) -> tuple[int, float, list[int], int]:
        out = directory / name
        arguments = [*torchrun(restarts), *command[1:], "save_every=10", f"out={out}"]
        with (directory / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                arguments, cwd=ROOT, env=environment | STORE, stdout=log, stderr=log
            )
            while not newest_step(out) and process.poll() is None:
                time.sleep(0.01)
            workers = children(process.pid)
            time.sleep(generator.uniform(0, 1))
            if process.poll() is not None:
                raise SystemExit((directory / f"{name}.log").read_text()[-3000:])
            os.kill(generator.choice(workers), signal.SIGKILL)
            killed = time.monotonic()
            status = process.wait()
        alive = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        return status, time.monotonic() - killed, alive, newest_step(out)

    recovered = 0
    for number in range(options.runs):
        status, _, _, step = kill_one(f"run{number}", restarts=1)
        recovered += status == 0 and step == options.steps
        print(f"run {number + 1}: status {status}, step {step}", file=sys.stderr, flush=True)
    status, seconds, orphans, step = kill_one("alone", restarts=0)
    return {
        "seed": options.seed,
        "processes": PROCESSES,
        "steps": options.steps,
        "runs": options.runs,
        "recovered": recovered,
        "alone": {"status": status, "seconds": round(seconds, 1), "orphans": len(orphans)},
    }


def torchrun(restarts: int) -> list[str]:
    """The command that starts PROCESSES processes on this machine."""
    options = ["--standalone", f"--nproc_per_node={PROCESSES}", f"--max-restarts={restarts}"]
    return [sys.executable, "-m", "torch.distributed.run", *options]


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (thread / "children").read_text().split())
    return found


if __name__ == "__main__":
    main()
