"""Sedenions: the 16-dimensional Cayley–Dickson algebra over the reals.

    (a, b)(c, d) = (a c - d* b, d a + b c*)        a, b, c, d of half the dimension

Source: Dickson 1919; Baez, "The Octonions" (2002), section 2.2, whose sign convention this is.
Elements are (..., S) with S = 16 components. The leading 1, 2, 4 or 8 components form the reals,
complex numbers, quaternions and octonions, so every function accepts S in {1, 2, 4, 8, 16}.

Known laws: e_i² = -1; x(yx) = (xy)x (flexible); powers associate; x x* = |x|². Known failures from
S = 16 on: |xy| ≠ |x||y|, and non-zero x y = 0 exist, so an inverse does not solve x y = z.
"""

import torch
from torch import Tensor

DIM = 16


def _unit_sign(i: int, j: int, dim: int) -> int:
    """Sign of e_i e_j = ± e_(i xor j), by the doubling rule on basis elements."""
    if dim == 1:
        return 1
    half = dim // 2
    low_i, low_j = i % half, j % half
    conjugate_j = 1 if low_j == 0 else -1
    if i < half and j < half:
        return _unit_sign(low_i, low_j, half)
    if i < half:
        return _unit_sign(low_j, low_i, half)
    if j < half:
        return conjugate_j * _unit_sign(low_i, low_j, half)
    return -conjugate_j * _unit_sign(low_j, low_i, half)


def _build_table() -> Tensor:
    table = torch.zeros(DIM, DIM, DIM, dtype=torch.int8)
    for i in range(DIM):
        for j in range(DIM):
            table[i, j, i ^ j] = _unit_sign(i, j, DIM)
    return table


#: TABLE[i, j, k] is the coefficient of e_k in e_i e_j: 256 entries are ±1, the others 0.
TABLE = _build_table()


def _table_for(a: Tensor) -> Tensor:
    S = a.shape[-1]
    if S not in (1, 2, 4, 8, 16):
        raise ValueError(f"expected 1, 2, 4, 8 or 16 components, got {S}")
    return TABLE[:S, :S, :S].to(a)


def left_matrix(a: Tensor) -> Tensor:
    """L(a) with L(a) b = a b: (..., S) -> (..., S, S). Raises ValueError as `multiply` does."""
    return torch.einsum("...i,ijk->...kj", a, _table_for(a))


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product a b: (..., S), (..., S) -> (..., S), broadcasting leading axes.

    Raises ValueError unless S is 1, 2, 4, 8 or 16.
    """
    return torch.einsum("...i,...j,ijk->...k", a, b, _table_for(a))


def conjugate(a: Tensor) -> Tensor:
    """a* : the real part stays, the others change sign: (..., S) -> (..., S)."""
    return torch.cat([a[..., :1], -a[..., 1:]], dim=-1)


def norm(a: Tensor) -> Tensor:
    """|a| = sqrt(a a*), the Euclidean length: (..., S) -> (...)."""
    return torch.linalg.vector_norm(a, dim=-1)


def inverse(a: Tensor) -> Tensor:
    """a* / |a|², with a a⁻¹ = a⁻¹ a = 1: (..., S) -> (..., S). Zero has none and gives NaN."""
    return conjugate(a) / a.square().sum(-1, keepdim=True)
