"""Files and names that documents and docstrings mention exist."""

import ast
import re
from pathlib import Path

import pytest

from benchmarks.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("entropy_core", "run_core", "cer", "reso_llm", "phase_slip", "reso", "benchmarks")
SOURCES = sorted(
    [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    + list(ROOT.glob("*.py"))
)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"]
# docs/results.md quotes documents of others.
DOCUMENTS += sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "results.md")
FILES = {
    f"/{path.relative_to(ROOT).as_posix()}"
    for folder in (*PACKAGES, "docs", "configs", "tests")
    for path in (ROOT / folder).rglob("*")
} | {f"/{path.name}" for path in ROOT.iterdir()}
FILES |= {"/config.yaml", "/loss.png", "/demo.png", "/modeling_reso.py"}  # written when used
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


STALE = (
    "`attending.py`", "[map](docs/nowhere.md)", "`reso_llm.primes`", "`cer.run.nothing`",
    "python -m benchmarks.recall", "python evaluate.py nothing",
)  # fmt: skip


@pytest.mark.parametrize("text", STALE)
def test_a_stale_mention_is_found(text):
    assert len(missing(text)) == 1
