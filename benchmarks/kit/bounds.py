"""What a machine does at best, and how much a model asks of it: the bounds of a measured time."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from reso_llm.config import ResoLLMConfig
from reso_llm.network import ResoNetwork

COLUMNS = 1024


class Machine:
    """What the machine does at best with these threads, measured as it is asked for.

    Bytes are those of one matrix times a vector, over and over: what fits into a cache is read from
    there, as the weights of a small model are. Products are those of two matrices.
    """

    def __init__(self) -> None:
        square = torch.rand(2048, 2048)
        self.products_a_ms = 2 * 2048**3 / min(timed(partial(torch.mm, square, square), 5))

    def reading_ms(self, num_bytes: float) -> float:
        """Milliseconds in which so many bytes can be read."""
        rows = max(1, round(num_bytes / 4 / COLUMNS))
        matrix, vector = torch.rand(rows, COLUMNS), torch.rand(COLUMNS)
        return min(timed(partial(torch.mv, matrix, vector), 9)) * num_bytes / matrix.nbytes


def timed(work: Callable[[], object], times: int) -> list[float]:
    """Milliseconds of each of some calls."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


def matrix_numbers(model: nn.Module, config: ResoLLMConfig) -> int:
    """Numbers in the matrices that each token is multiplied with; the head may be a table."""
    tables = ("table", "wte", "wpe", "embed_tokens", "lm_head", "head.")
    named = model.named_parameters()
    inner = sum(p.numel() for n, p in named if p.ndim >= 2 and not any(t in n for t in tables))
    return inner + config.vocab_size * config.dim


def attention_products(config: ResoLLMConfig, length: int) -> float:
    """Products of one causal pass over `length` tokens in the scores and the sums of values."""
    return 2 * config.num_layers * config.dim * length**2


def network_numbers(config: ResoLLMConfig) -> int:
    """`matrix_numbers` of a network that is not made."""
    with torch.device("meta"):
        return matrix_numbers(ResoNetwork(config), config)
