"""Kill a training with SIGKILL again and again: does it end with the same weights?

python -m benchmarks.studies.crash --kills 20 --json benchmarks/results/crash.json

A third of the kills come at a random time after the start, imports included; a third at a random
time after the first new step; a third wait for a checkpoint that is being written (a .tmp-
directory) and strike inside the save. After each, the same command is given again with --resume
(without it while there is no run yet). The weights and the optimizer's state at the end are
compared by sha256 with those of an undisturbed run.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAVE_EVERY = 20
OPTIONS = [
    "model.vocab_size=261", "model.dim=32", "model.num_layers=2", "model.num_heads=2",
    "model.max_seq_len=32", "model.dropout=0.1", "batch_size=2", "validate_every=100",
    f"save_every={SAVE_EVERY}", "log_every=1", "sample_prompt=", "wandb=disabled", "device=cpu",
]  # fmt: skip


@dataclass(frozen=True)
class CrashReport:
    """The kills of a run, those that struck inside a save, and the steps that each cost.

    A kill before the first step of its process costs none.
    """

    kills: int
    in_save: int
    resumes: int
    lost_steps: tuple[int, ...]


def kill_until_done(
    start: Callable[[list[str]], subprocess.Popen], run_dir: Path, *, kills: int,
    generator: random.Random, speed: float = 1.0,
) -> CrashReport:  # fmt: skip
    """Start, kill and resume until `kills` kills have struck, then let the run end.

    `start(extra arguments)` starts a process; with `speed` 10 the kills come ten times sooner.
    RuntimeError when a resume fails, or when the run ends before it was killed so often.
    """
    in_save, resumes, lost = 0, 0, []
    while True:
        last_write = _last_write(run_dir)
        exists = (run_dir / "config.yaml").exists()
        process = start(["--resume"] if exists else [])
        resumes += exists
        if len(lost) == kills:
            if (code := process.wait()) != 0:
                raise RuntimeError(f"the last resume failed with exit code {code}")
            return CrashReport(kills, in_save, resumes, tuple(lost))
        moment = [*LONGEST][len(lost) % 3]
        while not may_strike(moment, run_dir, process.pid, last_write) and process.poll() is None:
            time.sleep(0.0002)
        time.sleep(generator.uniform(0, LONGEST[moment] / speed))
        if (code := process.poll()) is not None:
            raise RuntimeError(f"exit code {code} before kill {len(lost) + 1} of {kills}")
        process.send_signal(signal.SIGKILL)
        process.wait()
        in_save += _is_saving(run_dir, process.pid)
        trained = _last_write(run_dir) != last_write
        lost.append(_steps_logged(run_dir) - newest_step(run_dir) if trained else 0)


def final_hash(run_dir: Path) -> str:
    """sha256 of weights and optimizer state, generators included, of the newest checkpoint."""
    newest = Path(run_dir, "checkpoints", f"step_{newest_step(run_dir):08d}")
    files = (newest / f"{part}.safetensors" for part in ("model", "optimizer"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _names(run_dir: Path) -> list[str]:
    try:
        return os.listdir(Path(run_dir, "checkpoints"))
    except FileNotFoundError:
        return []


def _is_saving(run_dir: Path, pid: int) -> bool:
    return any(name.startswith(".tmp-") and name.endswith(f"-{pid}") for name in _names(run_dir))


def _last_write(run_dir: Path) -> int | None:
    path = Path(run_dir, "metrics.jsonl")
    return path.stat().st_mtime_ns if path.exists() else None


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint of a run; 0 without any."""
    steps = [name for name in _names(run_dir) if name.startswith("step_")]
    return int(max(steps, default="step_0").removeprefix("step_"))


def _steps_logged(run_dir: Path) -> int:
    """Step of the last whole row of metrics.jsonl."""
    path = Path(run_dir, "metrics.jsonl")
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


LONGEST = {"start": 8.0, "step": 2.0, "save": 0.005}  # seconds from a moment to a kill, at most


def may_strike(moment: str, run_dir: Path, pid: int, last_write: int | None) -> bool:
    """Whether a process has reached the moment from which on it is to be killed."""
    if moment == "step":
        return _last_write(run_dir) != last_write
    return moment == "start" or _is_saving(run_dir, pid)


# --- the script -----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4000)
    if not show_row(parser, measure)["equal"]:
        raise SystemExit("the weights differ from those of the uninterrupted run")


def show_row(
    parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace, Path], dict]
) -> dict:
    """Measure in a temporary folder; print the row, write it to the file of --json, return it."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the row here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        row = measure(options, Path(directory))
    study = f"benchmarks.studies.{Path(sys.argv[0]).stem}"
    row = {"command": " ".join(["python", "-m", study, *sys.argv[1:]]), **row}
    print(json.dumps(row, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(row, indent=2) + "\n")
    return row


def prepare_training(
    directory: Path, generator: random.Random, steps: int
) -> tuple[list[str], dict[str, str]]:
    """Write 400 conversations to `directory`; command and environment of a training on them."""
    data = directory / "rows.jsonl"
    rows = [json.dumps({"text": row_of_text(generator, i)}) + "\n" for i in range(400)]
    data.write_text("".join(rows))
    command = [sys.executable, "train.py", *OPTIONS, f"data={data}", f"steps={steps}"]
    cache = {"OMP_NUM_THREADS": "1", "RESO_CACHE": str(directory / "cache")}
    return command, {**os.environ, **cache}


def measure(options: argparse.Namespace, directory: Path) -> dict:
    """The row of results: one uninterrupted run, one that is killed, and how they compare."""
    generator = random.Random(options.seed)
    command, environment = prepare_training(directory, generator, options.steps)
    log = (directory / "log").open("w")

    def start(name: str, extra: list[str]) -> subprocess.Popen:
        arguments = [*command, f"out={directory / name}", *extra]
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log, stderr=log)

    with log:
        began = time.perf_counter()
        if start("whole", []).wait() != 0:
            raise SystemExit((directory / "log").read_text())
        undisturbed = time.perf_counter() - began
        try:
            report = kill_until_done(
                partial(start, "killed"), directory / "killed", kills=options.kills,
                generator=generator,
            )  # fmt: skip
        except RuntimeError as error:
            raise SystemExit(f"{error}\n{(directory / 'log').read_text()[-3000:]}") from error
    hashes = [final_hash(directory / name) for name in ("whole", "killed")]
    return _record(options, report, hashes, undisturbed, time.perf_counter() - began)


def _record(options, report: CrashReport, hashes: list[str], undisturbed, total) -> dict:
    import torch  # here: the tests use the functions above without it

    from run_core.hardware import environment

    return {
        "options": " ".join([*OPTIONS, f"steps={options.steps}"]),
        "seed": options.seed,
        **asdict(report),
        "largest_loss_allowed": SAVE_EVERY,
        "sha256_uninterrupted": hashes[0],
        "sha256_killed": hashes[1],
        "equal": hashes[0] == hashes[1],
        "seconds_uninterrupted": round(undisturbed, 1),
        "seconds_with_kills": round(total - undisturbed, 1),
        "environment": environment(torch.device("cpu")),
    }


def row_of_text(generator: random.Random, number: int) -> str:
    """A conversation of random words."""
    words = ["sea", "red", "fox", "runs", "over", "old", "hills", "and", "sings"]
    ask, say = (" ".join(generator.choices(words, k=8)) for _ in range(2))
    return f"### Human: {ask} {number}?### Assistant: {say}."


if __name__ == "__main__":
    main()
