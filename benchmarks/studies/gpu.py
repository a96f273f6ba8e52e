"""Is this GPU used well, and is the model right on it? One script, under eight minutes.

python -m benchmarks.studies.gpu --data data/guanaco_900.jsonl --json gpu.json
python -m benchmarks.studies.gpu --only training/large decoding --record
python -m benchmarks.studies.gpu --device cpu --tiny               proves the script, no more

    tests      the tests marked cuda
    parity     logits, loss and norm of the gradient beside those of float32 on the CPU
    training   tokens a second in bfloat16, memory, and MFU of three sizes: the full stack, the
               control, and Hugging Face's GPT-2 and Llama of the same shape
    quality    full and control after a minute of training each, in float32, bits per byte
    compile    the graphs that torch.compile cuts the loss into, why, and its speed
    decoding   tokens a second at batch 1: as it is, compiled, with CUDA graphs; the engine

A check that fails is named with its error, and the others go on; the exit status is then 1. What
does not fit into `--minutes` is named too. MFU is 6 operations a weight and token, and those of
attention, over what a product of two large bfloat16 matrices reaches on the same device, as though
every token went through every layer. Weights are random, as in `speed.py`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.kit import gpu_checks, gpu_speeds
from benchmarks.kit.gpu_setting import NotHere, Setting, forget
from benchmarks.kit.learners import guanaco, score
from benchmarks.kit.records import REPOSITORY, Row, write_row
from benchmarks.kit.trials import trained, trials_of
from reso_llm.config import control_of
from run_core.hardware import pick_device

PARTS = ("tests", "parity", "training", "quality", "compile", "decoding")
TINY_TESTS = "tests/entropy_core/test_core_sedenion.py"
MODELS = ("full", "control")


class Check(NamedTuple):
    """Something to find out, as part/what."""

    name: str
    find: Callable[[], Row]


def all_checks(setting: Setting) -> Iterator[Check]:
    """Every check, in the order of PARTS."""
    small = setting.sizes["small"]
    models = {"full": small, "control": control_of(small)}
    yield Check("tests", partial(cuda_tests, setting))
    for model, config in models.items():
        for precision in ("float32", "bfloat16"):
            find = partial(gpu_checks.parity, setting, config, precision)
            yield Check(f"parity/{model}/{precision}", find)
    for size, config in setting.sizes.items():
        for model in (*MODELS, "gpt2", "llama"):
            find = partial(gpu_speeds.training, setting, config, model)
            yield Check(f"training/{size}/{model}", find)
    yield Check("quality", partial(quality, setting))
    for model, config in models.items():  # what may take minutes comes last
        yield Check(f"compile/{model}", partial(gpu_checks.compiling, setting, config))
    for model, config in models.items():
        for mode in ("eager", "compiled", "cuda graphs"):
            find = partial(gpu_speeds.decoding, setting, config, mode)
            yield Check(f"decoding/{model}/{mode}", find)
        yield Check(f"decoding/{model}/engine", partial(gpu_speeds.writing, setting, config))
    yield Check("decoding/gpt2/eager", partial(gpu_speeds.decoding_gpt2, setting, small))


def cuda_tests(setting: Setting) -> Row:
    """What pytest says of the tests marked cuda. Raises RuntimeError where one fails."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider"]
    command.append(TINY_TESTS if setting.tiny else "tests")
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    lines = done.stdout.splitlines() or done.stderr.splitlines() or ["pytest said nothing"]
    if done.returncode:
        raise RuntimeError(lines[-1])
    return {"pytest": lines[-1]}


def quality(setting: Setting) -> Row:
    """Bits per byte on held-out conversations, and the steps made."""
    if setting.data is None:
        raise ValueError("--data is missing: data/guanaco_900.jsonl, which `make data` puts there")
    task = guanaco(setting.data)
    if setting.tiny:
        task.config = setting.sizes["small"]
    options = argparse.Namespace(seeds=[0], pace=None, device=setting.device.type, jobs=0)
    budget = {"steps": 1} if setting.tiny else {"seconds": setting.quality_seconds}
    learners = trained(trials_of("gpu", "guanaco", MODELS, options, **budget), task)
    return {
        name: {"steps": learner.steps, **score(learner, task)} for name, learner in learners.items()
    }


def run(wanted: Iterator[Check], minutes: float) -> dict[str, Row]:
    """What was found, by the name of the check; `failed` or `left_out` says why nothing was."""
    found, deadline = {}, time.perf_counter() + 60 * minutes
    for check in wanted:
        started = time.perf_counter()
        if started > deadline:
            found[check.name] = {"left_out": f"{minutes:g} minutes were over"}
            continue
        try:
            found[check.name] = check.find()
        except NotHere as reason:
            found[check.name] = {"left_out": str(reason)}
        except Exception as error:  # noqa: BLE001 whatever it is, the others are wanted
            found[check.name] = {"failed": f"{type(error).__name__}: {first_line(error)}"}
        forget()
        found[check.name]["check_seconds"] = round(time.perf_counter() - started, 1)
        print(f"{check.name}: {json.dumps(found[check.name])}", file=sys.stderr, flush=True)
    return found


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--data", help="guanaco-format rows, for quality")
    parser.add_argument("--only", nargs="+", default=PARTS, help="parts, or part/model/...")
    parser.add_argument("--minutes", type=float, default=8, help="begin no check after these")
    parser.add_argument("--tiny", action="store_true", help="tiny models, once: no measurement")
    parser.add_argument("--json", type=Path, help="write all that was found here")
    parser.add_argument("--record", action="store_true", help="add a row to results/gpu.jsonl")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.only if name.split("/")[0] not in PARTS]
    if unknown:
        parser.error(f"--only {' '.join(unknown)}: expected some of {', '.join(PARTS)}")
    if options.tiny and options.record:
        parser.error("--tiny measures nothing: leave out --record")
    try:
        setting = Setting(pick_device(options.device), options.tiny, options.data)
    except ValueError as error:
        parser.error(str(error))
    torch.manual_seed(0)
    wanted = (c for c in all_checks(setting) if c.name.startswith(tuple(options.only)))
    found = run(wanted, options.minutes)
    row: dict[str, Any] = {
        "device": setting.device.type, "tiny": options.tiny, "checks": found,
        "failed": [name for name, result in found.items() if "failed" in result],
        "left_out": [name for name, result in found.items() if "left_out" in result],
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(row, indent=1) + "\n")
    if options.record:
        write_row("gpu", row)
    for kind in ("failed", "left_out"):
        for name in row[kind]:
            print(f"{kind.replace('_', ' ')}: {name}: {found[name][kind]}")
    print(f"{len(found)} checks, {len(row['failed'])} failed, {len(row['left_out'])} left out")
    return 1 if row["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
