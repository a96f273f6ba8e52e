"""Crash-safe checkpoints: a checkpoint is there whole and verifiable, or it is not there.

    RUN/.lock                           one writer; the kernel frees it when the writer dies
    RUN/best.json                       step and validation bits per byte of the best checkpoint
    RUN/checkpoints/step_00000100/      one directory per checkpoint:
        model.safetensors, ...              one file per part, tensors only
        config.json, training.json, ...     documents, JSON or plain text
        MANIFEST.json                       size and sha256 of every file above, and of itself
    RUN/checkpoints/.tmp-*  .trash-*    half written or deleted; never read, cleared at start
    RUN/checkpoints/corrupt-step_*      set aside because verification failed

Writing: temporary directory, fsync each file, MANIFEST last, rename, fsync the parent. Reading:
every byte is hashed before one is used, and what is parsed is what was hashed. Nothing here
unpickles, so loading cannot run code.
"""

import contextlib
import errno
import hashlib
import json
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

FORMAT = 1
MANIFEST = "MANIFEST.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
STEP_NAME = re.compile(r"step_(\d{8,})")
_ENTRY = {"kind", "size", "sha256"}
_BLOCK = 1 << 20  # bytes hashed at a time

Document = str | dict[str, Any]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, found or read; the message says where and what to do."""


class RunBusyError(CheckpointError):
    """Another live process is writing to the run directory."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint is not what was written: `path` (directory), `file` in it, and `reason`."""

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

    A directory written by this function is replaced; anything else of that name is refused.
    Raises as `save_checkpoint` does.
    """
    path = Path(path)
    contents = _check_contents(tensors, documents)
    if path.exists() and not (path / MANIFEST).is_file() and not _is_empty_directory(path):
        raise CheckpointError(f"{path} exists and is not a checkpoint; choose another directory")
    temporary = path.parent / f".tmp-{path.name}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_contents(temporary, contents, tensors, step)
        _swap(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # first, so that the free space is real
        needed = _num_bytes(tensors, contents)
        raise CheckpointError(cannot("write checkpoint", path, error, needed)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # what stays is cleared at the next start
    return path


def _swap(new: Path, path: Path) -> None:
    """Rename `new` to `path`; what was there goes last, so a kill never loses both."""
    trash = trash_name(path)
    replaces = (path / MANIFEST).is_file()
    if replaces:
        os.rename(path, trash)
    os.rename(new, path)
    _sync_directory(path.parent)
    if replaces:
        shutil.rmtree(trash)


def write_file(path: str | Path, data: bytes) -> None:
    """Replace a small file atomically: readers see the old bytes or the new. Raises OSError."""
    path = Path(path)
    temporary = path.parent / f".tmp-{path.name}-{os.getpid()}"
    try:
        _write_and_sync(temporary, data)
        os.replace(temporary, path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _write_contents(directory: Path, contents, tensors, step: int | None) -> None:
    files = {}
    for part, group in tensors.items():
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}
        data = safetensors.torch.save(plain)
        files[f"{part}.safetensors"] = _write_entry(directory, f"{part}.safetensors", data, "part")
    for name, (kind, data) in contents.items():
        files[name] = _write_entry(directory, name, data, kind)
    body = {"format": FORMAT, "step": step, "files": files}
    _write_and_sync(directory / MANIFEST, _seal(body))
    _sync_directory(directory)


def _write_entry(directory: Path, name: str, data: bytes, kind: str) -> dict[str, Any]:
    _write_and_sync(directory / name, data)
    return {"kind": kind, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_and_sync(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(body: dict[str, Any]) -> bytes:
    """The manifest as bytes, carrying the sha256 of its own body: no bit of it is unguarded."""
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "sha256": digest})


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, indent=2, sort_keys=True).encode() + b"\n"


def make_directory(path: Path) -> None:
    try:
        path.mkdir()
        _sync_directory(path.parent)
    except OSError as error:
        raise CheckpointError(cannot("make directory", path, error)) from error


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _num_bytes(tensors, contents) -> int:
    parts = (t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    return sum(parts) + sum(len(data) for _, data in contents.values())


def cannot(action: str, path: Path, error: OSError, needed: int | None = None) -> str:
    message = f"cannot {action} {path}: {error.strerror or error}"
    if needed is None:
        return message
    try:
        free = f"{shutil.disk_usage(path.parent).free:,} bytes are free"
    except OSError:
        free = "its directory cannot be read"
    return (
        f"{message}; it needs {needed:,} bytes and {free}; "
        "earlier checkpoints are untouched: make room or choose another run directory"
    )


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
        numeric = tensor.is_floating_point() or tensor.is_complex()
        if numeric and not torch.isfinite(tensor.detach()).all():
            raise ValueError(f"{part} tensor {name!r} is not finite; nothing was saved")


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
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint directory {path}")
    with _reading(path, MANIFEST) as file:
        data = file.read()
    try:
        sealed = json.loads(data)
        body = {key: value for key, value in sealed.items() if key != "sha256"}
        intact = _seal(body) == data
    except (ValueError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CorruptCheckpointError(path, MANIFEST, "is damaged (its own sha256 differs)")
    _check_version(path, body)
    _check_listing(path, body)
    return body


def _check_version(path: Path, body: dict[str, Any]) -> None:
    found = body.get("format")
    if found != FORMAT:
        reason = f"is of checkpoint format {found}, and this version reads format {FORMAT}"
        advice = "use the version of reso-llm that wrote it"
        raise FormatVersionError(path, MANIFEST, reason, advice)


def _check_listing(path: Path, body: dict[str, Any]) -> None:
    named = STEP_NAME.fullmatch(path.name)
    if named and body["step"] != int(named[1]):
        raise CorruptCheckpointError(path, MANIFEST, f"belongs to step {body['step']}")
    files = body["files"]
    if not all(_FILE_NAME.fullmatch(name) and set(files[name]) == _ENTRY for name in files):
        raise CorruptCheckpointError(path, MANIFEST, "lists something that is no checkpoint file")
    foreign = sorted({entry.name for entry in entries(path, "")} - {MANIFEST, *files})
    if foreign:
        raise CorruptCheckpointError(path, foreign[0], "is a foreign file, not in the manifest")


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
    """A missing or unreadable file means corruption; a refused one is the machine's affair."""
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
            return safetensors.torch.load(data)
        return json.loads(data) if kind == "json" else data.decode()
    except (SafetensorError, ValueError, RecursionError, KeyError) as error:
        reason = f"is not {'safetensors' if kind == 'part' else kind} ({error})"
        raise CorruptCheckpointError(path, name, reason) from error


# --- which checkpoint -----------------------------------------------------------------------


# --- housekeeping, for the holder of the lock -------------------------------------------------


def entries(directory: Path, *prefixes: str) -> list[Path]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(cannot("read", directory, error)) from error
    return [directory / name for name in names if name.startswith(prefixes)]


def trash_name(path: Path) -> Path:
    return path.parent / f".trash-{path.name}-{os.getpid()}"
