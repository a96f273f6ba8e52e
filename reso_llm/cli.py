"""Command lines of the scripts: typed options from defaults < YAML < arguments.

`key=value` is short for `--key value`. A mistake ends the command with status 2 and one line that
names the key, the nearest known one where it is a typo, and no traceback.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jsonargparse

from reso_llm.checkpoint import CheckpointError
from reso_llm.config import nearest
from reso_llm.runlog import RunLogError
from reso_llm.sources import DataError
from reso_llm.training import TrainingError

USAGE_ERROR, FAILURE = 2, 1
_ASSIGNMENT = re.compile(r"([a-zA-Z_][\w.]*)=(.*)", re.DOTALL)
_UNKNOWN = (
    re.compile(r"unrecognized arguments: --([\w.-]+)", re.IGNORECASE),
    re.compile(r"does not accept option ['\"]([\w.]+)['\"]", re.IGNORECASE),
    re.compile(r"key ['\"]([\w.]+)['\"] is not expected", re.IGNORECASE),
)


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse with `key=value`, no abbreviations, and short errors that suggest the key."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def read(self, args: Sequence[str]) -> jsonargparse.Namespace:
        """Parse; exits with status 2 on any mistake."""
        return self.parse_args([_expand(argument) for argument in args])

    def build(self, cls: type, values: jsonargparse.Namespace, *scripts_own: str) -> Any:
        """The dataclass `cls` of parsed values, `scripts_own` left out; exits as `read` does."""
        try:
            built = self.instantiate(values)
            return cls(**{k: v for k, v in vars(built).items() if k not in scripts_own})
        except ValueError as error:
            self.error(str(error))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lines = [line.strip() for line in str(message).splitlines() if line.strip()]
        text = "\n  ".join(lines[:6])
        print(f"{self.prog}: error: {text}{self._suggestion(text)}", file=sys.stderr)
        print(f"run `python {self.prog} --help` for the options", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)

    def _suggestion(self, message: str) -> str:
        names = [
            option[2:] for a in self._actions for option in a.option_strings if len(option) > 2
        ]
        for pattern in _UNKNOWN:
            if found := pattern.search(message):
                name = found[1]
                leaves = {known.rsplit(".", 1)[-1]: known for known in names}
                near = nearest(name, names) or nearest(name.rsplit(".", 1)[-1], list(leaves))
                return near
        return ""


def _expand(argument: str) -> str:
    """`key=value` as `--key=value`; everything else as it is."""
    return f"--{argument}" if _ASSIGNMENT.fullmatch(argument) else argument


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a script's main and exit: expected failures become one line, Ctrl-C status 130."""
    try:
        status = main() or 0
    except (DataError, jsonargparse.ArgumentError) as error:
        status = _fail(error, USAGE_ERROR)
    except (TrainingError, CheckpointError, RunLogError, FloatingPointError) as error:
        status = _fail(error, FAILURE)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    raise SystemExit(status)


def _fail(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status
