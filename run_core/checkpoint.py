"""One checkpoint directory: it is complete and verifiable, or it does not exist.

    step_00000100/
        model.safetensors, ...              one file per part, tensors only
        config.json, training.json, ...     documents, JSON objects or plain text
        MANIFEST.json                       size and sha256 of every file above, and of itself

Writing: temporary directory, fsync each file, MANIFEST last, rename, fsync the parent. Reading:
every listed byte is hashed before one is used, and what is parsed is what was hashed; files that
the manifest does not list are not looked at. Nothing here unpickles, so loading cannot run code.
`run.py` holds the directory of a whole run.
"""

import contextlib
import errno
import hashlib
import inspect
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from run_core.files import (
    cannot,
    exchange,
    is_alive,
    leftovers,
    remove,
    seal,
    sync_directory,
    temporary_name,
    unseal,
    write_and_sync,
)

FORMAT = 2
MANIFEST = "MANIFEST.json"
STEP_NAME = re.compile(r"step_(\d{8,18})")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ENTRY = {"kind", "size", "sha256"}
_BLOCK = 1 << 20  # bytes hashed at a time
_MANIFEST_LIMIT = 1 << 24  # bytes

Document = str | dict[str, Any]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, found or read; the message says where and what to do."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint is damaged: `path` (directory), `file` in it, and `reason`."""

    def __init__(self, path: Path, file: str, reason: str, advice: str | None = None):
        advice = advice or "use another checkpoint of the run or restore this one from a copy"
        super().__init__(f"checkpoint {path} cannot be used: {file} {reason}; {advice}")
        self.path, self.file, self.reason = path, file, reason


class FormatVersionError(CorruptCheckpointError):
    """An intact checkpoint of a format this version does not read."""


# --- writing --------------------------------------------------------------------------------


def save_directory(
    path: str | Path,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Document],
    step: int | None = None,
) -> Path:
    """Write one verifiable directory anywhere (`save_pretrained`); its parent must exist.

    `tensors` is {part: {name: tensor}}, `documents` is {file name: text or JSON object}. A
    directory written by this function is replaced; anything else of that name is refused.

    Raises ValueError (naming the tensor) for non-finite or tied tensors and for what is not JSON,
    CheckpointError when the disk refuses; then the earlier directory is untouched.
    """
    path = Path(path)
    contents = _check_contents(tensors, documents)
    if os.path.lexists(path) and not _is_replaceable(path):
        raise CheckpointError(f"{path} exists and is not a checkpoint; choose another directory")
    temporary = temporary_name(path)
    try:
        _clear_dead(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_contents(temporary, contents, tensors, step)
        _put_in_place(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # first, so that the free space is real
        needed = _num_bytes(tensors, contents)
        raise CheckpointError(cannot("write checkpoint", path, error, needed)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # what stays is cleared at the next start
    return path


def _is_replaceable(path: Path) -> bool:
    """Whether a directory of this name was written here, or is empty."""
    if path.is_symlink() or not path.is_dir():
        return False
    return (path / MANIFEST).is_file() or not any(path.iterdir())


def _put_in_place(new: Path, path: Path) -> None:
    """Rename `new` to `path`. A directory that is replaced is sound until the new one is there.

    Where the system cannot swap two names, a kill between the two renames leaves the old
    directory beside its place, as NAME.previous-PID.
    """
    if path.is_dir() and exchange(new, path):
        sync_directory(path.parent)
        return  # `new` now names the old directory, and the caller removes it
    previous = path.with_name(f"{path.name}.previous-{os.getpid()}")
    replaces = path.is_dir()
    if replaces:
        os.rename(path, previous)
    os.rename(new, path)
    sync_directory(path.parent)
    if replaces:
        shutil.rmtree(previous)


def _clear_dead(path: Path) -> None:
    """Remove what killed processes left of earlier writes of `path`."""
    for left in leftovers(path.parent, lambda name: name == path.name):
        if not is_alive(left.pid):
            remove(left.path)


def _write_contents(directory: Path, contents, tensors, step: int | None) -> None:
    files = {}
    for part, group in tensors.items():
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}
        data = safetensors.torch.save(plain)
        files[f"{part}.safetensors"] = _write_entry(directory, f"{part}.safetensors", data, "part")
    for name, (kind, data) in contents.items():
        files[name] = _write_entry(directory, name, data, kind)
    write_and_sync(directory / MANIFEST, seal({"format": FORMAT, "step": step, "files": files}))
    sync_directory(directory)


def _write_entry(directory: Path, name: str, data: bytes, kind: str) -> dict[str, Any]:
    write_and_sync(directory / name, data)
    return {"kind": kind, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _num_bytes(tensors, contents) -> int:
    parts = (t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    return sum(parts) + sum(len(data) for _, data in contents.values())


# --- what may be written --------------------------------------------------------------------


def _check_contents(tensors, documents) -> dict[str, tuple[str, bytes]]:
    """Documents as {name: (kind, bytes)}; ValueError for anything that must not reach the disk."""
    for part, group in tensors.items():
        _check_name(f"{part}.safetensors", ())
        _check_finite(part, group)
        _check_untied(part, group)
    taken = [f"{part}.safetensors" for part in tensors]
    for name in documents:
        _check_name(name, taken)
    return {name: _encode_document(name, document) for name, document in documents.items()}


def _check_name(name: str, taken: Sequence[str]) -> None:
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST or name in taken:
        raise ValueError(f"{name!r} cannot be the name of a file in a checkpoint")


def _check_finite(part: str, group: Mapping[str, Tensor]) -> None:
    for name, tensor in group.items():
        if not _is_finite(tensor):
            raise ValueError(f"{part} tensor {name!r} is not finite; nothing was saved")


def _is_finite(tensor: Tensor) -> bool:
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if not values.is_floating_point() or not values.numel():
        return True
    return all(map(math.isfinite, torch.stack(values.detach().aminmax()).tolist()))


def _check_untied(part: str, group: Mapping[str, Tensor]) -> None:
    owners: dict[tuple[torch.device, int], str] = {}
    for name, tensor in group.items():
        if tensor.numel() == 0:
            continue
        owner = owners.setdefault((tensor.device, tensor.data_ptr()), name)
        if owner != name:
            raise ValueError(f"{part} tensors {owner!r} and {name!r} share memory; pass only one")


def _encode_document(name: str, document: Document) -> tuple[str, bytes]:
    try:
        if isinstance(document, str):
            return "text", document.encode()
        return "json", json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"document {name!r} cannot be written: {error}") from error


# --- reading --------------------------------------------------------------------------------


def verify(path: str | Path) -> None:
    """Check every byte of a checkpoint against its manifest.

    Raises CorruptCheckpointError naming the file and why, FormatVersionError for another format,
    CheckpointError when there is no such directory or it may not be read.
    """
    _read(Path(path), ())


def load_checkpoint(
    path: str | Path, parts: Sequence[str] = ("model",)
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Document]]:
    """Return ({part: {name: tensor}}, {file name: text or JSON object}) of a checkpoint.

    The whole checkpoint is verified, whichever `parts` are asked for; tensors arrive on the CPU.
    Raises as `verify` does, and CheckpointError naming the parts there are if one is missing.
    """
    return _read(Path(path), tuple(parts))


def _read(path: Path, parts: tuple[str, ...]):
    manifest = _read_manifest(path)
    files = manifest["files"]
    for part in parts:
        if f"{part}.safetensors" not in files:
            there = ", ".join(name for name in files if name.endswith(".safetensors")) or "none"
            raise CheckpointError(f"checkpoint {path} has no part {part!r}; its parts: {there}")
    tensors, documents = {}, {}
    for name, entry in files.items():
        part = name.removesuffix(".safetensors") if entry["kind"] == "part" else None
        data = _read_checked(path, name, entry, keep=part is None or part in parts)
        if part is None:
            documents[name] = _decode(path, name, entry["kind"], data)
        elif part in parts:
            tensors[part] = _decode(path, name, "part", data)
    return tensors, documents


def _read_manifest(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise CheckpointError(f"there is no checkpoint directory {path}")
    if not path.is_dir():
        raise CorruptCheckpointError(path, path.name, "is not a directory")
    with _reading(path, MANIFEST) as file:
        body = unseal(file.read(_MANIFEST_LIMIT))
    if body is None:
        raise CorruptCheckpointError(path, MANIFEST, "is damaged (its own sha256 differs)")
    _check_version(path, body)
    _check_listing(path, body)
    return body


def _check_version(path: Path, body: dict[str, Any]) -> None:
    version = body.get("format")
    if version != FORMAT:
        reason = f"is of checkpoint format {version}, and this version reads format {FORMAT}"
        advice = "train again, or use the version of reso-llm that wrote it"
        raise FormatVersionError(path, MANIFEST, reason, advice)


def _check_listing(path: Path, body: dict[str, Any]) -> None:
    named, step, files = STEP_NAME.fullmatch(path.name), body.get("step"), body.get("files")
    if named and step != int(named[1]):
        raise CorruptCheckpointError(path, MANIFEST, f"belongs to step {step}")
    if not isinstance(files, dict) or not all(_is_entry(*item) for item in files.items()):
        raise CorruptCheckpointError(path, MANIFEST, "lists something that is no checkpoint file")


def _is_entry(name: str, entry: Any) -> bool:
    known = isinstance(entry, dict) and entry.keys() == _ENTRY and type(entry["size"]) is int
    return known and bool(_FILE_NAME.fullmatch(name)) and name != MANIFEST


def _read_checked(path: Path, name: str, entry: dict[str, Any], keep: bool) -> bytes:
    """The bytes of a file if `keep`, hashed either way: no gap between the check and the use."""
    with _reading(path, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry["size"]:
            reason = f"has {size:,} bytes instead of {entry['size']:,}"
            raise CorruptCheckpointError(path, name, reason)
        data = file.read() if keep else b""
        digest = hashlib.sha256(data)
        while not keep and (block := file.read(_BLOCK)):
            digest.update(block)
    if digest.hexdigest() != entry["sha256"]:
        raise CorruptCheckpointError(path, name, "is damaged (its sha256 differs)")
    return data


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Iterator[BinaryIO]:
    """A missing or unreadable file means corruption; a refusal by the system does not."""
    try:
        if not (path / name).is_file():  # a pipe of that name would block for ever
            raise CorruptCheckpointError(path, name, "is missing")
        with (path / name).open("rb") as file:
            yield file
    except OSError as error:
        if error.errno == errno.EIO:
            raise CorruptCheckpointError(path, name, "is unreadable on the disk") from error
        raise CheckpointError(cannot("read", path / name, error)) from error


def _decode(path: Path, name: str, kind: str, data: bytes):
    try:
        if kind == "part":
            return _finite(path, name, safetensors.torch.load(data))
        document = json.loads(data) if kind == "json" else data.decode()
    except (SafetensorError, ValueError, RecursionError, KeyError) as error:
        reason = f"is not {'safetensors' if kind == 'part' else kind} ({error})"
        raise CorruptCheckpointError(path, name, reason) from error
    if not isinstance(document, str | dict):
        raise CorruptCheckpointError(path, name, "is not a JSON object")
    return document


def _finite(path: Path, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for key, tensor in tensors.items():
        if not _is_finite(tensor):
            raise CorruptCheckpointError(path, name, f"holds {key!r}, which is not finite")
    return tensors


# --- what a document must hold --------------------------------------------------------------


def get_document(
    documents: Mapping[str, Document], path: str | Path, name: str, *keys: str
) -> dict[str, Any]:
    """The JSON object `name` of the checkpoint `path`, which holds at least `keys`.

    Raises CheckpointError naming the checkpoint and what it lacks.
    """
    document = documents.get(name)
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} has no {name}: expected a checkpoint of train.py")
    missing = [key for key in keys if key not in document]
    if missing:
        raise CheckpointError(f"{path}/{name} lacks {', '.join(missing)}; use another checkpoint")
    return document


def build_from(cls: type, values: Any, place: str) -> Any:
    """`cls(**values)`; CheckpointError naming unknown and missing keys of the object at `place`."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{place} is no JSON object; use another checkpoint")
    parameters = inspect.signature(cls).parameters
    unknown = sorted(values.keys() - parameters.keys())
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in values]
    for problem, names in (("has the unknown key", unknown), ("lacks", missing)):
        if names:
            raise CheckpointError(f"{place} {problem} {', '.join(names)}; use another checkpoint")
    return cls(**values)
