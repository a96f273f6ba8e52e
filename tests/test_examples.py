"""The notebook runs from its first cell to its last, with fewer steps of training."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "examples" / "tour.ipynb"


def test_the_tour_runs(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rows = tmp_path / "rows.jsonl"
    texts = (f"Number {n} of many short texts, and one more." for n in range(400))
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code, changed = re.subn(r"^STEPS = \d+", "STEPS = 2", code)
    assert changed == 1, "the first line of code is the one parameter"
    assert 'data="sample"' in code
    code = code.replace('data="sample"', f"data={str(rows)!r}")
    exec(compile(code, TOUR.name, "exec"), {})
    told = capsys.readouterr().out
    assert "2 steps: " in told
    assert "used:   ('My dog is called Biscuit.',)" in told
    assert re.search(r"^Phase-Slip: rep .*, slips at \[\d", told, re.MULTILINE)
