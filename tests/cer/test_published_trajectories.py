"""The mirror test in published mode gives the published trajectories, number for number."""

import json
from pathlib import Path

import pytest

from cer.mirror import mirror_test

REFERENCE = Path(__file__).resolve().parents[3] / "shared/reference/cer_mirror_seeds_0_4.json"


def keys(tree):
    """The schema: nested keys, one element of each list."""
    if isinstance(tree, dict):
        return {k: keys(v) for k, v in tree.items()}
    return [keys(tree[0])] if isinstance(tree, list) else type(tree).__name__


@pytest.mark.skipif(not REFERENCE.exists(), reason="no ../shared with the published trajectories")
def test_the_result_has_the_published_schema_and_numbers():
    reference = json.loads(REFERENCE.read_text())
    ours = json.loads(json.dumps(mirror_test([0, 1])))
    assert keys(ours["seed_results"]) == keys(reference["seed_results"])
    assert keys(ours["summary"]) == keys(reference["summary"])
    published = reference["metadata"]
    assert ours["metadata"] | {"n_seeds": 10} == published | {
        "mode": "published",
        "num_parameters": 1_645_952,
    }
    for mine, theirs in zip(ours["seed_results"], reference["seed_results"][:2], strict=True):
        for a, b in zip(mine["conditions"], theirs["conditions"], strict=True):
            for name in ("input_entropy", "output_entropy"):
                assert a[name] == pytest.approx(b[name], abs=5e-6)
            for x, y in zip(a["steps"], b["steps"], strict=True):
                assert {k: v for k, v in x.items() if not isinstance(v, float)} == {
                    k: v for k, v in y.items() if not isinstance(v, float)
                }
                assert [v for v in x.values() if isinstance(v, float)] == pytest.approx(
                    [v for v in y.values() if isinstance(v, float)], abs=5e-6
                )
