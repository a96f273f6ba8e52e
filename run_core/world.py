"""The processes of one run, started by torchrun: what each of them has, and what they agree on.

    torchrun --nproc_per_node N train.py ...

Process 0, the first, writes the run; all take their rows of every batch and sum their gradients. A
process alone is a world of one, for which all of this does nothing.
"""

import contextlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from run_core.run import ENVIRONMENT, TrainingError

PATIENCE = timedelta(hours=12)  # the first process may validate that long; torchrun sees a death

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """This process's number `rank` among the `size` processes of a run."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run."""
        return self.rank == 0

    def rows(self, count: int, name: str = "rows") -> slice:
        """This process's share of `count` rows; ValueError where the shares are not equal."""
        share, rest = divmod(count, self.size)
        if rest or not count:
            raise ValueError(
                f"{name} = {count}: expected a multiple of the number of processes, {self.size}"
            )
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, value: Value) -> list[Value]:
        """The small values of all processes, in their order; all call this at the same place.

        Raises TrainingError where one of them is gone.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _named_loss():
            dist.all_gather_object(values, value)
        return values

    def first_does(self, task: Callable[[], Value]) -> Value:
        """The value, for all processes, of a task that the first alone does."""
        value = [task() if self.is_first else None]
        if self.size > 1:
            with _named_loss():
                dist.broadcast_object_list(value)
        return value[0]

    def sum_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replace the gradients by their sums over all processes, added in the processes' order.

        So they are, to the last bit, what one process adds up that takes the same rows in as many
        passes. A gradient that is missing here is 0; one that is missing everywhere stays so.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        have = zip(*self.gather([p.grad is not None for p in parameters]), strict=True)
        moved = [p for p, some in zip(parameters, have, strict=True) if any(some)]
        if not moved:
            return
        for p in moved:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        pieces = [p.grad.flatten() for p in moved]
        pieces.append(pieces[0].new_zeros(-sum(map(len, pieces)) % self.size))
        flat = torch.cat(pieces)
        self._sum(flat)
        sums = flat.split([len(piece) for piece in pieces])
        for p, total in zip(moved, sums[:-1], strict=True):
            p.grad.copy_(total.view(p.shape))

    def _sum(self, flat: torch.Tensor) -> None:
        """Replace a tensor (N,) by its sum over all processes, N a multiple of their number.

        Each adds up a part of it, in their order. As much is sent as for `all_reduce`, whose order
        depends on the place in the tensor.
        """
        parts = torch.empty_like(flat)
        with _named_loss():
            dist.all_to_all_single(parts, flat)
            dist.all_gather(list(flat.chunk(self.size)), reduce(torch.add, parts.chunk(self.size)))


ALONE = World()


@contextlib.contextmanager
def open_world(device: torch.device) -> Iterator[World]:
    """The world of this process, which torchrun's environment describes; ALONE without it.

    Processes talk through gloo, about tensors on a GPU through NCCL.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _named_loss():
        dist.init_process_group(backend, timeout=PATIENCE)
    world = World(dist.get_rank(), size)
    try:
        world.gather(None)  # one that leaves before all are connected breaks the connecting
        yield world
    finally:
        dist.destroy_process_group()


def is_first_process() -> bool:
    """Whether this process is the first of its run, or the only one."""
    return _number("RANK", 0) == 0


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process, one for each of the processes on a machine; a CPU is shared.

    Raises ValueError for a GPU by its number, and for more processes than GPUs.
    """
    if _number("WORLD_SIZE", 1) == 1 or device.type != "cuda":
        return device
    number, count = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(f"device = {device}: several processes have a GPU each; use device=cuda")
    if number >= count:
        raise ValueError(
            f"process {number} of this machine has no GPU of its own: it has {count}; "
            f"use --nproc_per_node {count}"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def launch() -> dict[str, Any]:
    """Processes and name of what torchrun started, the same after it started them anew."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return {
        "processes": _number("WORLD_SIZE", 1),
        "launch": f"{platform.node()}:{os.getppid()}" if name == "none" else name,
    }


def is_restart_of(run_dir: str | Path) -> bool:
    """Whether torchrun started the processes anew, after they had begun the run in `run_dir`."""
    if not _number("TORCHELASTIC_RESTART_COUNT", 0):
        return False
    try:
        record = json.loads(Path(run_dir, ENVIRONMENT).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("launch") == launch()["launch"]


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


@contextlib.contextmanager
def _named_loss() -> Iterator[None]:
    """TrainingError for what gloo and NCCL raise where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(
            f"another process of this run has ended; its last lines say why ({reason})"
        ) from error
