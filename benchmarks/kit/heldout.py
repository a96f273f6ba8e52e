"""Held-out documents of a study: which ones, and the sums of their scores.

A row holds names, never a path of the machine it was measured on. The options --checkpoint and
--data of the tasks are made here.

Shapes: N documents, B batch, T time, L layers.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from reso_llm.data.prepare import tokenise_all
from reso_llm.data.sources import read_documents
from reso_llm.data.token_cache import Split
from reso_llm.data.windows import EvalWindow, eval_windows
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.training.document_past import DocumentPast
from reso_llm.training.evaluation import head_of

BATCH_SIZE = 16


class Scores(NamedTuple):
    """Sums over the tokens of each of N documents, all (N,) float64."""

    nats: Tensor
    tokens: Tensor
    bytes: Tensor
    layers: Tensor  # that the tokens went through

    @property
    def bits_per_byte(self) -> float:
        return (self.nats.sum() / math.log(2) / self.bytes.sum()).item()


# --- the checkpoint and the text


def add_checkpoint_option(parser: Any, *, several: bool = False) -> None:
    parser.add_argument(
        "--checkpoint", type=str, nargs="+" if several else None,
        help="run or checkpoint directory; default: the shipped model",
    )  # fmt: skip


def add_data_option(parser: Any, required: bool = False) -> None:
    """--data; where it is not required --quick stands in for it."""
    text = "file, hub id or sample: text the model was not trained on"
    text += "" if required else "; with --quick: sample"
    parser.add_argument("--data", type=str, required=required, help=text)


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


def names_of(checkpoint: str | None, spec: str) -> dict[str, str]:
    """The fields of a row that name its model and its text."""
    return {"checkpoint": checkpoint_name(checkpoint), "data": data_name(spec)}


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
    """The first documents of a split, at most `count`."""
    return split if split.num_documents <= count else head_of(split, int(split.doc_starts[count]))


# --- scores


def document_ids(split: Split) -> list[np.ndarray]:
    """The ids of each document, <|bos|> first."""
    return np.split(np.asarray(split.tokens, dtype=np.int64), split.doc_starts[1:])


def document_scores(model: ResoLLMModel, split: Split, sizes: Tensor) -> Scores:
    """Every token of every document scored once, by the stateful protocol of `evaluation.py`.

    Windows are half a context apart.
    """
    past, sums = DocumentPast(split, model), torch.zeros(3, len(sizes), dtype=torch.float64)
    for indices, windows in window_batches(split, model.config.max_seq_len):
        within = torch.tensor([window.start for window in windows])
        starts = torch.from_numpy(split.doc_starts)[indices] + within
        sums.index_add_(1, indices, _window_sums(model, windows, past, starts))
    return Scores(sums[0], sums[1], sizes, sums[2])


def window_batches(
    split: Split, context: int, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Tensor, tuple[EvalWindow, ...]]]:
    """Windows half a context apart, the shortest first, with the index of each one's document."""
    origin = np.zeros(1, dtype=np.int64)
    windows = [
        (index, window)
        for index, ids in enumerate(document_ids(split))
        for window in eval_windows(ids, origin, context, context // 2)
    ]
    windows.sort(key=lambda item: len(item[1].inputs))
    for first in range(0, len(windows), batch_size):
        indices, some = zip(*windows[first : first + batch_size], strict=True)
        yield torch.tensor(indices), some


def padded(windows: Sequence[EvalWindow]) -> Iterator[Tensor]:
    """Inputs, targets and whether each is scored, (B,T), padded on the right."""
    for name in ("inputs", "targets", "scored"):
        arrays = [torch.from_numpy(getattr(window, name)) for window in windows]
        yield pad_sequence(arrays, batch_first=True)


@torch.inference_mode()
def _window_sums(
    model: ResoLLMModel, windows: Sequence[EvalWindow], past: DocumentPast, starts: Tensor
) -> Tensor:
    """Nats, targets and layers of each window, (3,B); starts (B,) are places in the split."""
    ids, targets, scored = padded(windows)
    tail, evidence = past.tail(starts), past.evidence(starts, ids.shape[1])
    nats = model.nats(ids, targets, tail=tail, evidence=evidence)
    values = torch.stack((nats, torch.ones_like(nats), layers_used(model, ids, tail)))
    return (values.double() * scored).sum(-1)


@torch.inference_mode()
def doubts(model: ResoLLMModel, ids: Tensor, tail: Tensor) -> Tensor:
    """Doubt (B,T), in nats, of the binding memory after ids (B,T) that follow a tail (B,W)."""
    return model.prsc(ids, tail[:, tail.shape[1] - model.prsc.tail_length :]).doubt


def layers_used(model: ResoLLMModel, ids: Tensor, tail: Tensor) -> Tensor:
    """The layers (B,T) that each token goes through: 1 where the gate keeps it shallow."""
    every = torch.full(ids.shape, float(model.config.num_layers))
    if model.gate is None:
        return every
    return torch.where(model.gate(doubts(model, ids, tail)), every, 1.0)
