"""All recorded rows as docs/results.md: every claim with its verdict, then every task's tables.

Rows are those of benchmarks/results, which `evaluate.py TASK --record` writes; nothing is measured
here. Claims and the rules of their verdicts are in benchmarks/claims. Figures go to a directory
figures/ beside the document, one for each task.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from benchmarks.claims import Claim, Evidence, Finding
from benchmarks.common import RESULTS, read_rows
from reso_llm.cli import Parser

DOCUMENT = RESULTS.parents[1] / "docs" / "results.md"
DOCUMENTS = {
    "Reso-LLM v2": "reso",
    "Coherent Entropy Reactor": "cer",
    "Semantic Resonance Budget": "srb",
    "Phase-Slip": "phase_slip",
}
TASKS = {  # the name of its rows, and its module
    "dynamics": "dynamics", "lm": "lm", "ablation": "ablation", "memory": "memory",
    "goals": "goals", "gating": "gating", "stability": "stability", "mirror": "mirror",
    "setpoint": "setpoint", "zombie": "zombie", "srb": "srb", "phase_slip": "phase_slip",
}  # fmt: skip
DPI = 120
INTRODUCTION = """# Results

Made by `python evaluate.py report` from the rows in `benchmarks/results/`, not by hand. Each
table is rerun with the commands above it (a row that is recorded is not measured again: delete it
first). Intervals are 95 % bootstrap percentiles unless said otherwise. A verdict follows from the
numbers by a rule in `benchmarks/claims/`: *holds* needs an interval that lies wholly on the claimed
side, so an effect that was not seen *does not hold*; *mixed* is of several models or measures that
differ. Studies that are no task of `evaluate.py` (speed, quality, recall, consensus, training of
reactors) are in [benchmarks/README.md](../benchmarks/README.md)."""


def add_options(parser: Parser) -> None:
    parser.add_argument("--out", type=str, default=str(DOCUMENT), help="the document to write")


def run(options: Any) -> list[dict[str, Any]]:
    """Write the document and its figures; a row for each claim."""
    out = Path(options.out)
    figures = out.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    found = findings(Evidence())
    parts = [INTRODUCTION, claims_text(found)]
    for name in tqdm(TASKS, desc="tasks", leave=False):
        if rows := read_rows(name):
            parts.append(section(name, import_module(f"benchmarks.{TASKS[name]}"), rows, figures))
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [
        {"document": document, "claim": claim.text, "source": claim.source, **finding._asdict()}
        for document, some in found.items()
        for claim, finding in some
    ]


def findings(evidence: Evidence) -> dict[str, list[tuple[Claim, Finding]]]:
    """What the rows say to every claim, by document."""
    return {
        title: [
            (claim, claim.finding(evidence))
            for claim in import_module(f"benchmarks.claims.{name}").CLAIMS
        ]
        for title, name in DOCUMENTS.items()
    }


def claims_text(found: Mapping[str, Sequence[tuple[Claim, Finding]]]) -> str:
    """One table for each document."""
    parts = ["## Claims", counted([f.verdict for some in found.values() for _, f in some])]
    for title, some in found.items():
        lines = [
            f"### {title}",
            "",
            "| claim | source | our measurement | verdict | rerun |",
            "|---|---|---|---|---|",
        ]
        for claim, finding in some:
            rerun = f"`{finding.rerun}`" if finding.rerun else ""
            cells = (claim.text, claim.source, finding.measured, f"**{finding.verdict}**", rerun)
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def counted(verdicts: Sequence[str]) -> str:
    return f"{len(verdicts)} claims: " + ", ".join(
        f"{count} {verdict}" for verdict, count in Counter(verdicts).most_common()
    )


def section(name: str, task: ModuleType, rows: Sequence[dict[str, Any]], figures: Path) -> str:
    """A task's commands, tables and figure."""
    task.figure(rows).savefig(figures / f"{name}.png", dpi=DPI)
    title = (task.__doc__ or "").partition("\n")[0]
    return "\n\n".join(
        (f"## {name}: {title}", provenance(rows), task.text(rows), f"![{name}](figures/{name}.png)")
    )


def provenance(rows: Sequence[Mapping[str, Any]]) -> str:
    """Commands, commits and machines of the rows, each once."""
    made = [row["environment"] for row in rows]
    commands = "\n".join(dict.fromkeys(f"python {e['command']}" for e in made))
    commits = ", ".join(dict.fromkeys(str(e["commit"]) for e in made))
    machines = "; ".join(
        dict.fromkeys(
            f"{e['processor']}, {e['cpus']} CPUs, torch {e['packages']['torch']}" for e in made
        )
    )
    return f"```\n{commands}\n```\n\nCommits {commits}; {machines}."


def text(rows: Sequence[dict[str, Any]]) -> str:
    """How many claims have which verdict, and those that are untested."""
    lines = [counted([row["verdict"] for row in rows])]
    lines += [
        f"untested: {row['claim']} ({row['measured']})"
        for row in rows
        if row["verdict"] == "untested"
    ]
    return "\n".join(lines)
