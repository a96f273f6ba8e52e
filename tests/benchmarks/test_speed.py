"""The README's table of speeds, and times of a start."""

import pytest

from benchmarks.kit.records import REPOSITORY, current_rows
from benchmarks.studies.speed import readme_table
from benchmarks.studies.start import seconds

MODELS = "full", "control", "gpt2"


def test_the_readme_has_the_newest_recorded_speeds():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    newest = readme_table(current_rows("speed"))
    assert newest in readme, "paste what `python -m benchmarks.studies.speed --table` prints"


def test_a_table_takes_the_newest_rows_of_one_thread():
    measured = ("training", 1, 1.0), ("decoding", 1, 2e3), ("training", 1, 3.0), ("decoding", 2, 4)
    rows = [
        {"work": work, "threads": n, "tokens_per_second": dict.fromkeys(MODELS, speed)}
        for work, n, speed in measured
    ]
    lines = readme_table([*rows, {"work": "profile", "threads": 1}]).splitlines()
    assert lines[2] == "| training | 3 | 3 | 3 |"
    assert lines[3] == "| writing, all dials on | 2,000 | 2,000 | 2,000 |"


def test_the_time_of_a_process_is_its_own():
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    assert seconds(("-c", "pass")) < 0.4 < seconds(("-c", busy))
    endless = "print(1, flush=True)\nwhile True: pass"
    assert 0 < seconds(("-c", endless), to_first_line=True) < 5
    with pytest.raises(RuntimeError, match="status 3"):
        seconds(("-c", "raise SystemExit(3)"))
