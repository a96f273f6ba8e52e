"""What the benchmarks share: the peer model, the record of a row, interleaved timing."""

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from reso_llm.config import ResoLLMConfig
from reso_llm.hardware import environment

RESULTS = Path(__file__).parent / "results"


def gpt2_like(config: ResoLLMConfig) -> GPT2LMHeadModel:
    """Hugging Face GPT-2 of the same width, depth, heads, vocabulary and context, no dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_seq_len,
            n_embd=config.dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=None,
        )
    )


def num_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def write_row(name: str, row: Mapping[str, Any]) -> None:
    """Append one row, with the environment it was measured in, to results/NAME.jsonl."""
    RESULTS.mkdir(exist_ok=True)
    record = {**row, "environment": environment(torch.device("cpu"))}
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_rows(name: str) -> list[dict[str, Any]]:
    """All rows of results/NAME.jsonl, none where there is no such file."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def interleaved(
    measures: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, tuple[float, ...]]:
    """Call every measure once a round, in turn, so that all see the same disturbances."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            values[name].append(measure())
    return {name: tuple(v) for name, v in values.items()}


def median_ratio(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    """Median over the rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
