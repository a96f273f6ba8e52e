"""Where a generated token's time goes, by timers around the parts of the engine.

A timer charges its part with the time between its call and its return, less that of timed parts
within. Products with matrices of weights, which a model has to read for each token, are a part of
their own where the network itself calls them; those of a stage are the stage's. What no timer
holds is bookkeeping. The parts are found by their classes, so the engine knows nothing of this.
"""

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.kit.timing import interleaved, median_ratio
from reso_llm.decoding.row import Row
from reso_llm.generation import loop
from reso_llm.generation.engine import Engine
from reso_llm.generation.nudge import Nudged
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.prompt import Prompt
from reso_llm.generation.stepper import Stepper
from reso_llm.generation.text_stream import TextStream
from reso_llm.stages import block
from reso_llm.stages.block import BlockStep
from reso_llm.stages.rotary import RotaryStep

PARTS = ("weights", "blocks", "stages", "sampling", "monitors", "text", "bookkeeping")
WEIGHTS = 2**14  # numbers in a matrix that counts as one of weights
TIMED: dict[str, tuple[tuple[Any, tuple[str, ...]], ...]] = {
    "weights": ((block, ("add_active",)),),
    "blocks": ((BlockStep, ("__call__",)), (RotaryStep, ("__call__",)), (Stepper, ("step",))),
    "sampling": ((Row, ("draw",)),),
    "monitors": (
        (loop, ("measured_rows",)),
        (Row, ("decide", "observe")),
        (Nudged, ("__init__", "follow", "exponents")),
    ),
    "text": ((TextStream, ("add",)),),
}

Parts = dict[str, float]


class Timers:
    """Seconds of each part, without those of parts within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time charged to the part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self._open.append(part)
            self._since = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self._open.pop()
                self._since = time.perf_counter()

        return timed

    def weighing(self, product: Callable[..., Any]) -> Callable[..., Any]:
        """A product of arrays; with a matrix of weights in a block it is charged to `weights`."""
        weights = self.around("weights", product)

        def timed(*args: Any, **kwargs: Any) -> Any:
            in_blocks = self._open and self._open[-1] == "blocks"
            large = any(getattr(a, "ndim", 0) == 2 and a.size >= WEIGHTS for a in args)
            return (weights if in_blocks and large else product)(*args, **kwargs)

        return timed

    def _charge(self) -> None:
        if self._open:
            self.seconds[self._open[-1]] += time.perf_counter() - self._since


def token_parts(engine: Engine, prompts: Sequence[Prompt], options: GenerationOptions) -> Parts:
    """Milliseconds a token by part, and `whole`, of one text for each prompt, seeds 0, 1, ...

    The first token of a text, with which its prompt is read, is left out.
    """
    timers = Timers()
    with _timed(timers, engine):
        whole, count = _write(engine, prompts, options, timers)
    spent = {part: timers.seconds[part] for part in PARTS}
    spent["bookkeeping"] = whole - sum(spent.values())
    return {name: 1000 * s / count for name, s in {**spent, "whole": whole}.items()}


def token_time(engine: Engine, prompts: Sequence[Prompt], options: GenerationOptions) -> float:
    """Milliseconds a token of the same texts without timers."""
    whole, count = _write(engine, prompts, options, Timers())
    return 1000 * whole / count


def median_parts(
    engine: Engine, prompts: Sequence[Prompt], options: GenerationOptions, *, rounds: int
) -> dict[str, Any]:
    """`token_parts` and `token_time` in turn: medians of the rounds, and of the two's ratio.

    The timers' own cost is the excess of that ratio over 1.
    """
    measures = {"parts": token_parts, "untimed": token_time}
    calls = {name: partial(f, engine, prompts, options) for name, f in measures.items()}
    interleaved(calls, 1)  # warm up
    values = interleaved(calls, rounds)
    parts, untimed = values["parts"], values["untimed"]
    return {
        "milliseconds": {name: statistics.median(p[name] for p in parts) for name in parts[0]},
        "untimed": statistics.median(untimed),
        "timed_over_untimed": median_ratio(tuple(p["whole"] for p in parts), untimed),
    }


@torch.inference_mode()
def _write(
    engine: Engine, prompts: Sequence[Prompt], options: GenerationOptions, timers: Timers
) -> tuple[float, int]:
    """Write the texts; seconds and number of their tokens without the first ones."""
    whole, count, known = 0.0, 0, dict(timers.seconds)
    for seed, prompt in enumerate(prompts):
        job = engine.start([prompt], options, [seed])
        next(job.steps)
        timers.seconds = defaultdict(float, known)
        started = time.perf_counter()
        count += sum(1 for _ in job.steps)
        whole += time.perf_counter() - started
        known = dict(timers.seconds)
    return whole, count


@contextlib.contextmanager
def _timed(timers: Timers, engine: Engine) -> Iterator[None]:
    """Meanwhile the parts are timed."""
    before = []

    def replace(owner: Any, name: str, timed: Callable[..., Any]) -> None:
        before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, timed)

    try:
        for part, owners in [*TIMED.items(), ("stages", _stage_steps(engine))]:
            for owner, names in owners:
                for name in names:
                    replace(owner, name, timers.around(part, getattr(owner, name)))
        for name in ("dot", "matmul"):
            replace(np, name, timers.weighing(getattr(np, name)))
        yield
    finally:
        for owner, name, function in reversed(before):
            setattr(owner, name, function)


def _stage_steps(engine: Engine) -> list[tuple[type, tuple[str, ...]]]:
    """The classes of the stages' one-token forms, each with its public methods."""
    network = engine.model
    states = network.init_state().stages
    steps = (stage.stepper(states.get(name)) for name, stage in network.stages().items())
    kinds = dict.fromkeys(type(step) for step in steps if step is not None)
    return [(kind, tuple(_methods(kind))) for kind in kinds]


def _methods(kind: type) -> Iterator[str]:
    for name, value in vars(kind).items():
        if callable(value) and (name == "__call__" or not name.startswith("_")):
            yield name
