"""What an installation holds: every package of the checkout, and the files that it loads."""

import ast
import re
from pathlib import Path

import yaml
from setuptools import find_packages

REPOSITORY = Path(__file__).resolve().parents[1]


def setup_constant(name):
    """The value of a literal assigned in setup.py, read without running it."""
    for node in ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py assigns no {name}")


def test_every_folder_of_code_is_installed():
    """Guards a new wing that is missing from the wheel."""
    include = setup_constant("PACKAGES")
    installed = set(find_packages(str(REPOSITORY), include=include))
    roots = {pattern.removesuffix(".*") for pattern in include}
    folders = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for root in roots
        for path in (REPOSITORY / root).rglob("*.py")
    }
    assert folders == installed
    assert {"reso_llm.stages", "run_core", "cer", "entropy_core"} <= installed
    assert not any(name.partition(".")[0] in ("benchmarks", "tests") for name in installed)


def test_the_documents_know_the_version():
    """Guards a release that names another version in the citation or the changelog."""
    version = re.search(r'version="([\d.]+)"', (REPOSITORY / "setup.py").read_text())[1]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(
        r"^## ([\d.]+), ([\d-]+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert citation["version"] == newest[1] == version
    assert str(citation["date-released"]) == newest[2]
