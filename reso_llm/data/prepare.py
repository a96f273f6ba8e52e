"""From documents to tokens: token cache and train/validation split.

    prepare(spec, tokenizer) -> TokenData(train, val)      tokenised once, memory-mapped afterwards
    tokenise_all(spec, tokenizer) -> Split                 unsplit and in memory, for evaluation

Cache. A directory per (content of the files, tokenizer, split), under `$RESO_CACHE`, else
`$XDG_CACHE_HOME/reso_llm`, else `~/.cache/reso_llm`. It holds, for train and val, the tokens
(uint16 up to 65,536 ids, else uint32), the reply mask (uint8, same length) and the document starts
(int64), and a manifest with the sha256 of each of them, checked whenever it is opened. It is built
under a lock in a temporary directory and renamed, so it is there completely or not at all.

Split. A document belongs to validation when the hash of its content, as a fraction of the largest
hash, is below `val_fraction`: independent of order and of other rows, and duplicates stay on one
side. Should that leave a side empty, the one document with the smallest (or largest) hash goes
there; with a single document there is nothing to split, which is an error. A plain text file is cut
instead: the last `val_fraction` of its bytes is validation.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reso_llm.data.errors import BadRows, DataError
from reso_llm.data.sources import OnBadRow, read_documents, read_source
from reso_llm.data.split import _make_plan, _split_documents, _threshold
from reso_llm.data.token_cache import (
    Progress,
    Split,
    TokenData,
    _batches,
    _build,
    _build_lock,
    _cache_key,
    _open_cache,
    _SideWriter,
    _token_dtype,
    _write_batch,
    default_cache_dir,
)
from reso_llm.tokenizer import ResoTokenizer

__all__ = [
    "BadRows",
    "DataError",
    "Split",
    "TokenData",
    "default_cache_dir",
    "prepare",
    "tokenise_all",
    "tokenizer_texts",
]


logger = logging.getLogger(__name__)


def prepare(
    spec: str,
    tokenizer: ResoTokenizer,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    val_fraction: float = 0.05,
    val_spec: str | None = None,
    on_bad_row: OnBadRow = "error",
    progress: Progress | None = None,
) -> TokenData:
    """Tokenise `spec` (see sources.py), or open what an earlier call left in the cache.

    With `val_spec` all of `spec` is training data and `val_spec` is validation; otherwise
    `val_fraction` of `spec` is. `progress(documents, bytes)` is called after every batch with the
    totals so far. Skipped rows are in `.bad_rows`, also when they come from the cache.
    DataError for data that cannot be used, or a cache that cannot be written.
    """
    plan = _make_plan(spec, val_spec, val_fraction)
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    final = root / _cache_key(plan, tokenizer)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _build_lock(final):
            data = _open_cache(final, plan)
            if data is None or (on_bad_row == "error" and data.bad_rows.count):
                _build(final, plan, tokenizer, on_bad_row, progress)
                data = _open_cache(final, plan)
    except OSError as error:
        raise DataError(
            f"{final}: cannot write the token cache ({error}); set RESO_CACHE to a directory with "
            "room, about 3 bytes per token"
        ) from error
    if data is None:
        raise DataError(f"{final}: the token cache changed while it was read; start again")
    return data


def tokenizer_texts(
    spec: str,
    *,
    val_fraction: float = 0.05,
    val_spec: str | None = None,
    on_bad_row: OnBadRow = "error",
    limit_bytes: int = 50_000_000,
) -> Iterator[str]:
    """Texts of the training side of `spec`, for `ResoTokenizer.train`: never a validation row.

    Split as by `prepare` with the same arguments. At most about `limit_bytes`, shared equally
    between the files of `spec`; streamed, the same every time.
    """
    plan = _make_plan(spec, val_spec, val_fraction)
    threshold = _threshold(plan, on_bad_row)
    for source in plan.train:
        left = limit_bytes // len(plan.train)
        documents = read_source(source, on_bad_row=on_bad_row)
        for part in _split_documents(documents, threshold, plan.val_fraction):
            if part.side == "train":
                yield from part.texts()
                left -= part.document.num_bytes
            if left <= 0:
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
    parts = _split_documents(documents, threshold=0, val_fraction=0.0)
    dtype = _token_dtype(tokenizer)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with _SideWriter(directory, "all", dtype) as writer:
            for batch in _batches(parts):
                _write_batch(batch, tokenizer, {"train": writer})
        tokens = np.fromfile(directory / "all.tokens", dtype=dtype)
        mask = np.fromfile(directory / "all.mask", dtype=np.uint8)
        starts = np.fromfile(directory / "all.starts", dtype=np.int64)
    return Split(tokens, mask, starts, writer.num_tokens, writer.num_bytes, writer.num_documents)


# -- what to build


# -- split


# -- build


# -- open
