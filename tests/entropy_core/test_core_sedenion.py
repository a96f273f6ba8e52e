"""Sedenions against the recursive doubling rule, the hypercomplex package and known laws."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck

from entropy_core import sedenion

F64 = torch.float64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit(i):
    return torch.eye(16, dtype=F64)[i]


def multiply_reference(x, y):
    """(a, b)(c, d) = (a c - d* b, d a + b c*), recursively: the specification."""
    if x.shape[-1] == 1:
        return x * y
    (a, b), (c, d) = x.chunk(2, -1), y.chunk(2, -1)
    left = multiply_reference(a, c) - multiply_reference(sedenion.conjugate(d), b)
    right = multiply_reference(d, a) + multiply_reference(b, sedenion.conjugate(c))
    return torch.cat([left, right], dim=-1)


@pytest.mark.parametrize("S", [1, 2, 4, 8, 16])
def test_product_matches_the_doubling_rule(S):
    x, y = draw(5, 3, S), draw(3, S, seed=1)  # leading axes broadcast
    product = sedenion.multiply(x, y)
    torch.testing.assert_close(product, multiply_reference(x, y.expand(5, 3, S)))
    matrix = sedenion.left_matrix(x)
    assert matrix.shape == (5, 3, S, S)
    torch.testing.assert_close((matrix @ y.unsqueeze(-1)).squeeze(-1), product)


def test_table_entries():
    """Guards the trap of "sedenions" that commute: distinct imaginary units anticommute."""
    table = sedenion.TABLE
    assert table.abs().sum() == 256
    assert (table.abs().sum(-1) == 1).all()
    for i, j in itertools.product(range(1, 16), repeat=2):
        sign = 1 if i == j else -1
        assert torch.equal(table[i, j], sign * table[j, i])
    assert (table[range(1, 16), range(1, 16), 0] == -1).all()  # e_i² = -1


def test_product_matches_hypercomplex():
    hypercomplex = pytest.importorskip("hypercomplex")
    x, y = draw(16), draw(16, seed=1)
    oracle = hypercomplex.Sedenion(*x.tolist()) * hypercomplex.Sedenion(*y.tolist())
    expected = torch.tensor([float(v) for v in oracle.coefficients()], dtype=F64)
    torch.testing.assert_close(sedenion.multiply(x, y), expected)


def test_known_quaternion_and_zero_divisor():
    assert torch.equal(sedenion.multiply(unit(1), unit(2)), unit(3))  # i j = k
    product = sedenion.multiply(unit(3) + unit(10), unit(6) - unit(15))
    assert torch.equal(product, torch.zeros(16, dtype=F64))


def test_exactly_84_zero_divisors_of_the_form_two_units():
    pairs = [
        unit(i) + sign * unit(j)
        for i, j in itertools.combinations(range(1, 16), 2)
        for sign in (1, -1)
    ]
    elements = torch.stack(pairs)
    products = sedenion.multiply(elements[:, None], elements[None])
    vanishing = (products == 0).all(-1)
    assert vanishing.any(1).sum() == 84
    assert vanishing.sum() == 336
    determinants = torch.linalg.det(sedenion.left_matrix(elements))
    assert (determinants.abs() < 1e-9).sum() == 84


def test_laws_that_hold_in_dimension_16():
    x, y = draw(20, 16), draw(20, 16, seed=1)
    mul = sedenion.multiply
    torch.testing.assert_close(mul(x, mul(y, x)), mul(mul(x, y), x))  # flexible
    square = mul(x, x)
    torch.testing.assert_close(mul(square, square), mul(x, mul(x, square)))  # powers associate
    conj = sedenion.conjugate
    torch.testing.assert_close(conj(mul(x, y)), mul(conj(y), conj(x)))
    one = unit(0).expand(20, 16)
    torch.testing.assert_close(mul(x, sedenion.inverse(x)), one)
    torch.testing.assert_close(mul(sedenion.inverse(x), x), one)
    torch.testing.assert_close(mul(x, conj(x)), sedenion.norm(x).square()[:, None] * one)


def relative_defect(a, b):
    return ((a - b).norm(dim=-1) / a.norm(dim=-1)).max().item()


def test_each_doubling_loses_its_law():
    """Commutativity goes at 4, associativity at 8, alternativity and |xy| = |x||y| at 16."""
    mul = sedenion.multiply
    for S in (2, 4, 8, 16):
        x, y, z = draw(20, S), draw(20, S, seed=1), draw(20, S, seed=2)
        xy = mul(x, y)
        norms = torch.stack([sedenion.norm(xy), sedenion.norm(x) * sedenion.norm(y)])
        assert (relative_defect(xy, mul(y, x)) < 1e-12) == (S < 4)
        assert (relative_defect(mul(xy, z), mul(x, mul(y, z))) < 1e-12) == (S < 8)
        assert (relative_defect(mul(x, xy), mul(mul(x, x), y)) < 1e-12) == (S < 16)
        assert (relative_defect(norms[0, :, None], norms[1, :, None]) < 1e-12) == (S < 16)


def test_inverse_of_zero_is_not_a_number():
    assert sedenion.inverse(torch.zeros(16)).isnan().all()


def test_gradcheck_and_dtype():
    x, y = draw(2, 16).requires_grad_(), draw(2, 16, seed=1).requires_grad_()
    assert gradcheck(sedenion.multiply, (x, y))
    assert gradcheck(lambda x: (sedenion.inverse(x), sedenion.norm(x)), (x,))
    assert sedenion.multiply(
        draw(16, dtype=torch.float32), draw(16, dtype=torch.float32)
    ).dtype == (torch.float32)


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="got 12"):
        sedenion.multiply(torch.zeros(12), torch.zeros(12))


@pytest.mark.cuda
def test_cuda_equals_cpu():
    x, y = draw(4, 16), draw(4, 16, seed=1)
    actual = sedenion.multiply(x.cuda(), y.cuda()).cpu()
    torch.testing.assert_close(actual, sedenion.multiply(x, y))
