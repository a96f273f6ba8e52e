"""The command `reso`: train, chat, demo, serve, evaluate, export, inspect.

reso                          the commands
reso train --help             the options of one
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from entropy_core.checks import nearest
from run_core import exits

COMMANDS = {
    "train": ("reso.train", "train a model, or a reactor, from scratch"),
    "chat": ("reso.chat", "chat with a model in the terminal"),
    "demo": ("reso.demo", "a tour: each stage of a model, with and without it"),
    "serve": ("reso_llm.server.__main__", "a page and OpenAI's API for a model (extra web)"),
    "evaluate": ("reso.evaluate", "rerun a measurement (in a checkout)"),
    "export": ("reso.export", "write a run as a model of transformers (extra hf)"),
    "inspect": ("reso.show", "say what a run, a checkpoint or a data file is"),
}
"""Module and line of help of each command. Only the chosen one is imported."""


def main() -> int | None:
    """Run the command that the first argument names."""
    name, *args = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return None
    if name not in COMMANDS:
        hint = nearest(name, list(COMMANDS)) or f": expected {', '.join(COMMANDS)}"
        print(f"reso: error: there is no command {name}{hint}", file=sys.stderr)
        return exits.USAGE_ERROR
    command: Callable[[Sequence[str], str], None] = import_module(COMMANDS[name][0]).main
    return command(args, f"reso {name}")


def overview() -> str:
    """What `reso --help` prints."""
    rows = [f"  {name:<10} {meaning}" for name, (_, meaning) in COMMANDS.items()]
    return "\n".join(["usage: reso COMMAND [options]", "", *rows, "", "reso COMMAND --help"])


def run() -> None:
    """The console script."""
    exits.run(main)


if __name__ == "__main__":
    run()
