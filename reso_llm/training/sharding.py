"""Sharding with PyTorch's FSDP2: each process keeps its part of every matrix.

So of its gradient and of its optimizer's state. The matrices of a block are whole while the block
runs, forward and backward, those outside of the blocks for the whole pass. Vectors and scalars,
which no process would save memory on, stay whole and are no business of FSDP2 (it takes none of
zero dimensions): their gradients are summed as those of a model that is not sharded.

A checkpoint is the same either way: what is written is gathered first, and what is read is
distributed.
"""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.nn.utils import get_total_norm
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from reso_llm.network import ResoNetwork
from reso_llm.training.optim import is_matrix
from run_core.world import World


def shard(network: ResoNetwork, device: torch.device, world: World) -> None:
    """Shard a network that lies whole, and equal, in every process.

    `network.forward_pass(task)` is then `task()` with the matrices outside of the blocks whole. All
    that reads them belongs inside: FSDP2 takes the gradient of a tensor that a pass was given for
    the end of its backward pass. Gradients of matrices are made sums over the processes there.
    """
    vectors = {p for name, p in network.named_parameters() if not is_matrix(name, p)}
    for p in network.parameters():
        p.data = p.data.contiguous() if p not in vectors else p.data
    options = {
        "mesh": init_device_mesh(device.type, (world.size,)),
        "ignored_params": vectors,
        "shard_placement_fn": lambda p: Shard(_dimension(p, world.size)),
    }
    # A block returns a view; nothing changes it in place, of which FSDP2 warns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in network.blocks:
        fully_shard(block, **options)
    fully_shard(network, **options)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sums
    # Where no token of a process goes deep, its feed-forward maps have no gradient.
    network.set_reduce_scatter_unused_params(True)
    network.forward_pass = _call
    register_fsdp_forward_method(network, "forward_pass")


def _call(task: Callable[[], Tensor]) -> Tensor:
    return task()


def _dimension(p: Tensor, size: int) -> int:
    """The dimension to cut: rows, also of maps that are stacked, where the shares are equal."""
    rows = p.ndim - 2
    return rows if p.shape[rows] % size == 0 else 0


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor alone."""
    return isinstance(tensor, DTensor)


def by_sharding(parameters: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters with a gradient: those that are whole, and those that are sharded."""
    some = [p for p in parameters if p.grad is not None]
    return [p for p in some if not is_sharded(p)], [p for p in some if is_sharded(p)]


def gradient_norm(parameters: Iterable[Tensor], world: World) -> Tensor:
    """Norm () of all gradients together, the same in every process."""
    whole, sharded = ([own_part(p.grad) for p in each] for each in by_sharding(parameters))
    norm = get_total_norm(whole)
    if not sharded:
        return norm
    squares = world.gather(get_total_norm(sharded).item() ** 2)
    return (norm.square() + sum(squares)).sqrt()


def recompute_blocks(network: ResoNetwork) -> None:
    """Let the backward pass compute the blocks again, whose values then need no memory."""
    for block in network.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(state: Any, world: World) -> Any:
    """Nested state whose sharded tensors are whole, on the CPU of the first process.

    All processes call it together; the others get None for these tensors.
    """

    def whole(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()
        return tensor.cpu() if world.is_first else None

    return tree_map(whole, state)
