"""Processor time from a command to its first sign of life, each in a fresh process.

python -m benchmarks.studies.start

    torch          `import torch`
    import         `from reso_llm.inference import ResoLLMInference`
    load           that, and `from_pretrained()`
    chat           `python chat.py` to its end, with no line to answer
    demo           `python demo.py` to its first line
    help           `python -m reso --help`

The commands take turns; a time is the processor's, which on a quiet machine is that of the clock:
medians over the rounds, after one round that leaves compiled files behind. What is ours is the
excess over torch. The row goes to results/start.jsonl.
"""

import argparse
import os
import statistics
import subprocess
import sys
from functools import partial

from benchmarks.kit.records import REPOSITORY, write_row
from benchmarks.kit.tables import table
from benchmarks.kit.timing import interleaved

IMPORT = "from reso_llm.inference import ResoLLMInference"
COMMANDS = {
    "torch": ("-c", "import torch"),
    "import": ("-c", IMPORT),
    "load": ("-c", f"{IMPORT}; ResoLLMInference.from_pretrained()"),
    "chat": ("chat.py",),
    "demo": ("demo.py",),
    "help": ("-m", "reso", "--help"),
}
TO_FIRST_LINE = {"demo"}
"""Commands that are ended after their first line."""


def seconds(arguments: tuple[str, ...], to_first_line: bool = False) -> float:
    """Processor time of a Python process: user and system, until it ends or is ended.

    Raises RuntimeError for one that fails.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        if to_first_line:
            process.stdout.readline()
            process.kill()
        else:
            process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not to_first_line:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {process.returncode}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    measures = {
        name: partial(seconds, arguments, name in TO_FIRST_LINE)
        for name, arguments in COMMANDS.items()
    }
    interleaved(measures, 1)
    medians = {name: statistics.median(v) for name, v in interleaved(measures, rounds).items()}
    write_row("start", {"rounds": rounds, "cpu_seconds": medians})
    print(table(("CPU seconds", *medians), [("median", *(f"{v:.2f}" for v in medians.values()))]))


if __name__ == "__main__":
    main()
