"""Arrays of the one-token forms: numpy views of parameters, and products with weights.

A view costs no copy and sees later changes of the parameter. What lies between the products is
compiled (`entropy_core/compiled.py`).

Shapes: R rows.
"""

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

ONEDNN = torch.backends.mkldnn.is_available()
_COPIES = WeakIdKeyDictionary()  # of weights in oneDNN's order, by parameter and shape


def view(tensor: Tensor) -> ndarray:
    """A CPU tensor's memory as an array."""
    return tensor.detach().numpy()


class Matrix:
    """The map x (R,in) -> x W^T (R,out) of a weight W (out,in).

    One row is numpy's product with a view of the weight. Several are oneDNN's, which keeps a copy
    in its own order: numpy would bring the weight into order anew for every product, which takes
    as long as the product. The copy is made where it is first needed, and again after W changed.
    """

    def __init__(self, parameter: Tensor, weight: Tensor | None = None) -> None:
        """weight: the parameter in another shape, or a part of it; else the parameter itself."""
        self._parameter = parameter
        self._weight = (parameter if weight is None else weight).detach()
        self._view = self._weight.numpy().T  # (in,out)
        self._copy: Tensor | None = None

    def __call__(self, x: ndarray, out: ndarray | None = None) -> ndarray:
        if len(x) == 1 or not ONEDNN:
            return np.dot(x, self._view, out=out)
        if self._copy is None:
            self._copy = _ordered(self._parameter, self._weight)
        y = torch.ops.mkldnn._linear_pointwise(
            torch.from_numpy(x), self._copy, None, "none", [], ""
        ).numpy()
        if out is None:
            return y
        out[...] = y
        return out


def _ordered(parameter: Tensor, weight: Tensor) -> Tensor:
    """The weight in oneDNN's order, kept with its parameter until that changes."""
    # Fused optimizers change parameters without counting a version: a gradient announces one.
    changing = parameter.is_inference() or parameter.grad is not None
    key, version = tuple(weight.shape), None if changing else parameter._version
    kept = _COPIES.setdefault(parameter, {})
    if changing or key not in kept or kept[key][0] != version:
        kept[key] = version, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return kept[key][1]
