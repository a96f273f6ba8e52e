"""From the data that `--data` names to tokens.

    prepare(spec, tokenizer) -> TokenData(train, val)      tokenised once, memory-mapped afterwards
    tokenizer_texts(spec) -> texts                         of the training side, for a tokenizer
    tokenise_all(spec, tokenizer) -> Split                 unsplit and in memory, for evaluation

`sources.py` says what a spec may be, `split.py` how the sides are made, `token_cache.py` what
is cached.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reso_llm.data.errors import BadRows
from reso_llm.data.sources import OnBadRow, read_documents, read_source
from reso_llm.data.split import plan_split, split_documents, validation_threshold
from reso_llm.data.token_cache import (
    Progress,
    Split,
    TokenData,
    cached_tokens,
    default_cache_dir,
)
from reso_llm.data.tokenise import SideWriter, batches_of, token_dtype, write_batch
from reso_llm.tokenizer import ResoTokenizer

__all__ = ["prepare", "tokenise_all", "tokenizer_texts"]


def prepare(
    spec: str,
    tokenizer: ResoTokenizer,
    *,
    columns: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    val_fraction: float = 0.05,
    val_spec: str | None = None,
    on_bad_row: OnBadRow = "error",
    progress: Progress | None = None,
) -> TokenData:
    """Tokenise `spec` (see sources.py), or open what an earlier call left in the cache.

    With `val_spec` all of `spec` is training data and `val_spec` is validation; otherwise
    `val_fraction` of `spec` is. `columns` names the columns of both, as in
    prompt=question,reply=answer. `progress(documents, bytes)` is called after every batch with the
    totals so far. Skipped rows are in `.bad_rows`, what was read in `.summary`, also when they come
    from the cache. DataError for data that cannot be used, or a cache that cannot be written.
    """
    plan = plan_split(spec, val_spec, val_fraction, columns)
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    return cached_tokens(root, plan, tokenizer, on_bad_row, progress)


def tokenizer_texts(
    spec: str,
    *,
    columns: str | None = None,
    val_fraction: float = 0.05,
    val_spec: str | None = None,
    on_bad_row: OnBadRow = "error",
    limit_bytes: int = 50_000_000,
) -> Iterator[str]:
    """Texts of the training side of `spec`, for `ResoTokenizer.train`: never a validation row.

    Split as by `prepare` with the same arguments. At most about `limit_bytes`, shared equally
    between the files of `spec`; streamed, the same every time.
    """
    plan = plan_split(spec, val_spec, val_fraction, columns)
    threshold = validation_threshold(plan, on_bad_row)
    for source in plan.train:
        remaining = limit_bytes // len(plan.train)
        documents = read_source(source, on_bad_row=on_bad_row)
        for sided in split_documents(documents, threshold, plan.val_fraction):
            if sided.side == "train":
                yield from sided.texts()
                remaining -= sided.document.num_bytes
            if remaining <= 0:
                break


def tokenise_all(
    spec: str,
    tokenizer: ResoTokenizer,
    *,
    on_bad_row: OnBadRow = "error",
    report: BadRows | None = None,
) -> Split:
    """All of `spec` as one side, unsplit and in memory: text to be evaluated.

    Skipped rows are added to `report`. DataError as by `prepare`.
    """
    documents = read_documents(spec, on_bad_row=on_bad_row, report=report)
    sided = split_documents(documents, threshold=0, val_fraction=0.0)
    dtype = token_dtype(tokenizer)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with SideWriter(directory, "all", dtype) as writer:
            for batch in batches_of(sided):
                write_batch(batch, tokenizer, {"train": writer})
        tokens = np.fromfile(directory / "all.tokens", dtype=dtype)
        mask = np.fromfile(directory / "all.mask", dtype=np.uint8)
        starts = np.fromfile(directory / "all.starts", dtype=np.int64)
    return Split(tokens, mask, starts, writer.num_tokens, writer.num_bytes, writer.num_documents)
