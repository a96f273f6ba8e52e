"""Command lines of the scripts: typed options from defaults < YAML < arguments.

`key=value` is short for `--key value`, `--on-bad-row` is the same as `--on_bad_row`, `--srb` and
`--no-srb` are short for `--srb true` and `--srb false`, and arguments win over --config wherever it
stands. A mistake ends the command with status 2 and one
line that names the key, the nearest known one where it is a typo, and no traceback. Importing
this module does not import torch: --help and mistakes are answered at once.

A file becomes arguments (`--model.dim=128`) that stand before those of the command line, so both
are checked in one way.
"""

import argparse
import re
import sys
import types
import typing
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

from entropy_core.checks import nearest_name
from run_core.command_help import HelpAll, short_help
from run_core.config_file import as_arguments, read_mapping
from run_core.exits import USAGE_ERROR
from run_core.files import expanded
from run_core.terminal import one_line

PATHS = {
    "config", "data", "val_data", "out", "tokenizer", "checkpoint", "train", "session", "init_from",
    "save_figure", "plot", "json", "from_csv",
}  # fmt: skip
"""Options in whose values a leading ~ is the home directory."""
_ASSIGNMENT = re.compile(r"[a-zA-Z_][\w.-]*=.*", re.DOTALL)
_SCIENTIFIC = re.compile(r"\d+(\.\d+)?[eE]\+?\d{1,2}")
_SHOWN = 100  # characters of a refused value


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse with `key=value`, flags, no abbreviations, and errors that suggest the key.

    prog is the command that is typed; that of a script without `python`. `common` are the options
    that --help describes, where --help-all describes them all; () for both alike. `configs` is a
    directory of YAML files that --config takes by their name alone.
    """

    def __init__(
        self, *, common: Sequence[str] = (), configs: Path | None = None, **options: Any
    ) -> None:
        super().__init__(allow_abbrev=False, **{"usage": "%(prog)s [options]"} | options)
        self._is_searching = False
        self.common, self.configs = tuple(common), configs
        if common:
            self.add_argument("--help_all", action=HelpAll, help="describe all options")

    def format_help(self) -> str:
        """What --help prints."""
        return short_help(self, self.common) if self.common else super().format_help()

    def format_help_all(self) -> str:
        """What --help-all prints."""
        return super().format_help()

    def read(self, args: Sequence[str], *earlier: str) -> jsonargparse.Namespace:
        """Parse; exits with status 2 on any mistake.

        `earlier` are arguments --name=value that those of a --config file and `args` override.
        """
        given = self._joined(args)
        takes_files = "config" in self._names()
        files = [a for a in given if takes_files and a.startswith("--config=")]
        arguments = list(earlier)
        for argument in files:
            arguments += self.file_arguments(argument.removeprefix("--config="))
        arguments += [argument for argument in given if argument not in files]
        return self._parse([a for argument in arguments for a in self._spelt_out(argument)])

    def file_arguments(self, path: str) -> list[str]:
        """The content of a YAML file as arguments --name=value; exits as `read` does.

        A path without a slash and a suffix is the name of a file in `configs`.
        """
        if self.configs and "/" not in path and "." not in path:
            names = sorted(file.stem for file in self.configs.glob("*.yaml"))
            if path not in names:
                self.error(f"config {path}: expected a file, or one of {', '.join(names)}")
            path = str(self.configs / f"{path}.yaml")
        try:
            return as_arguments(read_mapping(expanded(path)))
        except ValueError as error:
            self.error(f"config {error}")

    def build(self, cls: type, values: jsonargparse.Namespace, *scripts_own: str) -> Any:
        """The dataclass `cls` of parsed values, `scripts_own` left out; exits as `read` does."""
        try:
            built = self.instantiate(values)
            return cls(**{k: v for k, v in vars(built).items() if k not in scripts_own})
        except ValueError as error:
            self.error(str(error))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if self._is_searching:
            raise _Refused
        if isinstance(ex, TypeError | KeyError | RecursionError):
            message = self._wrong_value() or message
        elif isinstance(ex, argparse.ArgumentError) and ex.argument_name:
            message = f"{ex.argument_name}: {ex.message}"
        lines = [one_line(line) for line in str(message).splitlines() if line.strip()]
        print(f"{self.prog}: error: " + "\n  ".join(lines[:6]), file=sys.stderr)
        is_script = self.prog.split()[0].endswith(".py")
        command = f"python {self.prog}" if is_script else self.prog
        print(f"run `{command} --help` for the options", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)

    def first_look(self, args: Sequence[str], *names: str) -> argparse.Namespace:
        """The last value of some options, read before all options are known; None without one."""
        plain = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in names:
            plain.add_argument(f"--{name}")
        options = plain.parse_known_args([a for a in self._joined(args) if "=" in a])[0]
        return argparse.Namespace(**{n: self._in_full(n, v) for n, v in vars(options).items()})

    # --- from typed arguments to --name=value

    def _joined(self, args: Sequence[str]) -> list[str]:
        """Each option and its value as one argument --name=value."""
        remaining, joined = list(args), []
        while remaining:
            argument = remaining.pop(0)
            if _ASSIGNMENT.fullmatch(argument):
                argument = f"--{argument}"
            name, equals, value = argument.partition("=")
            if name.startswith("--"):
                name = "--" + name[2:].replace("-", "_")
            if not equals and remaining and self._takes(name, remaining[0]):
                equals, value = "=", remaining.pop(0)
            elif not equals and self._is_flag(name):
                equals, value = "=", "true"
            elif not equals and self._is_flag(name.replace("--no_", "--", 1)):
                name, equals, value = name.replace("--no_", "--", 1), "=", "false"
            joined.append(name + equals + value)
        return joined

    def _takes(self, name: str, following: str) -> bool:
        """Whether the argument after an option is its value."""
        if following.startswith("--"):
            return False
        nargs = [a.nargs for a in self._actions if name in a.option_strings]
        if "?" in nargs or self._is_flag(name):
            return not _ASSIGNMENT.fullmatch(following)
        return None in nargs

    def _spelt_out(self, argument: str) -> list[str]:
        """One argument with its path and number written in full, or a group's as its members."""
        name, value = _split(argument)
        if not name or value is None:
            return [argument]
        if any(known.startswith(f"{name}.") for known in self._names()):
            try:
                return as_arguments({name: read_mapping(value, is_path=False)})
            except ValueError as error:
                self.error(f"{name}: {error}")
        if self._is_switch(name):
            return [f"--{name}"] if value == "true" else []
        value = self._in_full(name, value)
        if int in _kinds(self._type_of(name)) and _SCIENTIFIC.fullmatch(value):
            number = Decimal(value)
            value = str(int(number)) if number == number.to_integral_value() else value
        return [f"--{name}={value}"]

    def _in_full(self, name: str, value: str | None) -> str | None:
        """The value of an option, with ~ as the home directory where it is a path."""
        if value is None or name not in PATHS:
            return value
        try:
            return expanded(value)
        except ValueError as error:
            self.error(f"{name} = {error}")

    # --- checks

    def _parse(self, arguments: list[str]) -> jsonargparse.Namespace:
        known = self._names()
        for name, _ in map(_split, arguments):
            if name and name not in known:
                self.error(f"unknown option {name}{_suggestion(name, known)}")
        self._arguments = arguments
        try:
            return self.parse_args(arguments)
        except RecursionError as error:
            self.error("an option is nested too deeply", error)

    def _names(self) -> list[str]:
        """Names of the options, without groups of them."""
        names = [o[2:] for a in self._actions for o in a.option_strings if o.startswith("--")]
        return [name for name in names if not any(n.startswith(f"{name}.") for n in names)]

    def _is_switch(self, name: str) -> bool:
        """Whether an option takes no value; in a file it has one, true or false."""
        return any(f"--{name}" in a.option_strings and a.nargs == 0 for a in self._actions)

    def _is_flag(self, name: str) -> bool:
        """Whether --name may stand without its value, which is true or false."""
        return bool in _kinds(self._type_of(name.removeprefix("--")))

    def _type_of(self, name: str) -> Any:
        actions = (a for a in self._actions if f"--{name}" in a.option_strings)
        return next((getattr(action, "_typehint", action.type) for action in actions), None)

    def _wrong_value(self) -> str | None:
        """The first argument that is refused when it stands alone, and what would be accepted."""
        self._is_searching = True
        try:
            name = ""
            for argument in self._arguments:
                option, value = _split(argument)
                name, value = option or name, value if option else argument
                if value is None or not name:
                    continue
                try:
                    self.parse_args([f"--{name}={value}"])
                except (_Refused, RecursionError):
                    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
                    expected = " or ".join(map(_word, _kinds(self._type_of(name))))
                    return f"{name} = {shown}: expected {expected}"
        finally:
            self._is_searching = False
        return None


class _Refused(Exception):
    """An argument is wrong; raised while looking for the one to name."""


def _split(argument: str) -> tuple[str, str | None]:
    """(name, value) of --name=value or --name; "" for anything else, None for no value."""
    name, equals, value = argument.partition("=")
    return name[2:] if name.startswith("--") else "", value if equals else None


def _suggestion(name: str, known: list[str]) -> str:
    """`; did you mean X?` for the nearest option, by its whole name or by its last word."""
    close = nearest_name(name, known)
    if close is None:
        by_leaf = {option.rsplit(".", 1)[-1]: option for option in known}
        leaf = nearest_name(name.rsplit(".", 1)[-1], list(by_leaf))
        close = leaf and by_leaf[leaf]
    return f"; did you mean {close}?" if close else ""


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _word(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(map(repr, typing.get_args(kind)))
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))
