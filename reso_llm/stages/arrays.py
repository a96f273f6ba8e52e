"""Arrays of the one-token forms: numpy views of parameters, the norm, the logistic function.

    rms_norm(x) = x / sqrt(mean x^2 + eps)    x (R,D), eps of float32, as in `reso_llm.stages.fused`

A view costs no copy and sees later changes of the parameter. Zero-dimensional arrays serve as
scalars: as an operand one costs half of what a Python float does.

Shapes: R rows, D width.
"""

import numpy as np
from numpy import ndarray
from torch import Tensor, nn

EPS = float(np.finfo(np.float32).eps)


def view(tensor: Tensor) -> ndarray:
    """A CPU tensor's memory as an array."""
    return tensor.detach().numpy()


def scalar(value: float) -> ndarray:
    """A constant of the step as an array ()."""
    return np.asarray(value, dtype=np.float32)


HALF = scalar(0.5)


def matrix(layer: nn.Linear) -> ndarray:
    """The map x (R,in) -> x @ matrix (R,out): a view (in,out)."""
    return view(layer.weight).T


def rms_norm(x: ndarray, out: ndarray | None = None) -> ndarray:
    """Rows x (R,D), each divided by its root mean square."""
    if len(x) == 1:  # a third of the time
        row = x[0]
        return np.divide(x, np.sqrt(row.dot(row) / row.size + EPS), out=out)
    return np.divide(x, np.sqrt(row_squares(x) / x.shape[-1] + EPS), out=out)


def row_squares(rows: ndarray) -> ndarray:
    """Sum of squares of each row: (...,D) -> (...,1)."""
    return np.matmul(rows[..., None, :], rows[..., None])[..., 0]


def logistic(z: ndarray) -> ndarray:
    """1 / (1 + e^-z), in a form that cannot overflow."""
    y = np.tanh(z * HALF)
    y *= HALF
    y += HALF
    return y
