"""Rerun the measurements behind the documents: every task prints a table.

python evaluate.py --help                       the tasks
python evaluate.py mirror --help                the options of one
python evaluate.py lm --checkpoint runs/first --data data/heldout.jsonl --json -
python evaluate.py mirror --mode published corrected --plot mirror.png
python evaluate.py zombie --data data/tinyshakespeare.txt --record
python evaluate.py srb --quick

The tasks are those of `benchmarks/tasks`, which says what a task is. One that draws a figure takes
--quick, --plot and --record. Only the chosen one is imported.
"""

import ast
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.tasks import TASKS
from run_core import cli, exits
from run_core.files import require_writable

DPI = 120
QUICK = "quick run: too little is measured for a conclusion"
PLOTS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
OURS = {"benchmarks", "cer", "entropy_core", "reso_llm"}


def make_parser() -> cli.Parser:
    """The parser of the first argument alone: the name of a task."""
    parser = cli.Parser(
        prog="evaluate.py", usage="%(prog)s TASK [options]",
        description="Rerun what the documents claim.",
    )  # fmt: skip
    subcommands = parser.add_subcommands(dest="task")
    for name, module in TASKS.items():
        subcommands.add_subcommand(name, cli.Parser(add_help=False), help=description(module))
    return parser


def description(module: str) -> str:
    """The first line of a module's docstring, read without importing it."""
    source = Path(find_spec(module).origin).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def task_parser(name: str, task: ModuleType) -> cli.Parser:
    """The parser of the task's own options and the shared ones."""
    parser = cli.Parser(prog=f"evaluate.py {name}", description=description(TASKS[name]))
    task.add_options(parser)
    parser.add_argument("--json", type=str, help="write the rows to this file, - for stdout")
    if hasattr(task, "figure"):
        parser.add_argument(
            "--quick", action="store_true",
            help="in seconds, and no conclusion; sizes and seeds are its own",
        )  # fmt: skip
        parser.add_argument("--plot", type=str, help="write the figure to this file")
        parser.add_argument(
            "--record", action="store_true", help="add the rows to benchmarks/results"
        )
    return parser


def check(options: Any) -> None:
    """ValueError for what would fail only after the measurement."""
    plot, seeds = options.get("plot"), options.get("seeds") or ()
    if len(set(seeds)) < len(seeds) or min(seeds, default=0) < 0:
        given = " ".join(map(str, seeds))
        raise ValueError(f"--seeds {given}: expected different seeds from 0 on")
    if options.get("quick") and options.record:
        raise ValueError("--quick measures too little to be recorded: leave out --record")
    if plot and find_spec("matplotlib") is None:
        raise ValueError('--plot needs matplotlib: pip install "reso-llm[plots]"')
    for name, path in (("--plot", plot), ("--json", options.json if options.json != "-" else None)):
        if path:
            require_writable(path, name)
    if plot and Path(plot).suffix.lower() not in PLOTS:
        raise ValueError(f"--plot {plot}: expected a name that ends in {', '.join(PLOTS)}")


@contextmanager
def extras_named(name: str) -> Iterator[None]:
    """Turn the lack of a package that an extra installs into one line that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:
            raise
        missing = f"{name} needs {error.name}"
        raise ValueError(f'{missing}: pip install "reso-llm[bench,plots]"') from None


def main() -> None:
    name = make_parser().read(sys.argv[1:2]).task
    with extras_named(name):
        measure(name)


def measure(name: str) -> None:
    """Run a task, and print and write its rows."""
    task = import_module(TASKS[name])
    options = task_parser(name, task).read(sys.argv[2:])
    check(options)
    rows = task.run(options)
    if options.get("quick"):
        rows = [row | {"quick": True} for row in rows]
    written = json.dumps(rows, indent=2)
    rows = json.loads(written)
    if options.json == "-":
        print(written)
    else:
        text = task.text(rows)
        print(marked_quick(text) if options.get("quick") else text)
    if options.json not in (None, "-"):
        Path(options.json).write_text(written + "\n", encoding="utf-8")
    if options.get("plot"):
        task.figure(rows).savefig(options.plot, dpi=DPI)


def marked_quick(text: str) -> str:
    """The text of a task with a line above each of its tables: these are of a quick run."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("|") and not (lines and lines[-1].startswith("|")):
            lines += [QUICK, ""]
        lines.append(line)
    return "\n".join(lines if QUICK in lines else [QUICK, *lines])


if __name__ == "__main__":
    exits.run(main)
