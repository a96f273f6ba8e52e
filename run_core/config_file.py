"""YAML files of options, read with limits: no aliases, no deep nesting, no unlimited size.

An alias lets a few lines stand for gigabytes, and a configuration needs none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases and deep nesting before it builds anything."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refusal("aliases (*name) are not read: write the value out", event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _refusal(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def read_mapping(source: str, is_path: bool = True) -> dict[str, Any]:
    """The mapping in a YAML file, or in a text; ValueError naming the file and the line."""
    text = _read_text(source) if is_path else source
    name = source if is_path else "value"
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{name}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    except (ValueError, RecursionError) as error:  # 2020-13-45 is no date; [[[[... has no end
        raise ValueError(f"{name}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name}: expected lines of `key: value`")
    return content


def _read_text(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"{path}: more than {MAX_BYTES:,} bytes are no configuration")
        return data.decode()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error


def as_arguments(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    """{"model": {"dim": 128}} as ["--model.dim=128"]."""
    arguments = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            arguments += as_arguments(value, f"{name}.")
        else:
            plain = value if isinstance(value, str) else json.dumps(value, default=str)
            arguments.append(f"--{name}={plain}")
    return arguments
