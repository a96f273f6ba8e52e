"""The short --help: the options that people use, one column, at most 80 characters wide."""

import argparse
import textwrap
from collections.abc import Sequence

WIDTH, COLUMN = 80, 27


class HelpAll(argparse.Action):
    """An option without a value that prints the parser's `format_help_all` and ends the command."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        print(parser.format_help_all(), end="")
        parser.exit()


def short_help(parser: argparse.ArgumentParser, names: Sequence[str]) -> str:
    """Usage, description and the options of these names, each with its default."""
    known = {action.dest: action for action in parser._actions}
    lines = [f"usage: {parser.prog} [options]", "", *textwrap.wrap(parser.description, WIDTH), ""]
    for name in names:
        lines += _row(_spelling(known[name]), _meaning(known[name]))
    lines += _row("--help-all", f"all {len(parser._names())} options")
    return "\n".join(lines) + "\n"


def _row(option: str, meaning: str) -> list[str]:
    """The lines of one option; a long one has a line of its own."""
    text = textwrap.wrap(meaning, WIDTH - COLUMN)
    first = f"  {option}".ljust(COLUMN)
    starts = [first.rstrip()] if len(first) > COLUMN or first[-1] != " " else []
    heads = [" " * COLUMN] * len(text) if starts else [first, *[" " * COLUMN] * (len(text) - 1)]
    return starts + [head + line for head, line in zip(heads, text, strict=True)]


def _spelling(action: argparse.Action) -> str:
    """`--max-length N`; a flag has no value, and one that is on by default is spelt `--no-flag`."""
    name = action.option_strings[-1].removeprefix("--").replace("_", "-")
    if action.nargs == 0 or _is_flag(action):
        return f"--no-{name}" if action.default is True else f"--{name}"
    kind = str(getattr(action, "_typehint", action.type))
    value = "N" if "int" in kind or "float" in kind else name.rpartition("-")[2].upper()
    return f"--{name} [{value}]" if action.nargs == "?" else f"--{name} {value}"


def _is_flag(action: argparse.Action) -> bool:
    return "bool" in str(getattr(action, "_typehint", action.type))


def _meaning(action: argparse.Action) -> str:
    default = action.default
    is_told = isinstance(default, str | int | float) and not isinstance(default, bool)
    says = action.help.removesuffix(".")
    return f"{says} (default: {default})" if is_told and default != argparse.SUPPRESS else says
