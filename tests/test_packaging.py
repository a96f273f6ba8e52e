"""What an installation holds: every package of the checkout, and the files that it loads."""

import ast
from pathlib import Path

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
