"""The README and the shipped configurations are executed, so that they cannot drift."""

import dataclasses
import re
from pathlib import Path

import pytest

from reso_llm.config import ResoLLMConfig, large_config, medium_config, small_config
from train import read_config

ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
PRESETS = {"small.yaml": small_config, "medium.yaml": medium_config, "large.yaml": large_config}


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
    expected = PRESETS.get(name, lambda: config.model)()
    assert dataclasses.asdict(config.model) == dataclasses.asdict(expected)
    assert isinstance(config.model, ResoLLMConfig)
