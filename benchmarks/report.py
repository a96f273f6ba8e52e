"""Writes docs/results.md from all recorded rows, and the tables of each task beside it.

    docs/results.md          ten findings with a picture each, and every claim with its verdict
    docs/results/TASK.md     all tables of a task, with its commands and figures
    docs/figures/*.png       the pictures of both

Rows are those of benchmarks/results, which `evaluate.py TASK --record` writes; nothing is measured
here. Claims, findings and the rules of their verdicts are in benchmarks/claims.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from benchmarks.claims import HOLDS, MIXED, NOT, UNTESTED, Claim, Evidence, Finding, diagram, naming
from benchmarks.claims.headlines import HEADLINES
from benchmarks.kit.figures import intervals_figure
from benchmarks.kit.records import REPOSITORY, STACK, current_rows
from benchmarks.kit.tables import table
from benchmarks.tasks import TASKS
from run_core.cli import Parser

DOCUMENT = REPOSITORY / "docs" / "results.md"
DOCUMENTS = {
    "Reso-LLM v2": "reso",
    "Coherent Entropy Reactor": "cer",
    "Semantic Resonance Budget": "srb",
    "Phase-Slip": "phase_slip",
}
VERDICTS = (HOLDS, MIXED, NOT, UNTESTED)
DPI = 120
SHOWN_COMMITS = 3
STUDIES = REPOSITORY / "benchmarks" / "README.md"
INTRODUCTION = """# Results

Ten findings, then every claim of the documents behind this project with what we measured and a
verdict. Made by `python evaluate.py report` from the rows in `benchmarks/results/`, not by hand.

All tables, by task: {tasks}. Studies that are no task of `evaluate.py` (speed, quality, recall,
consensus, training of reactors) are in [benchmarks/README.md]({studies}). The data that commands
name come from `make data`."""
VERDICT = """## Claims

A verdict follows from the numbers by a rule in `benchmarks/claims/`. Where the cell shows a 95 %
interval, *holds* needs that it lies wholly on the claimed side, in every seed where there are
several; an effect that was not seen *does not hold*. A claim that nothing gets worse needs that no
measure is worse beyond its interval. Where the cell shows shares and counts alone, the rule is a
bound on these, which the code names. *mixed* is of several models, seeds or measures that differ,
which the cell shows. *untested* says what is missing. Quotes are shortened; `(ours)` is a claim of
this project. Intervals are 95 % bootstrap percentiles unless said otherwise.

Rows of our language model say which stack of stages they were measured on. Only those of today's,
number {stack}, are shown and judged."""
TABLES = """Made by `python evaluate.py report` from `benchmarks/results/{name}.jsonl`, not by hand.
[All results]({document}).

The commands as they were typed when the rows were measured. Rows of an older commit may name a
script that `evaluate.py` has replaced since, and data by the name it had on another machine;
the claims of that page have the commands of today, with the data of `make data`. A recorded row is
not measured again: delete it first."""


def add_options(parser: Parser) -> None:
    parser.add_argument("--out", type=str, default=str(DOCUMENT), help="the document to write")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where --out is not up to date"
    )


def run(options: Any) -> list[dict[str, Any]]:
    """Write the documents and their figures, or check the documents; a row for each claim.

    Raises ValueError naming the claim, or the task and its file, whose rows cannot be read, and
    with --check for a document that differs from the rows.
    """
    out = Path(options.out)
    figures = None if options.check else out.parent / "figures"
    evidence = Evidence()
    if figures is not None:
        print(f"writing {out}, {pages(out)} and {figures}{os.sep}*.png", file=sys.stderr)
        figures.mkdir(parents=True, exist_ok=True)
        pages(out).mkdir(exist_ok=True)
        diagram.save(evidence, figures / "architecture.png")
    judged = findings(evidence)
    documents = {}
    for task, module in tqdm(TASKS.items(), desc="tasks", leave=False, disable=None):
        name = task.replace("-", "_")
        if rows := current_rows(name):
            with naming(f"the task {name}, rows of benchmarks/results/{name}.jsonl"):
                if text := section(name, import_module(module), rows, figures):
                    documents[pages(out) / f"{name}.md"] = text
    parts = [introduction(out, documents), headlines_text(evidence, figures)]
    documents[out] = "\n\n".join([*parts, claims_text(judged)]) + "\n"
    for path, document in documents.items():
        if options.check:
            check(path, document)
        else:
            path.write_text(document, encoding="utf-8")
    return [
        {"document": document, "claim": claim.text, "source": claim.source, **finding._asdict()}
        for document, some in judged.items()
        for claim, finding in some
    ]


def pages(out: Path) -> Path:
    """The directory of the tasks' tables, beside the document."""
    return out.parent / "results"


def check(path: Path, document: str) -> None:
    """Raise ValueError naming the first line in which the file is not the document."""
    written = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = zip_longest(written, document.splitlines())
    for number, (old, new) in enumerate(pairs, start=1):
        if old != new:
            raise ValueError(
                f"{path}:{number}: not up to date with the recorded rows and the claims; "
                "run python evaluate.py report"
            )


def introduction(out: Path, tables: Iterable[Path]) -> str:
    """What the document is, with links from where it stands."""
    studies = Path(os.path.relpath(STUDIES, out.resolve().parent)).as_posix()
    links = ", ".join(f"[{path.stem}](results/{path.name})" for path in tables)
    return INTRODUCTION.format(studies=studies, tasks=links or "none recorded")


def headlines_text(evidence: Evidence, figures: Path | None) -> str:
    """The ten findings with their pictures; one that the rows no longer bear says so."""
    parts = ["## Ten findings"]
    for number, headline in enumerate(HEADLINES, start=1):
        found = headline.claim.finding(evidence)
        title = headline.claim.text
        so = "" if found.verdict == HOLDS else f" ({found.verdict})"
        parts += [f"### {number}. {title}{so}", found.measured]
        if found.verdict == UNTESTED:
            continue
        if figures is not None:
            bars = headline.view(evidence)["bars"]
            figure = intervals_figure(bars, f"{title}{so}", headline.axis, headline.bars_are)
            figure.savefig(figures / f"finding_{headline.picture}.png", dpi=DPI)
        parts.append(f"![{title}](figures/finding_{headline.picture}.png)")
        parts.append(f"Rerun: `{found.rerun}`")
    return "\n\n".join(parts)


def findings(evidence: Evidence) -> dict[str, list[tuple[Claim, Finding]]]:
    """Every claim of each document, and what the rows say to it."""
    return {
        title: [
            (claim, claim.finding(evidence))
            for claim in import_module(f"benchmarks.claims.{name}").CLAIMS
        ]
        for title, name in DOCUMENTS.items()
    }


def claims_text(judged: Mapping[str, Sequence[tuple[Claim, Finding]]]) -> str:
    """How many of each document's claims have which verdict, and a table for each document."""
    verdicts = {title: [finding.verdict for _, finding in some] for title, some in judged.items()}
    parts = [VERDICT.format(stack=STACK), counts_table(verdicts)]
    for title, some in judged.items():
        lines = [
            (claim.text, f"**{finding.verdict}**", finding.measured, claim.source,
             f"`{finding.rerun}`" if finding.rerun else "")
            for claim, finding in some
        ]  # fmt: skip
        head = ("claim", "verdict", "measured", "source", "rerun")
        parts.append(f"### {title}\n\n{table(head, lines)}")
    return "\n\n".join(parts)


def counts_table(verdicts: Mapping[str, Sequence[str]]) -> str:
    """Documents by verdicts, with a last row of all."""
    every = [verdict for some in verdicts.values() for verdict in some]
    lines = [
        [title, str(len(some)), *(str(some.count(verdict)) for verdict in VERDICTS)]
        for title, some in [*verdicts.items(), ("all", every)]
    ]
    return table(("document", "claims", *VERDICTS), lines)


def counted(verdicts: Sequence[str]) -> str:
    """`3 claims: 2 holds, 1 mixed`."""
    return f"{len(verdicts)} claims: " + ", ".join(
        f"{count} {verdict}" for verdict, count in Counter(verdicts).most_common()
    )


def section(
    name: str, task: ModuleType, rows: Sequence[dict[str, Any]], figures: Path | None
) -> str:
    """A task's document; nothing where all its rows are of an older protocol.

    A task with `pictures(rows)` has several figures, by name; the others have one. They are saved
    where there is a directory for them.
    """
    tables = task.text(rows)
    if not tables.strip():
        return ""
    several = getattr(task, "pictures", lambda rows: {name: task.figure(rows)})
    drawn = several(rows)
    for title, figure in drawn.items() if figures is not None else ():
        figure.savefig(figures / f"{title}.png", dpi=DPI)
    title = (task.__doc__ or "").partition("\n")[0]
    links = "\n\n".join(f"![{title}](../figures/{title}.png)" for title in drawn)
    about = TABLES.format(name=name, document="../results.md")
    return "\n\n".join((f"# {name}: {title}", about, provenance(rows), tables, links)) + "\n"


def provenance(rows: Sequence[Mapping[str, Any]]) -> str:
    """Commands, commits and machines of the rows, each once."""
    measured = [row["environment"] for row in rows]
    commands = "\n".join(dict.fromkeys(f"python {e['command']}" for e in measured))
    machines = dict.fromkeys(
        f"{e['processor']}, {e['cpus']} CPUs, torch {e['packages']['torch']}" for e in measured
    )
    hashes = commits([str(e["commit"]) for e in measured])
    return f"```\n{commands}\n```\n\n{hashes}; {'; '.join(machines)}."


def commits(hashes: Sequence[str]) -> str:
    """Each once; of many the first, the last and their number. `+` is of changes not committed."""
    once = [*dict.fromkeys(hashes)]
    if len(once) > SHOWN_COMMITS:
        return f"{len(once)} commits, {once[0]} to {once[-1]}"
    return f"{'Commit' if len(once) == 1 else 'Commits'} {', '.join(once)}"


def text(rows: Sequence[dict[str, Any]]) -> str:
    """How many claims of each document have which verdict, and why some are untested."""
    documents = dict.fromkeys(row["document"] for row in rows)
    lines = [counted([row["verdict"] for row in rows])]
    lines += [
        f"  {title}: {counted([r['verdict'] for r in rows if r['document'] == title])}"
        for title in documents
    ]
    untested = [row for row in rows if row["verdict"] == UNTESTED]
    lines += [f"untested, {r['document']}: {r['claim']} ({r['measured']})" for r in untested]
    return "\n".join(lines)
