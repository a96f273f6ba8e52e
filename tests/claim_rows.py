"""What the tests of claims share: evidence of rows made up, and rows that differ in one place."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.claims import HOLDS, Claim, Evidence

Row = dict[str, Any]


def evidence_of(**tables: Sequence[Row]) -> Evidence:
    """Evidence of these rows alone, by the name of their file."""
    return Evidence(lambda name: list(tables.get(name, [])))


def changed(thing: Any, changes: Mapping[tuple, Any]) -> Any:
    """As read back from JSON, with another value at each path of keys and indices."""
    thing = json.loads(json.dumps(thing))
    for (*inner, last), value in changes.items():
        place = thing
        for key in inner:
            place = place[key]
        place[last] = value
    return thing


def the_claim(claims: Sequence[Claim], start: str) -> Claim:
    """The one claim whose text starts so."""
    (claim,) = [claim for claim in claims if claim.text.startswith(start)]
    return claim


def assert_turns(
    claims: Sequence[Claim], start: str, good: Mapping[str, Sequence[Row]],
    changes: Mapping[tuple, Any], verdict: str,
) -> None:  # fmt: skip
    """The claim holds of good rows, and has this verdict of the changed ones."""
    claim = the_claim(claims, start)
    found = claim.finding(evidence_of(**good))
    assert found.verdict == HOLDS, found
    assert claim.finding(evidence_of(**changed(good, changes))).verdict == verdict
