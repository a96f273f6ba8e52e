"""Train long with many saves and random kills: do memory and open files stay as they are?

python -m benchmarks.studies.soak --steps 1000 --save_every 5 --kills 4 --json FILE

The process is killed with SIGKILL at random steps and resumed. While it trains, its resident
memory and its open files are read from /proc. The first WARM saves of a process are not counted:
the first picture of the loss falls among them, and importing matplotlib for it takes 34 MB once.
A process that lived for WARM saves more tells how much its memory grew after them, from the median
of the first third to that of the last.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.studies.crash import ROOT, newest_step, prepare_training, show_row

WARM = 20  # saves
SECONDS = 0.05  # between two readings


class Reading(NamedTuple):
    """What a process holds after saving `step`."""

    step: int
    resident_bytes: int
    open_files: int


def read_process(pid: int, step: int) -> Reading:
    """OSError once the process is gone."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Reading(step, pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")))


def growth(readings: list[Reading]) -> float:
    """Share by which the median memory of the last third exceeds that of the first."""
    third = len(readings) // 3
    first, last = (
        statistics.median(r.resident_bytes for r in part)
        for part in (readings[:third], readings[-third:])
    )
    return last / first - 1


def follow(process: subprocess.Popen, run_dir: Path, kill_at: int | None) -> list[Reading]:
    """Readings while the process trains, from its first save on; it is killed at step `kill_at`."""
    readings, began = [], newest_step(run_dir)
    while process.poll() is None:
        step = newest_step(run_dir)
        if kill_at is not None and step >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            break
        if step > began:
            try:
                readings.append(read_process(process.pid, step))
            except (OSError, IndexError):  # it ended between the two looks
                break
        time.sleep(SECONDS)
    return readings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--save_every", type=int, default=5)
    parser.add_argument("--kills", type=int, default=4)
    show_row(parser, measure)


def measure(options: argparse.Namespace, directory: Path) -> dict:
    """The row of results: growth of memory and open files of each process that lived long."""
    generator = random.Random(options.seed)
    run_dir = directory / "run"
    command, environment = prepare_training(directory, generator, options.steps)
    command += [f"save_every={options.save_every}", f"out={run_dir}"]
    kills = sorted(generator.randrange(1, options.steps) for _ in range(options.kills))
    growths, files = [], []
    for kill_at in [*kills, None]:
        resume = ["--resume"] if (run_dir / "config.yaml").exists() else []
        process = subprocess.Popen(
            [*command, *resume], cwd=ROOT, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        readings = follow(process, run_dir, kill_at)
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"exit code {process.returncode} at step {newest_step(run_dir)}")
        warm = WARM * options.save_every
        steady = [r for r in readings if r.step - readings[0].step >= warm]
        if steady and steady[-1].step - steady[0].step >= warm:
            growths.append(round(growth(steady), 4))
            files.append(statistics.multimode(r.open_files for r in steady))
    return {
        "steps": newest_step(run_dir),
        "kills": len(kills),
        "memory_growth": growths,
        "usual_open_files": files,
    }


if __name__ == "__main__":
    main()
