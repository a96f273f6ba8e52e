"""What training a model of a size costs: operations, memory, days. Counted, not measured.

    operations = 6 N D + those of attention      N numbers in the matrices, D tokens read
    memory     = weights, gradients and optimizer state in float32: 12 bytes a number that Muon
                 moves, 16 a number that AdamW moves; activations are not in it

Sharding divides the memory of what FSDP2 shards (`reso_llm/training/sharding.py`): all but vectors
and scalars. Muon's work space it does not divide: every process makes the whole update of the
largest group of matrices of one shape. The coherence gate is left out: every token goes through
every layer.
"""

from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.kit.bounds import attention_products, matrix_numbers
from benchmarks.kit.tables import table
from reso_llm.config import ResoLLMConfig, large_config, medium_config, small_config
from reso_llm.network import ResoNetwork
from reso_llm.training.optim import WIDE, is_matrix

PEAK = 989e12  # operations a second of an H100 in dense bfloat16, from its data sheet
UTILISATION = 0.3  # assumed: no recorded row says it
TOKENS_A_NUMBER = (20, 200)  # Hoffmann 2022 (Chinchilla), and ten times as many
GPUS = 8

SHAPES = {
    "small": small_config(),
    "medium": medium_config(),
    "large": large_config(),
    "1B": replace(
        large_config(), vocab_size=32_768, dim=2048, num_layers=20, num_heads=16, max_seq_len=2048
    ),
    "7B": replace(
        large_config(), vocab_size=32_768, dim=4096, num_layers=32, num_heads=32, max_seq_len=4096
    ),
}


class Costs(NamedTuple):
    """Numbers of a model, operations a token, bytes of its training state and of Muon's work."""

    parameters: int
    matrices: int
    operations: float
    state: int
    sharded: float
    work_space: int


def costs_of(config: ResoLLMConfig, processes: int = GPUS) -> Costs:
    """The costs of a model that is not made; `sharded` is of one of so many processes."""
    with torch.device("meta"):
        network = ResoNetwork(config)
    numbers = matrix_numbers(network, config)
    by_muon = muon_groups(network)
    moved = sum(count * rows * columns for (count, rows, columns) in by_muon)
    parameters = sum(p.numel() for p in network.parameters())
    vectors = sum(p.numel() for name, p in network.named_parameters() if not is_matrix(name, p))
    state = 12 * moved + 16 * (parameters - moved)
    work = max(count * work_space(rows, columns) for (count, rows, columns) in by_muon)
    length = config.max_seq_len
    return Costs(
        parameters, numbers, 6 * numbers + 3 * attention_products(config, length) / length,
        state, (state - 16 * vectors) / processes + 16 * vectors, work,
    )  # fmt: skip


def muon_groups(network: ResoNetwork) -> list[tuple[int, int, int]]:
    """(count, rows, columns) of the matrices that Muon moves at once: parameters of one shape."""
    groups: dict[torch.Size, int] = defaultdict(int)
    for name, p in network.named_parameters():
        if is_matrix(name, p) and "table" not in name and not name.startswith("head."):
            groups[p.shape] += p.shape[:-2].numel()
    return [(count, *shape[-2:]) for shape, count in groups.items()]


def work_space(rows: int, columns: int) -> int:
    """Bytes that `optim.orthogonalize` and Muon need at once beside the state, for one matrix.

    Measured by the memory of a process: 5.2 times a square matrix, 4.0 times one of 4 to 1.
    """
    small, large = sorted((rows, columns))
    return 4 * (3 * small * large + (4 if large >= WIDE * small else 2) * small**2)


def duration(seconds: float) -> str:
    """Days, hours, minutes or seconds."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def costs_table() -> str:
    """A line for each of SHAPES."""
    lines = []
    for name, config in SHAPES.items():
        costs = costs_of(config)
        tokens = [costs.matrices * each for each in TOKENS_A_NUMBER]
        alone, longer = (costs.operations * each / (PEAK * UTILISATION) for each in tokens)
        times = (alone, alone / GPUS, longer / GPUS)
        lines.append([
            name, f"{costs.parameters / 1e6:,.1f} M", f"{tokens[0] / 1e9:,.2f} G",
            f"{costs.operations * tokens[0]:.1e}", *map(duration, times),
            f"{costs.state / 1e9:,.2f}", f"{costs.sharded / 1e9:,.2f}",
            f"{costs.work_space / 1e9:,.2f}",
        ])  # fmt: skip
    head = (
        "model", "parameters", "tokens", "operations", "1 GPU", f"{GPUS} GPUs",
        f"10 x the tokens, {GPUS} GPUs", "GB a process", f"sharded over {GPUS}",
        "and Muon's work, GB",
    )  # fmt: skip
    return table(head, lines)
