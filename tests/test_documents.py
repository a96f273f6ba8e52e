"""Files and names that documents and docstrings mention exist."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.claims.headlines import HEADLINES
from benchmarks.making.data import SHA256
from benchmarks.report import DOCUMENTS as DOCUMENTS_OF_CLAIMS
from benchmarks.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("entropy_core", "run_core", "cer", "reso_llm", "phase_slip", "reso", "benchmarks")
SOURCES = sorted(
    [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    + list(ROOT.glob("*.py"))
)
DOCUMENTS = [ROOT / name for name in
             ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]  # fmt: skip
# docs/results.md quotes documents of others.
DOCUMENTS += sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "results.md")
# All that a reader may copy a command from. docs/results/ shows commands as they were recorded.
COMMANDED = [*DOCUMENTS, ROOT / "docs/results.md", ROOT / "reso_llm/shipped/README.md",
             *sorted((ROOT / ".github").rglob("*.md"))]  # fmt: skip
FILES = {
    f"/{path.relative_to(ROOT).as_posix()}"
    for folder in (*PACKAGES, "docs", "configs", "tests")
    for path in (ROOT / folder).rglob("*")
} | {f"/{path.name}" for path in ROOT.iterdir()}
FILES |= {"/config.yaml", "/demo.png", "/modeling_reso.py"}  # written when used
FILES |= {"/loss.png", "/runs/quickstart/loss.png", "/runs/quickstart/tour.png"}
# A file in backticks or in a link, and a dotted name that begins with one of our packages.
FILE = re.compile(r"(?:`|\]\(|python )(?:\.\./)*([\w./-]+\.(?:py|md|yaml|png))\b")
# `reso.goal` and its like are members of the server's `reso` object.
NAMED = [package for package in PACKAGES if package != "reso"]
NAME = re.compile(rf"(?:`|-m )((?:{'|'.join(NAMED)})(?:\.\w+)+)")
TASK = re.compile(r"python evaluate\.py ([a-z][\w-]*)")


def missing(text):
    """The files, dotted names and tasks of evaluate.py in a text that do not exist."""
    files = [name for name in FILE.findall(text) if "NAME" not in name]  # of a file to be written
    absent = [name for name in files if not any(f.endswith(f"/{name}") for f in FILES)]
    tasks = [name for name in TASK.findall(text) if name not in TASKS]
    names = [name for name in NAME.findall(text) if "NAME" not in name and not exists(name)]
    return absent + names + tasks


def exists(name):
    """Whether a dotted name is a module or package, or a name defined in or imported by one."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:size])
        source = path.with_suffix(".py") if not path.is_dir() else path / "__init__.py"
        if source.is_file():
            rest = parts[size : size + 1]
            return not rest or re.search(rf"\b{rest[0]}\b", source.read_text()) is not None
    return False


def docstrings(source):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return "\n".join(
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, kinds)
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_mentions_only_what_exists(path):
    assert missing(path.read_text(encoding="utf-8")) == []


def test_docstrings_mention_only_what_exists():
    """Guards a module that is renamed while the docstrings of others keep its old name."""
    found = {path.relative_to(ROOT): missing(docstrings(path.read_text())) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


# What a command names and a user has already; what a published paper brings.
YOURS = {"rows.jsonl", "srb_summary_longform.csv", "srb_bucket_summary.csv"}
SPAN = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)
DATA_FILE = re.compile(r"(?<![\w/.*])([\w./-]+\.(?:jsonl|txt|csv|parquet|json))\b")
WRITTEN = re.compile(r"--(?:out|json|measure_pace|write) ([\w./-]+)")


def unexplained(text):
    """Data files that the commands of a text read and that no command of ours makes."""
    commands = "\n".join(span for span in SPAN.findall(text) if "python " in span)
    made = {f"data/{name}" for name in SHA256} | set(WRITTEN.findall(commands)) | YOURS
    named = dict.fromkeys(DATA_FILE.findall(commands))
    return [name for name in named if name not in made and not (ROOT / name).exists()]


@pytest.mark.parametrize("path", COMMANDED, ids=lambda path: path.name)
def test_a_command_names_only_data_that_can_be_had(path):
    """`make data` puts them there, or another command of the document writes them."""
    assert unexplained(path.read_text(encoding="utf-8")) == []


def test_reruns_of_claims_name_only_data_that_can_be_had():
    claims = [claim for name in DOCUMENTS_OF_CLAIMS.values()
              for claim in import_module(f"benchmarks.claims.{name}").CLAIMS]  # fmt: skip
    claims += [headline.claim for headline in HEADLINES]
    assert [c.text for c in claims if unexplained(f"`{c.rerun}`")] == []


def test_data_that_nobody_can_get_are_found():
    assert unexplained("`python evaluate.py lm --data held.jsonl`") == ["held.jsonl"]
    assert unexplained("`python a.py --out x.jsonl` then `python b.py --data x.jsonl`") == []


def test_the_address_of_the_repository_stands_in_one_place():
    """It has none yet: who publishes it replaces `REPOSITORY_URL` in the README."""
    texts = {path: path.read_text(encoding="utf-8") for path in COMMANDED}
    assert [path for path, text in texts.items() if "git clone" in text] == [ROOT / "README.md"]
    assert texts[ROOT / "README.md"].count("git clone REPOSITORY_URL reso") == 1


STALE = (
    "`attending.py`", "[map](docs/nowhere.md)", "`reso_llm.primes`", "`cer.run.nothing`",
    "python -m benchmarks.recall", "python evaluate.py nothing",
)  # fmt: skip


@pytest.mark.parametrize("text", STALE)
def test_a_stale_mention_is_found(text):
    assert len(missing(text)) == 1
