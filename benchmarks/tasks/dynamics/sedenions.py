"""Oracles of the sedenion product: the doubling rule, zero divisors, and laws that hold or fail.

Shapes: S components, 16 for sedenions.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.tasks.dynamics.oracle import F64, Oracle, Size
from entropy_core import sedenion

BAEZ, CAWAGAS = "Baez 2002", "Cawagas 2004"


def doubled(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(a, b)(c, d) = (a c - d* b, d a + b c*) on arrays (..., S), down to the reals."""
    if x.shape[-1] == 1:
        return x * y
    a, b = np.split(x, 2, -1)
    c, d = np.split(y, 2, -1)
    star = lambda z: np.concatenate([z[..., :1], -z[..., 1:]], -1)  # noqa: E731
    low = doubled(a, c) - doubled(star(d), b)
    return np.concatenate([low, doubled(d, a) + doubled(b, star(c))], -1)


@functools.cache
def basis_associator(S: int) -> float:
    """Sum over basis triples of |(e_i e_j) e_k - e_i (e_j e_k)|^2, by `doubled`."""
    e = np.eye(S)
    i, j, k = e[:, None, None], e[None, :, None], e[None, None]
    gap = doubled(doubled(i, j), k) - doubled(i, doubled(j, k))
    return float(np.square(gap).sum())


def zero_divisors() -> tuple[int, int]:
    """Elements e_i + e_j and e_i - e_j (0 < i < j) that divide zero, and ordered pairs of them."""
    e = torch.eye(16, dtype=F64)
    pairs = [(i, j) for i in range(1, 16) for j in range(i + 1, 16)]
    elements = torch.stack([e[i] + s * e[j] for i, j in pairs for s in (1, -1)])  # (210, S)
    products = torch.einsum("akj,bj->abk", sedenion.left_matrix(elements), elements)
    zero = (products == 0).all(-1)
    return int(zero.any(1).sum()), int(zero.sum())


def draws(seed: int, size: Size, S: int) -> tuple[Tensor, ...]:
    """Three tensors (N, S) of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, size.products, S, generator=generator, dtype=F64).unbind(0)


def units(seed: int, size: Size, S: int = 16) -> tuple[Tensor, ...]:
    """The same of length 1."""
    return tuple(v / sedenion.norm(v)[:, None] for v in draws(seed, size, S))


def doubling_gap(seed: int, size: Size, S: int) -> float:
    x, y, _ = draws(seed, size, S)
    return float(np.abs(sedenion.multiply(x, y).numpy() - doubled(x.numpy(), y.numpy())).max())


def product_norms(seed: int, size: Size, S: int) -> Tensor:
    """|xy| / (|x||y|) of random pairs, (N,)."""
    x, y, _ = draws(seed, size, S)
    return sedenion.norm(sedenion.multiply(x, y)) / (sedenion.norm(x) * sedenion.norm(y))


def associator(seed: int, size: Size, S: int) -> float:
    """Mean of |(xy)z - x(yz)|^2."""
    times = sedenion.multiply
    x, y, z = units(seed, size, S)
    return (times(times(x, y), z) - times(x, times(y, z))).square().sum(-1).mean().item()


def norm_law(x: Tensor, _: Tensor) -> Tensor:
    one = torch.zeros_like(x)
    one[:, 0] = 1
    return sedenion.multiply(x, sedenion.conjugate(x)) - one


def power_law(x: Tensor, _: Tensor) -> Tensor:
    times = sedenion.multiply
    return times(times(x, x), times(x, x)) - times(x, times(x, times(x, x)))


def flexible_law(x: Tensor, y: Tensor) -> Tensor:
    times = sedenion.multiply
    return times(x, times(y, x)) - times(times(x, y), x)


LAWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x x* against |x|^2": norm_law,
    "x^2 x^2 against x (x (x x))": power_law,
    "x (y x) against (x y) x": flexible_law,
}


def worst(law: Callable[[Tensor, Tensor], Tensor], seed: int, size: Size) -> float:
    x, y, _ = units(seed, size)
    return law(x, y).abs().max().item()


def zero_product(seed: int) -> float:
    e = torch.eye(16, dtype=F64)
    return sedenion.norm(sedenion.multiply(e[3] + e[10], e[6] - e[15])).item()


def sedenion_oracles(seeds: Sequence[int], size: Size) -> list[Oracle]:
    oracle = functools.partial(Oracle, "sedenion")
    count, counts = size.products * len(seeds), functools.cache(zero_divisors)
    return [
        *(oracle(f"product of {S} components against the doubling rule, largest gap", 0.0, 1e-12,
                 BAEZ, lambda seed, S=S: doubling_gap(seed, size, S)) for S in (2, 4, 8, 16)),
        *(oracle(f"share of products of {S} components with |xy| != |x||y|", expected, 0.0, BAEZ,
                 lambda seed, S=S: ((product_norms(seed, size, S) - 1).abs() > 1e-9)
                 .double().mean().item()) for S, expected in ((8, 0.0), (16, 1.0))),
        oracle("mean of |xy|^2 over unit x, y", 1.0, 1 / math.sqrt(count),
               "trace of L(x)^T L(x) is 16",
               lambda seed: product_norms(seed, size, 16).square().mean().item()),
        oracle("|(e3 + e10)(e6 - e15)|", 0.0, 0.0, BAEZ, zero_product),
        oracle("elements e_i +- e_j that divide zero", 84.0, 0.0, CAWAGAS,
               lambda seed: counts()[0]),
        oracle("ordered pairs of them with product 0", 336.0, 0.0, CAWAGAS,
               lambda seed: counts()[1]),
        *(oracle(f"mean of |(xy)z - x(yz)|^2 over unit x, y, z of {S} components",
                 basis_associator(S) / S**3, 2 / math.sqrt(count) if S > 4 else 1e-12,
                 "all basis triples, doubling rule", lambda seed, S=S: associator(seed, size, S))
          for S in (4, 8, 16)),
        *(oracle(f"{name}, largest gap", 0.0, 1e-12, BAEZ,
                 lambda seed, law=law: worst(law, seed, size)) for name, law in LAWS.items()),
    ]  # fmt: skip
