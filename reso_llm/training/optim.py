"""Optimisation: Muon for hidden matrices, AdamW for the rest, and the learning-rate schedule.

Muon (Jordan 2024, kellerjordan.github.io/posts/muon) replaces the momentum M of a weight matrix by
the nearest semi-orthogonal matrix, found with a few steps of an odd matrix polynomial

    X <- a X + b (X X^T) X + c (X X^T)^2 X,        X_0 = M / |M|_F

whose coefficients are those of the Polar Express (Amsel 2025, arXiv 2505.16932). torch.optim.Muon
computes in bfloat16, which many CPUs emulate about a hundred times slower, and one matrix at a
time; here equal shapes are iterated as one batch in float32. In bfloat16 the polynomial leaves its
range now and then: on an H200 one such step moved a gate of norm 2 to norm 110.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from reso_llm.training.config import OptimConfig

# For each number of steps, the greedy minimax coefficients for singular values above 0.02 (3
# steps) or 0.001 (5 steps) of the largest. benchmarks/README.md compares the two.
POLAR_EXPRESS = {
    3: (
        (7.710969, -22.113755, 16.248743),
        (3.215276, -2.411172, 0.501300),
        (2.218308, -1.593990, 0.410748),
    ),
    5: (
        (8.287212, -23.595887, 17.300387),
        (4.107059, -2.947850, 0.544843),
        (3.948691, -2.908902, 0.551819),
        (3.318420, -2.488488, 0.510049),
        (2.300652, -1.668904, 0.418807),
    ),
}

WIDE = 2
"""Columns for each row from which on a matrix is iterated by its Gram matrix: 1.8 times as fast at
4, and 3e-4 of the result's norm away from it at singular values from 1 to 1e-4."""


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices U V^T of a batch (N, rows, columns), approximately."""
    flip = x.shape[-2] > x.shape[-1]
    x = x.mT if flip else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) * 1.01 + 1e-7)
    if x.shape[-1] >= WIDE * x.shape[-2]:
        x = _polynomial(x @ x.mT, steps) @ x
    else:
        for a, b, c in POLAR_EXPRESS[steps]:
            gram = x @ x.mT
            poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, poly, x, beta=a)
    return x.mT if flip else x


def _polynomial(gram: Tensor, steps: int) -> Tensor:
    """The matrix by which the steps multiply x, from its Gram matrix x x^T (N, rows, rows).

    A step multiplies x by p = a + b G + c G^2, and so G by p on either side: x itself is needed at
    the beginning and at the end alone.
    """
    product = None
    for last, (a, b, c) in enumerate(POLAR_EXPRESS[steps], start=1 - steps):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        product = p if product is None else p @ product
        gram = p @ gram @ p if last else gram
    return product


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only.

    The update has spectral norm lr * max(1, rows / columns)^0.5.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        polar_steps: int = 5,
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, momentum=momentum, weight_decay=weight_decay, polar_steps=polar_steps),
        )

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for params in shapes.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict) -> None:
        """One step for parameters of equal shape (..., rows, columns).

        Of sharded ones every process gathers the momentum and orthogonalises it whole.
        """
        momentum = group["momentum"]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        grads = torch.stack([p.grad for p in params])
        torch._foreach_lerp_(buffers, list(grads.unbind()), 1 - momentum)
        update = grads.lerp_(torch.stack(buffers), momentum)
        rows, columns = update.shape[-2:]
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        flat = orthogonalize(whole.view(-1, rows, columns), group["polar_steps"])
        update = distributed(flat.view_as(whole), update)
        scale = max(1, rows / columns) ** 0.5
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"] * scale)


def make_optimizers(model: nn.Module, config: OptimConfig) -> dict[str, torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for tables, head and scalars.

    Each group remembers its full rate as `peak_lr`.
    """
    groups: dict[str, list[Tensor]] = {"matrix": [], "embedding": [], "head": [], "scalar": []}
    for name, p in model.named_parameters():
        groups[_kind(name, p)].append(p)
    adamw = [
        {"params": groups[kind], "lr": getattr(config, f"{kind}_lr")}
        for kind in ("embedding", "head", "scalar")
        if groups[kind]
    ]
    optimizers = {
        "muon": Muon(
            groups["matrix"],
            lr=config.matrix_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            polar_steps=config.polar_steps,
        ),
        "adamw": torch.optim.AdamW(
            adamw, betas=(0.9, config.beta2), eps=1e-10, weight_decay=0.0, fused=True
        ),
    }
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether a parameter is a matrix, a stack of them, or a table; else a vector or a scalar."""
    return _kind(name, p) != "scalar"


def _kind(name: str, p: Tensor) -> str:
    if name.startswith("head."):
        return "head"
    if "table" in name:
        return "embedding"
    return "matrix" if p.ndim >= 2 and min(p.shape[-2:]) > 1 else "scalar"


def distributed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, sharded where `like` is: each keeps its part."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the layout of its parameter: fused AdamW reads both as flat memory."""
    for p, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                own = torch.empty_like(p, dtype=value.dtype)
                values[key] = own.copy_(distributed(value, p))


def learning_rate_factor(config: OptimConfig, progress: float) -> float:
    """Factor on every learning rate at `progress` (0 to 1) of the budget."""
    rise = progress / config.warmup_fraction if config.warmup_fraction else 1.0
    fall = (1 - progress) / config.decay_fraction if config.decay_fraction else 1.0
    return max(0.0, min(1.0, rise, fall))


def set_learning_rate(optimizers: dict[str, torch.optim.Optimizer], factor: float) -> None:
    """Set every group to `factor` times its full rate."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
