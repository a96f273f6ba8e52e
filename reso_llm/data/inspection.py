"""`python train.py --data X --inspect`: shows the data that a run would read; trains nothing.

inspect_data("rows.jsonl", "text") -> lines for people, with the first two documents as turns
inspect_data("rows.jsonl", "json") -> one JSON object
"""

from __future__ import annotations

import itertools
import json
from typing import Any, Literal

from reso_llm.data.conversation import Document
from reso_llm.data.errors import BadRows
from reso_llm.data.sources import OnBadRow, read_documents
from reso_llm.data.summary import DataSummary

__all__ = ["inspect_data"]

FIRST_DOCUMENTS = 2
SHOWN_CHARS = {"text": 400, "json": 10_000}


def inspect_data(
    spec: str,
    form: Literal["text", "json"],
    *,
    columns: str | None = None,
    val_spec: str | None = None,
    on_bad_row: OnBadRow = "error",
) -> str:
    """Describe the data of `val_spec`, then of `spec`; DataError as for a run.

    The JSON object has the counts `conversations`, `plain`, `turns`, `replies` and `system`,
    `unused_fields` {name: documents}, `marker_warnings` ["file:line"], and `first`, the first two
    documents as lists of {"role", "content"}; a plain text is one turn of the role "text". Where
    data files are not read, `left_out` names them.
    """
    summary, report = DataSummary(), BadRows()
    documents = itertools.chain.from_iterable(
        read_documents(name, columns=columns, on_bad_row=on_bad_row, report=report, summary=summary)
        for name in filter(None, (val_spec, spec))
    )
    first = []
    for document in documents:
        if len(first) < FIRST_DOCUMENTS and document.start == 0:
            first.append(_turns(document, SHOWN_CHARS[form]))
    if form == "json":
        return json.dumps(_as_json(summary, first), indent=1, ensure_ascii=False)
    return "\n".join([*summary.lines(), *filter(None, [report.summary()]), *_shown(first)])


def _as_json(summary: DataSummary, first: list[list[dict[str, str]]]) -> dict[str, Any]:
    return {
        "conversations": summary.conversations,
        "plain": summary.plain,
        "turns": summary.turns,
        "replies": summary.replies,
        "system": summary.system,
        "unused_fields": dict(summary.unused_fields),
        "marker_warnings": summary.warnings(),
        "first": first,
    } | ({"left_out": summary.left_out} if summary.left_out else {})


def _turns(document: Document, chars: int) -> list[dict[str, str]]:
    turns = document.messages or [("text", document.text or "")]
    return [{"role": role, "content": content[:chars]} for role, content in turns]


def _shown(first: list[list[dict[str, str]]]) -> list[str]:
    lines = []
    for number, turns in enumerate(first, start=1):
        lines += [f"document {number}:", *(f"  {t['role']}: {t['content']!r}" for t in turns)]
    return lines
