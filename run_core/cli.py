"""Command lines of the scripts: typed options from defaults < YAML < arguments.

`key=value` is short for `--key value`, `--on-bad-row` is the same as `--on_bad_row`, and
arguments win over --config wherever it stands. A mistake ends the command with status 2 and one
line that names the key, the nearest known one where it is a typo, and no traceback. Importing
this module does not import torch: --help and mistakes are answered at once.
"""

import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from entropy_core.checks import nearest

FAILURE, USAGE_ERROR, INTERRUPTED = 1, 2, 130
_ASSIGNMENT = re.compile(r"[a-zA-Z_][\w.-]*=.*", re.DOTALL)
# How jsonargparse words an unknown key and a value of a wrong type.
_UNKNOWN = (
    re.compile(r"unrecognized arguments: --(?P<key>[\w.-]+)"),
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.-]+)'"),
    re.compile(r"Option '(?P<key>[\w.-]+)' is not accepted"),
)
_WRONG_TYPE = re.compile(r'key "(?P<key>[\w.]+)":.*(?:Got|Given) value: (?P<value>.*)', re.DOTALL)
_EXPECTED = re.compile(r"Expected a (?:<class '(\w+)'>|typing\.Literal\[([^]]*)\])")


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse with `key=value`, no abbreviations, and short errors that suggest the key."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def read(self, args: Sequence[str]) -> jsonargparse.Namespace:
        """Parse; exits with status 2 on any mistake."""
        arguments = self._joined(args)
        files = [a for a in arguments if a.startswith("--config=")]
        for argument in files:
            self._check_yaml(argument.removeprefix("--config="))
        return self.parse_args(files + [a for a in arguments if a not in files])

    def build(self, cls: type, values: jsonargparse.Namespace, *scripts_own: str) -> Any:
        """The dataclass `cls` of parsed values, `scripts_own` left out; exits as `read` does."""
        try:
            built = self.instantiate(values)
            return cls(**{k: v for k, v in vars(built).items() if k not in scripts_own})
        except ValueError as error:
            self.error(str(error))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"{self.prog}: error: {self._explain(str(message))}", file=sys.stderr)
        print(f"run `python {self.prog} --help` for the options", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)

    def _joined(self, args: Sequence[str]) -> list[str]:
        """Each option and its value as one argument --name=value."""
        left, joined = list(args), []
        while left:
            argument = left.pop(0)
            if _ASSIGNMENT.fullmatch(argument):
                argument = f"--{argument}"
            name, equals, value = argument.partition("=")
            if name.startswith("--"):
                name = "--" + name[2:].replace("-", "_")
            if not equals and self._needs_value(name) and left and not left[0].startswith("--"):
                equals, value = "=", left.pop(0)
            joined.append(name + equals + value)
        return joined

    def _needs_value(self, name: str) -> bool:
        return any(name in a.option_strings and a.nargs is None for a in self._actions)

    def _check_yaml(self, path: str) -> None:
        """Exit with the file's name and line, which jsonargparse does not tell."""
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            self.error(f"config {path}: {error.strerror}")
        except UnicodeDecodeError as error:
            self.error(f"config {path}: not a text file in UTF-8 (byte {error.start})")
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            self.error(f"config {path}{line}: not YAML: {getattr(error, 'problem', None) or error}")
        if not isinstance(content, dict):
            self.error(f"config {path}: expected lines of `key: value`")

    def _explain(self, message: str) -> str:
        for pattern in _UNKNOWN:
            if found := pattern.search(message):
                parts = found.groupdict()
                return self._unknown(f"{parts.get('group', '')}.{parts['key']}".lstrip("."))
        if found := _WRONG_TYPE.search(message):
            kinds = [words or kind for kind, words in _EXPECTED.findall(message)]
            expected = " or ".join(kinds).replace("NoneType", "null")
            return f"{found['key']} = {found['value'].strip()}: expected {expected}"
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        return "\n  ".join(lines[:6])

    def _unknown(self, name: str) -> str:
        options = [o[2:] for a in self._actions for o in a.option_strings if o.startswith("--")]
        known = [o for o in options if not any(n.startswith(f"{o}.") for n in options)]
        by_leaf = {option.rsplit(".", 1)[-1]: option for option in known}
        hint = nearest(name, known)
        if not hint and (leaf := nearest(name.rsplit(".", 1)[-1], list(by_leaf))):
            leaf = leaf.removeprefix("; did you mean ").removesuffix("?")
            hint = f"; did you mean {by_leaf[leaf]}?"
        return f"unknown option {name}{hint}"


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a script's main and exit: expected failures become one line, Ctrl-C status 130."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without a character is no error
    try:
        status = main() or 0
    except SystemExit:
        raise
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = INTERRUPTED
    except _usage_errors() as error:
        status = _fail(error, USAGE_ERROR)
    except _failures() as error:
        status = _fail(error, FAILURE)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # one more Ctrl-C ends the ending, silently
    raise SystemExit(status)


def _usage_errors() -> tuple[type[Exception], ...]:
    """ValueError, DataError among them, is how the packages refuse what a user gave them."""
    return ValueError, jsonargparse.ArgumentError


def _failures() -> tuple[type[Exception], ...]:
    """Imported when something failed, not before: they bring torch with them."""
    from run_core.checkpoint import CheckpointError
    from run_core.run import TrainingError
    from run_core.runlog import RunLogError

    return TrainingError, CheckpointError, RunLogError, FloatingPointError, OSError


def _fail(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status
