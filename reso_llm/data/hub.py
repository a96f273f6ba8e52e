"""Files of a Hugging Face hub dataset, from the hub's cache or downloaded into it.

Files in the cache are used without asking the network again; remove it with
`hf cache rm dataset/owner/name` to get a newer version. Which files: see `files.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

from reso_llm.data.errors import DataError
from reso_llm.data.files import KINDS, Selection, choose_files, data_kind
from run_core.download import cache_folder, fetch, is_offline, probe

__all__ = ["dataset_files", "known_files"]

CHUNK_BYTES = 1 << 16

logger = logging.getLogger(__name__)


def dataset_files(repo_id: str, selection: Selection, *, deadline: float) -> dict[str, Path]:
    """{name in the dataset: local path}, downloaded when not cached; DataError.

    `deadline`: seconds without any progress after which the download is given up.
    """
    try:
        folder = cache_folder("datasets", repo_id)
    except ImportError:
        raise DataError(
            f'{repo_id}: hub datasets need huggingface_hub: pip install "reso-llm[hf]". '
            + _instead()
        ) from None
    if paths := _finished(folder, selection):
        return paths
    if is_offline():
        problem = "HF_HUB_OFFLINE is set"
    else:
        arguments = [repo_id, str(folder), *(part or "" for part in selection)]
        problem = fetch("reso_llm.data.hub:download", arguments, folder, deadline)
    paths = _finished(folder, selection)
    if not paths and (paths := _unverified(folder, repo_id, selection)):
        logger.warning("%s: %s; using the %d files in the cache", repo_id, problem, len(paths))
    if not paths:
        raise DataError(
            f"{repo_id}{selection}: not in the local cache, and {problem}. {_instead()}"
        )
    return paths


def known_files(repo_id: str, selection: Selection) -> list[str]:
    """The names of all files of a dataset, as far as the cache of a selection knows them."""
    folder = cache_folder("datasets", repo_id)
    try:
        return json.loads(_note(folder, selection).read_text(encoding="utf-8"))["dataset"]
    except (OSError, ValueError, KeyError, TypeError):
        return _cached_names(folder)[1]


def download(repo_id: str, folder: str, file: str, subset: str, split: str) -> None:
    """Body of the child process: fetch the files, then note in `folder` that all are there."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    # Steps of 10 MB would look like standing still on a slow line.
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    probe(f"{constants.ENDPOINT}/api/datasets/{repo_id}")
    info = HfApi().dataset_info(repo_id)
    names = [sibling.rfilename for sibling in info.siblings or []]
    selection = Selection(file or None, subset or None, split or None)
    files = choose_files(names, selection)
    if not files:
        raise ValueError(_none_chosen(names, selection))
    cache = str(Path(folder).parent)
    for name in files:
        hf_hub_download(repo_id, name, repo_type="dataset", revision=info.sha, cache_dir=cache)
    note = _note(Path(folder), selection)
    partial = note.with_name(f"{note.name}.{os.getpid()}")
    content = {"revision": info.sha, "files": files, "dataset": names}
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, note)


def _instead() -> str:
    return 'Use --data sample (pip install "reso-llm[sample]") or --data path/to/file.jsonl instead'


def _none_chosen(names: list[str], selection: Selection) -> str:
    data = [name for name in names if data_kind(name)]
    if data and str(selection):
        return f"the dataset has no file for {selection}; it has {', '.join(sorted(data)[:20])}"
    return f"the dataset has no {', '.join(KINDS)} file, only {', '.join(names)}"


def _note(folder: Path, selection: Selection) -> Path:
    """The file that says that everything selected has been downloaded."""
    chosen = str(selection)
    digest = f"-{hashlib.sha256(chosen.encode()).hexdigest()[:12]}" if chosen else ""
    return folder / f"reso_files{digest}.json"


def _finished(folder: Path, selection: Selection) -> dict[str, Path]:
    """The files of a download that was completed here, if all of them still exist."""
    try:
        note = json.loads(_note(folder, selection).read_text(encoding="utf-8"))
        root = folder / "snapshots" / note["revision"]
        paths = {name: root / name for name in note["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return paths if all(path.is_file() for path in paths.values()) else {}


def _unverified(folder: Path, repo_id: str, selection: Selection) -> dict[str, Path]:
    """Files that another program put in the cache; they may be incomplete."""
    root, names = _cached_names(folder)
    chosen = choose_files(names, selection)
    if names and not chosen:
        raise DataError(f"{repo_id}: {_none_chosen(names, selection)}")
    return {name: root / name for name in chosen}


def _cached_names(folder: Path) -> tuple[Path, list[str]]:
    """The folder of the newest revision in the cache, and the names of its files."""
    try:
        root = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        return folder, []
    return root, [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
