"""A session in one file: tensors as safetensors, everything else as JSON in the file's header.

Saved are goals, foci, concepts, episodes and the clock. The configuration and the
stability monitor are not: the first belongs to the checkpoint, the monitor to a text.
Loading runs no code. A sha256 over the header's JSON and all tensors finds every damaged byte.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from entropy_core import sedenion
from reso_llm.config import TemporalSMFConfig
from reso_llm.session.agency import Goal
from reso_llm.session.foci import Focus
from run_core.files import write_file

FORMAT = 1
MODEL_KEYS = ("vocab_size", "dim")  # what the saved tokens and vectors belong to


def save(session: Any, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write a `Session` to a file, atomically; `extra` is JSON that `load` gives back.

    Raises OSError where the file cannot be written.
    """
    document, tensors = _described(session)
    body = json.dumps(document | {"format": FORMAT, "extra": dict(extra or {})}, sort_keys=True)
    metadata = {"session": body, "sha256": _digest(body, tensors)}
    write_file(path, safetensors.torch.save(tensors, metadata))


def load(session: Any, path: str | Path) -> dict[str, Any]:
    """Fill a new `Session` from a file, and return the `extra` saved with it.

    Raises OSError where the file cannot be read, ValueError for a damaged or foreign file and for
    one that does not fit the session's configuration.
    """
    body, tensors = _read(Path(path))
    document = json.loads(body)
    if document["format"] != FORMAT:
        raise ValueError(f"{path}: session format {document['format']}, expected {FORMAT}")
    for key in MODEL_KEYS:
        own = getattr(session.config, key)
        if document.get(key, own) != own:
            raise ValueError(
                f"{path}: does not fit this model: saved with {key} = {document[key]}, this model "
                f"has {own}; load that model, or use another file"
            )
    try:
        _restore(session, document, tensors)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: does not fit this model: {error}") from error
    return document["extra"]


def _described(session: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The session as JSON values, and its tensors by name."""
    document = {key: getattr(session.config, key) for key in MODEL_KEYS}
    document["clock"] = session.clock
    tensors: dict[str, Tensor] = {}
    if session.agency is not None:
        document["foci"] = [dataclasses.asdict(focus) for focus in session.agency.foci]
        document["goals"] = []
        for i, goal in enumerate(session.agency.active_goals):
            tensors[f"goal.{i}"] = goal.vector
            values = goal.description, goal.goal_type, goal.progress, goal.achieved
            names = "description", "goal_type", "progress", "achieved"
            document["goals"].append(dict(zip(names, values, strict=True)))
    if session.concepts is not None:
        document["concepts"] = [[b.name, list(b.token_ids)] for b in session.concepts.bindings]
    if session.episodes is not None:
        document["moments"] = []
        for i, m in enumerate(session.episodes.moments):
            if m.field is not None:
                tensors[f"moment.{i}"] = m.field
            document["moments"].append([m.text, list(m.token_ids), m.time, m.importance, m.source])
        summed = session.episodes.summed_field
        if summed is not None:
            tensors["field"], document["latest"] = summed, session.episodes.latest
    return document, {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _restore(session: Any, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    _check_fields(session.config.temporal_smf, tensors)
    session.clock = document["clock"]
    if "goals" in document:
        goals = [
            Goal(**values, vector=tensors[f"goal.{i}"])
            for i, values in enumerate(document["goals"])
        ]
        session.agency.restore(goals, [Focus(**values) for values in document["foci"]])
    for name, token_ids in document.get("concepts", ()):
        for token_id in token_ids:
            session.bind_concept(name, token_id)
    for i, (text, ids, time, importance, *source) in enumerate(document.get("moments", ())):
        session.episodes.store(
            text, ids, importance=importance, time=time, field=tensors.get(f"moment.{i}"),
            source=source[0] if source else "",  # files of before had none
        )  # fmt: skip
    if "field" in tensors:
        session.episodes.store(
            "", (), importance=1.0, time=document["latest"], field=tensors["field"]
        )


def _check_fields(smf: TemporalSMFConfig, tensors: dict[str, Tensor]) -> None:
    """ValueError where a saved field has another shape than the model's; one without reads none."""
    expected = smf.num_heads, smf.num_channels, sedenion.DIM
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if smf.enabled and not name.startswith("goal.") and shape != expected:
            raise ValueError(
                f"its fields are {shape}, this model's {expected}; load the model it was saved "
                "with, or use another file"
            )


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """JSON and tensors of a session's file, verified."""
    damaged = f"{path}: not a saved session, or damaged; use another file or restore it from a copy"
    data = path.read_bytes()  # hashed and parsed are the same bytes
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
        body, digest = metadata["session"], metadata["sha256"]
    except (safetensors.SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(damaged) from error
    if digest != _digest(body, tensors):
        raise ValueError(damaged)
    return body, tensors


def _digest(body: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(body.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
