"""Products of the one-token forms against torch, and copies of weights that follow their weight."""

import numpy as np
import pytest
import torch

from reso_llm.stages import arrays
from reso_llm.stages.arrays import Matrix

IN, OUT = 24, 40


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("onednn", [True, False])
def test_a_product_is_that_of_torch(monkeypatch, rows, onednn):
    monkeypatch.setattr(arrays, "ONEDNN", onednn and arrays.ONEDNN)
    parameter = torch.nn.Parameter(draw(OUT, IN).T.contiguous().T)  # the input first in memory
    x, out = draw(rows, IN, seed=1), np.empty((rows, OUT), np.float32)
    for weight in (parameter.detach(), parameter.detach()[8:]):
        product = Matrix(parameter, weight)
        np.testing.assert_allclose(product(x.numpy()), x @ weight.T, rtol=1e-4, atol=1e-5)
    assert Matrix(parameter)(x.numpy(), out=out) is out
    np.testing.assert_allclose(out, (x @ parameter.T).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counted", [True, False])
def test_a_copy_of_a_weight_that_changed_is_not_used(counted):
    """Changed with a version and, as fused optimizers do, without one but with a gradient."""
    parameter, x = torch.nn.Parameter(draw(OUT, IN)), draw(3, IN, seed=1)
    Matrix(parameter)(x.numpy())
    if counted:
        with torch.no_grad():
            parameter.mul_(2)
    else:
        parameter.grad = torch.ones_like(parameter)
        parameter.data.mul_(2)
    found = Matrix(parameter)(x.numpy())
    np.testing.assert_allclose(found, (x @ parameter.T).detach(), rtol=1e-4, atol=1e-5)


def test_a_copy_is_made_once_for_a_weight(monkeypatch):
    parameter, x = torch.nn.Parameter(draw(OUT, IN)), draw(3, IN, seed=1).numpy()
    Matrix(parameter)(x)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_: 1 / 0)
    Matrix(parameter)(x)
