"""One thread for numpy's products while a step runs.

numpy's OpenBLAS splits even a product with one row over all cores and waits for the slowest, many
times a token. On two cores that gains a sixth of a step while both are free; with one of them
busy a step took 16 times as long. torch's own number of threads does not reach OpenBLAS.
"""

import ctypes
import functools
from collections.abc import Callable
from types import TracebackType

import numpy as np

NAMES = ("scipy_openblas_{}64_", "openblas_{}64_", "scipy_openblas_{}", "openblas_{}")


@functools.cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Read and set the number of threads of the OpenBLAS numpy is linked with, if it is."""
    library = ctypes.CDLL(np.linalg._umath_linalg.__file__)  # symbols of what it links, too
    for name in NAMES:
        get = getattr(library, name.format("get_num_threads"), None)
        if get is not None:
            return get, getattr(library, name.format("set_num_threads"))
    return None


class OneThread:
    """A context in which numpy's OpenBLAS has one thread; with another BLAS nothing happens."""

    def __enter__(self) -> None:
        openblas = _openblas()
        self._before = openblas[0]() if openblas else 1
        if self._before != 1:
            openblas[1](1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before != 1:
            _openblas()[1](self._before)
