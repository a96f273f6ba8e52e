"""Hardware of a run: device, autocast, memory behaviour, and a record of it."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; ValueError for a device this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device = {name!r}: expected auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device = {name!r}: this machine has no CUDA device; use device=cpu")
    return device


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 on CUDA; nothing on a CPU, where bfloat16 may be emulated and very slow."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def require_memory(num_bytes: int, device: torch.device, what: str) -> None:
    """MemoryError saying what was asked for, where the device has less memory than that."""
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > there:
        raise MemoryError(
            f"{what} needs at least {num_bytes / 1e9:,.1f} GB, and the machine has "
            f"{there / 1e9:,.1f} GB: choose a smaller one"
        )


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks instead of returning them to the kernel.

    A training step allocates and frees the same tensors of many MB each time; by default each
    comes as fresh zeroed pages. Keeping them saves 10 to 20 % of a step on a CPU. Elsewhere than
    on glibc nothing happens. Blocks of ever new sizes fill the gaps badly: see
    `release_freed_memory`.
    """
    if not _has_glibc():
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Return freed blocks to the kernel after all; on glibc alone.

    The tensors of tokens that go deep have another size at each step, so blocks that
    `keep_freed_memory` kept do not fit: a run of 2,048 tokens a step grew by 2.5 MB a step.
    """
    if _has_glibc():
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def environment(device: torch.device) -> dict[str, Any]:
    """Commit, command, versions and hardware, for the record of a run."""
    packages = ("torch", "numpy", "tokenizers", "safetensors", "jsonargparse")
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a model needs no jsonargparse
        return None


def _commit() -> str | None:
    """The source's commit, `+` appended where files differ from it; None outside a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # installed: the repository around it is another one
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
