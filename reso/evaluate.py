"""Rerun a measurement: `evaluate.py` of the checkout that this package stands in."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "evaluate.py"


def main(args: Sequence[str], prog: str) -> None:
    """Become `python evaluate.py ARGS`. Raises ValueError where there is no checkout."""
    if not SCRIPT.is_file():
        raise ValueError(
            f"{prog} needs a checkout of the project: its tasks and recorded rows are not "
            "installed. There: pip install -e '.[bench,plots]'"
        )
    os.execv(sys.executable, [sys.executable, str(SCRIPT), *args])
