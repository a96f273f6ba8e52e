"""The notebook runs from its first cell to its last, with fewer steps of training.

It is stored with the outputs of one whole run, so that a reader who runs nothing sees them.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "examples" / "tour.ipynb"


def test_the_tour_is_stored_with_its_outputs():
    """Guards cells that were changed and not run again, and outputs that bloat the repository."""
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    told = "".join("".join(output.get("text", "")) for output in outputs)
    steps = re.search(r"STEPS = (\d+)", "".join(code[0]["source"]))[1]
    assert f"{steps} steps: " in told
    assert ": ''" not in told
    assert all(
        name in told for name in ("guidance 0.0", "used:", "Phase-Slip: rep", "sampling: rep")
    )
    assert TOUR.stat().st_size < 1_000_000


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
