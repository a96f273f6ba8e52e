"""An oracle: an expected number, and how to get it from entropy_core."""

from collections.abc import Callable
from typing import NamedTuple

import torch

F64 = torch.float64


class Size(NamedTuple):
    """How much is computed: oscillators, their steps, orbits and products; spectra or none."""

    oscillators: int
    steps: int
    orbit: int
    orbits: int
    products: int
    spectra: bool


FULL, QUICK = Size(4000, 1200, 2000, 50, 4000, True), Size(300, 200, 100, 8, 200, False)


class Oracle(NamedTuple):
    """A name, the expected number (None: none is right), its tolerance and source."""

    group: str
    name: str
    expected: float | None
    tolerance: float | None
    source: str
    got: Callable[[int], float]  # the number of a seed; nan: undefined
    at: float | None = None  # the coupling or parameter, where a figure is drawn over it
