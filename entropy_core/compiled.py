"""Functions over arrays that numba compiles, for the one-token forms.

`@compiled` marks a function of loops over float32 arrays. It is compiled to machine code at its
first call, for the processor at hand, and kept on disk beside its file or in the user's cache, so
later processes load it. numba itself is imported then, and not before: training and prompts need
neither. Sums may be reordered and products fused; infinities and NaN are respected.

numba is optional, the extra `fast`. Without it the functions run as Python, hundreds of times
slower: where torch has another way, callers ask `available()` and take it.

A compiled function may call others of this file; the files of the stages call none of each other.
"""

import hashlib
import logging
from collections.abc import Callable
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

REORDERED = {"contract", "reassoc", "arcp", "nsz"}
# numba knows a kept function by its own file; what it calls here is told by this file's hash.
VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LOG2_E, LEAST, MOST = np.float32(1.4426950408889634), np.float32(-87.0), np.float32(88.0)
ONE, HALF = np.float32(1.0), np.float32(0.5)
EPS = np.finfo(np.float32).eps  # of a norm, as in `reso_llm.stages.fused`
P = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)
)


@cache
def available() -> bool:
    """Whether numba is installed. Says once what is lost without it."""
    if find_spec("numba") is not None:
        return True
    logging.getLogger(__name__).warning(
        'texts are written at about a third of the speed without numba: pip install -e ".[fast]"'
    )
    return False


class Compiled:
    """A function that is compiled at its first call; see the module's docstring."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.__doc__ = function, function.__doc__

    @cached_property
    def dispatcher(self) -> Any:
        """numba's form of the function; the function itself without numba."""
        if not available():
            return self._function
        import numba

        self._function.__qualname__ += f".{VERSION}"  # in the name of its file on disk
        options = {"fastmath": REORDERED, "error_model": "numpy"}
        try:
            dispatcher = numba.njit(cache=True, **options)(self._function)
        except RuntimeError:  # there is no folder that may be written to
            _announce()
            return numba.njit(**options)(self._function)
        kept = Path(dispatcher.stats.cache_path).glob(f"*{self._function.__qualname__}-*")
        if not any(kept):
            _announce()
        return dispatcher

    @property
    def _numba_type_(self) -> Any:
        """What numba asks of a value that a compiled function names."""
        return self.dispatcher._numba_type_

    def __call__(self, *args: Any) -> Any:
        return self.dispatcher(*args)


compiled = Compiled


@cache
def _announce() -> None:
    logging.getLogger(__name__).warning(
        "compiling what writes texts for this processor, which takes some seconds once"
    )


@compiled
def exponential(x):
    """e^x of a float32 within [-87, 88], and of the bound beyond; it becomes vectors in a loop.

    As Cephes' expf: e^x = 2^n e^r with |r| <= ln 2 / 2 and a polynomial for e^r.
    """
    x = LEAST if x < LEAST else x  # NaN stays
    x = MOST if x > MOST else x
    n = np.floor(x * LOG2_E + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = ((((P[0] * r + P[1]) * r + P[2]) * r + P[3]) * r + P[4]) * r + HALF
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + ONE) * power


@compiled
def norm(x, out):
    """Rows x (R,D), each divided by its root mean square, to out."""
    for r in range(len(x)):
        row, normed = x[r], out[r]
        total = np.float32(0)
        for i in range(len(row)):
            total += row[i] * row[i]
        scale = ONE / np.sqrt(total / np.float32(len(row)) + EPS)
        for i in range(len(row)):
            normed[i] = row[i] * scale


@compiled
def logistic(z):
    """1 / (1 + e^-z) of a float32, in a form that cannot overflow."""
    return ONE / (ONE + exponential(-z))


@compiled
def highest(z):
    """The largest of z (V,), NaN left out."""
    top = np.float32(-np.inf)
    for i in range(len(z)):
        top = max(top, z[i])
    return top


@compiled
def log_sum(z):
    """ln sum e^z of z (V,), a float64."""
    top, total = highest(z), np.float32(0)
    for i in range(len(z)):
        total += exponential(z[i] - top)
    return float(top) + np.log(float(total))
