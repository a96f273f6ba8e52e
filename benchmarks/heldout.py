"""Held-out documents in a study: which ones, their scores, intervals, and how rows are shown.

    interval of sum_i a_i / sum_i c_i:  documents i drawn again with replacement, 2.5 to 97.5 %

The statistic of every interval here is a ratio of sums over documents (or facts, with c = 1) and
the interval its 95 % bootstrap percentiles (Efron 1979). A row holds names, never a path of the
machine it was measured on. Shapes: N documents, B batch, T time, L layers.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import write_row
from reso_llm.data.prepare import tokenise_all
from reso_llm.data.sources import read_documents
from reso_llm.data.token_cache import Split
from reso_llm.data.windows import EvalWindow, eval_windows
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.network import ResoOutput
from reso_llm.training.evaluation import head_of

BATCH_SIZE, DRAWS = 16, 2000


class Scores(NamedTuple):
    """Sums over the tokens of each of N documents, all (N,) float64."""

    nats: Tensor
    tokens: Tensor
    bytes: Tensor
    depth: Tensor
    layers: Tensor

    @property
    def bits_per_byte(self) -> float:
        return (self.nats.sum() / math.log(2) / self.bytes.sum()).item()


# --- what is measured on


def add_checkpoint_option(parser: Any, *, several: bool = False) -> None:
    text = "run or checkpoint directory; default: the shipped model"
    if several:
        parser.add_argument("--checkpoint", type=str, nargs="+", help=text)
    else:
        parser.add_argument("--checkpoint", type=str, help=text)


def add_data_option(parser: Any) -> None:
    parser.add_argument(
        "--data",
        type=str,
        help="file, hub id or sample: text the model was not trained on; with --quick: sample",
    )


def engine_with(checkpoint: str | None, stage: str) -> ResoLLMInference:
    """The engine of a checkpoint, None for the shipped one; ValueError where a stage is off."""
    engine = ResoLLMInference.from_pretrained(checkpoint)
    if not getattr(engine.config, stage).enabled:
        raise ValueError(
            f"{checkpoint_name(checkpoint)}: its stage {stage} is switched off; expected a "
            "checkpoint that was trained with it"
        )
    return engine


def checkpoint_name(checkpoint: str | None) -> str:
    return "shipped" if checkpoint is None else Path(checkpoint).resolve().name


def data_name(spec: str) -> str:
    """`spec` without the directories of its files."""
    return "+".join(Path(part).name for part in spec.split("+"))


def data_of(options: Any) -> str:
    """--data; with --quick `sample` by default, else ValueError: the claim is about unseen text."""
    if options.data is None and not options.quick:
        raise ValueError("--data FILE is missing: expected text that the model was not trained on")
    return options.data or "sample"


def held_out(spec: str, tokenizer, limit: int | None = None) -> tuple[Split, Tensor]:
    """The documents of a file, at most `limit`, and the UTF-8 bytes of each, (N,)."""
    sizes = torch.tensor([document.num_bytes for document in read_documents(spec)]).double()
    split = tokenise_all(spec, tokenizer)
    if limit is None:
        return split, sizes
    return first_documents(split, limit), sizes[:limit]


def first_documents(split: Split, count: int) -> Split:
    """At most `count` of them."""
    return split if split.num_documents <= count else head_of(split, int(split.doc_starts[count]))


# --- scores


def document_ids(split: Split) -> list[np.ndarray]:
    """The ids of each document, <|bos|> first."""
    return np.split(np.asarray(split.tokens, dtype=np.int64), split.doc_starts[1:])


def document_scores(model: ResoLLMModel, split: Split, sizes: Tensor) -> Scores:
    """Every token of every document scored once, in windows half a context apart."""
    context, origin = model.config.max_seq_len, np.zeros(1, dtype=np.int64)
    windows = [
        (index, window)
        for index, ids in enumerate(document_ids(split))
        for window in eval_windows(ids, origin, context, context // 2)
    ]
    windows.sort(key=lambda item: len(item[1].inputs))
    sums = torch.zeros(4, len(sizes), dtype=torch.float64)
    for first in range(0, len(windows), BATCH_SIZE):
        indices, some = zip(*windows[first : first + BATCH_SIZE], strict=True)
        sums.index_add_(1, torch.tensor(indices), _window_sums(model, some))
    return Scores(sums[0], sums[1], sizes, sums[2], sums[3])


@torch.inference_mode()
def _window_sums(model: ResoLLMModel, windows: Sequence[EvalWindow]) -> Tensor:
    """Nats, targets, depth and layers of each window, (4,B)."""
    ids, targets, scored = (
        torch.nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in arrays], batch_first=True)
        for arrays in zip(*windows, strict=True)
    )
    output = model(ids)
    nats = F.cross_entropy(output.logits.transpose(1, 2), targets, reduction="none")
    depth, layers = depths(model, output)
    values = torch.stack(
        (nats, torch.ones_like(nats), depth.expand_as(nats), layers.expand_as(nats))
    )
    return (values.double() * scored).sum(-1)


def depths(model: ResoLLMModel, output: ResoOutput) -> tuple[Tensor, Tensor]:
    """Soft depth and layers used of each token, (B,T); all layers, (1,1), without a gate."""
    if not model.config.coherence_gate.enabled:
        every = torch.full((1, 1), float(model.config.num_layers))
        return every, every
    gates = output.diagnostics["gates"]  # (B,T,L-1)
    return 1 + gates.sum(-1), 1 + (gates > 0).to(gates.dtype).sum(-1)


def interval(sums: Tensor, counts: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Sum of sums (N,) / sum of counts (N,), and its 95 % bootstrap interval over the N."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(sums), (DRAWS, len(sums)), generator=generator)
    ratios = sums.double()[picks].sum(1) / counts.double()[picks].sum(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return (sums.sum() / counts.sum()).item(), low, high


def mean_interval(intervals: Sequence[Sequence[float]]) -> list[float]:
    """Mean of the values, low and high ends of several seeds: as wide as the one of a seed."""
    return np.mean(intervals, axis=0).tolist()


# --- rows


def error_bars(intervals: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Values (K,) and how far their intervals reach below and above, (2,K), never below 0."""
    middle, low, high = np.array(intervals).T
    return middle, np.maximum((middle - low, high - middle), 0)


def table(head: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    rows = [[*head], *lines]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(values: Sequence[float] | None, digits: int = 4) -> str:
    """`value [low, high]` for a table; `-` where there is nothing."""
    if values is None:
        return "-"
    value, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{value} [{low}, {high}]"


def save(name: str, rows: Sequence[dict[str, Any]], path: str | None) -> None:
    """Append the rows to results/NAME.jsonl, and write them to `path` where one is given."""
    for row in rows:
        write_row(name, row)
    if path is not None:
        Path(path).write_text(json.dumps(list(rows), indent=1) + "\n")
