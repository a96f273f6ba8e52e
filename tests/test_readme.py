"""The README and the shipped configurations are executed, so that they cannot drift."""

import dataclasses
import re
from pathlib import Path

import pytest

from reso.train import read_config
from reso_llm.config import (
    ResoLLMConfig,
    control_config,
    large_config,
    medium_config,
    small_config,
)

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
SNIPPETS = [
    snippet
    for text in (README, (ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]
MEASURED = re.compile(r"(?<![\w.])-?\d*\.\d+|\d+(?=\s%)")
NOT_MEASURED = {"3.11", "0.1", "0.1.0", "1.44", "1.5", ".03"}  # versions, bits in a nat, defaults
CONFIGS = sorted(
    path.relative_to(ROOT / "configs").as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if not path.name.startswith("cer")  # a reactor's, see test_cli.py
)
PRESETS = {
    "small.yaml": small_config(),
    "medium.yaml": medium_config(),
    "large.yaml": large_config(),
    "control.yaml": control_config(),
}


def test_there_are_snippets():
    assert SNIPPETS


def measured(text):
    """The numbers with a point or a per cent sign in the prose of a text, without leading zeros."""
    prose = re.sub(r"```.*?```|`[^`]*`|\]\(.*?\)", " ", text, flags=re.DOTALL)
    prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " ", prose, flags=re.DOTALL)
    prose = re.sub(r"\b\d+\.\d+\.\d+(\.\d+)*\b", " ", prose)
    return {number.lstrip("0") for number in MEASURED.findall(prose) if number not in NOT_MEASURED}


@pytest.mark.parametrize("text", [README, CONCEPTS], ids=["README", "concepts"])
def test_every_measured_number_is_one_of_the_recorded_rows(text):
    """docs/results.md is made of them, as its own test holds it to be."""
    results = re.sub(r"(\d)%", r"\1 %", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert measured(text) - measured(results) == set()


def test_the_readme_counts_the_verdicts_as_the_results_do():
    counts = r"(\d+)\D+claims\D+(\d+)\s+hold\D+(\d+)\s+do\s+not"
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    total = re.search(r"\| all \| (\d+) \| (\d+) \| \d+ \| (\d+) \| \d+ \|", results)
    assert re.search(counts, README).groups() == total.groups()


def test_a_number_is_found_in_prose_alone():
    text = "`0.5` and $0.7$ of [x](y/0.25.md): 0.343 bits, 97.5 % in v0.1.0 and\n```\n.9\n```"
    assert measured(text) == {".343", "97.5"}


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_readme_snippet_runs(snippet, capsys):
    exec(compile(snippet, "a document", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configuration_is_valid(name):
    config, resume = read_config(["--config", str(ROOT / "configs" / name)])
    assert not resume
    expected = PRESETS.get(name, config.model)
    assert dataclasses.asdict(config.model) == dataclasses.asdict(expected)
    assert isinstance(config.model, ResoLLMConfig)


def test_every_preset_is_shipped():
    assert set(PRESETS) <= set(CONFIGS)
