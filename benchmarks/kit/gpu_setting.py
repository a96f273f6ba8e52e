"""The device and the sizes of `benchmarks/studies/gpu.py`, and how a time is taken there.

On a CPU everything runs too, so that the script is tested without a GPU: times are then of the CPU,
and there is no count of memory.
"""

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.studies.speed import FITTED
from reso_llm.config import ResoLLMConfig, large_config, medium_config, small_config


class NotHere(Exception):
    """The device cannot do this; not a fault."""


def full_sizes() -> dict[str, ResoLLMConfig]:
    return {"small": small_config(), "medium": medium_config(), "large": large_config()}


@dataclass
class Setting:
    """Where and how large: tiny models, whose times mean nothing, prove the script."""

    device: torch.device
    tiny: bool
    data: str | None
    sizes: dict[str, ResoLLMConfig] = field(default_factory=full_sizes)
    quality_seconds: float = 60.0  # a model

    def __post_init__(self) -> None:
        if self.tiny:
            small = self.sizes["small"]
            memory = replace(small.temporal_smf, num_heads=2)
            tiny = replace(
                small, dim=32, num_layers=2, num_heads=2, max_seq_len=128, temporal_smf=memory
            )
            self.sizes = {"small": tiny}

    @property
    def fitted(self) -> int:
        """Tokens that a binding memory counts."""
        return 2_000 if self.tiny else FITTED

    @property
    def rounds(self) -> int:
        """Measurements of one time, and runs before them to warm up."""
        return 1 if self.tiny else 8

    @property
    def backend(self) -> str:
        """Of torch.compile; the one without code generation needs no minute."""
        return "eager" if self.tiny else "inductor"

    @cached_property
    def operations_a_second(self) -> float:
        """What the device reaches in a product of two square bfloat16 matrices."""
        n = 64 if self.tiny else 8192
        square = torch.randn(n, n, device=self.device, dtype=torch.bfloat16)
        return 2 * n**3 / min(self.seconds(lambda: square @ square))

    def seconds(self, work: Callable[[], object]) -> list[float]:
        """Seconds of each of `rounds` calls, after as many unmeasured ones."""
        taken = []
        for _ in range(2 * self.rounds):
            started = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - started)
        return taken[self.rounds :]

    def wait(self) -> None:
        """Return when the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def bfloat16(self) -> AbstractContextManager:
        """bfloat16 by autocast, on a CPU too."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def ids(self, config: ResoLLMConfig, windows: int, time: int) -> Tensor:
        """Random ids (B,T), never a control token's."""
        return torch.randint(5, config.vocab_size, (windows, time)).to(self.device)


def forget() -> None:
    """Free the memory of the check before, so that none is counted against the next."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
