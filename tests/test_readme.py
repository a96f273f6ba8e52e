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
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
CONFIGS = sorted(
    path.relative_to(ROOT / "configs").as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.name != "cer.yaml"  # a reactor's, see test_cli.py
)
PRESETS = {
    "small.yaml": small_config(),
    "medium.yaml": medium_config(),
    "large.yaml": large_config(),
    "control.yaml": control_config(),
}


def test_there_are_snippets():
    assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_readme_snippet_runs(snippet, capsys):
    exec(compile(snippet, "README.md", "exec"), {})
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
