"""Files of a Hugging Face hub dataset, with a deadline of our own.

The hub's library waits for minutes on a server that accepts and never answers, so the download
runs in a child process that is ended when nothing has moved for `deadline` seconds. Its files land
in the library's own cache. What is there once is used without asking the network again; remove it
with `hf cache rm dataset/owner/name` to get a newer version.

Which files of a dataset: those with "train" in their path when there are any, else those without
test, valid, eval or dev; of one kind only, the first that exists of .parquet, .jsonl, .json, .txt.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

from run_core.download import _first_line, _offline, _probe, _wait

__all__ = ["choose_files", "dataset_files"]

from reso_llm.data.errors import DataError

KINDS = (".parquet", ".jsonl", ".json", ".txt")
NO_DATA = re.compile(r"(^|/)(README|LICENSE|requirements|dataset_infos?|config)\b[^/]*$", re.I)
HELD_OUT = re.compile(r"test|valid|eval|dev", re.I)
MARKER = "reso_files.json"
CHUNK_BYTES = 1 << 16
CHILD = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from reso_llm.data.hub import download; download(*sys.argv[1:])"
)

logger = logging.getLogger(__name__)


def dataset_files(repo_id: str, *, deadline: float) -> list[Path]:
    """Local paths of a dataset's files, downloaded when not cached; DataError says what else to do.

    `deadline`: seconds without any progress after which the download is given up.
    """

    try:
        from huggingface_hub import constants
    except ImportError:
        raise DataError(
            f'{repo_id}: hub datasets need huggingface_hub: pip install "reso-llm[hf]". '
            + _instead()
        ) from None
    cache = Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)
    folder = cache / ("datasets--" + repo_id.replace("/", "--"))
    if paths := _finished(folder):
        return paths
    problem = "HF_HUB_OFFLINE is set" if _offline() else _download(repo_id, folder, deadline)
    paths = _finished(folder)
    if not paths and (paths := _unverified(folder)):
        logger.warning("%s: %s; using the %d files in the cache", repo_id, problem, len(paths))
    if not paths:
        raise DataError(f"{repo_id}: not in the local cache, and {problem}. {_instead()}")
    return paths


def choose_files(names: list[str]) -> list[str]:
    """The training files among a dataset's files, sorted; empty when there are none."""
    data = sorted(name for name in names if not NO_DATA.search(name))
    for kind in KINDS:
        found = [name for name in data if PurePosixPath(name).suffix.lower() == kind]
        train = [name for name in found if "train" in name.lower()]
        if found:
            return train or [name for name in found if not HELD_OUT.search(name)] or found
    return []


def download(repo_id: str, folder: str) -> None:
    """Body of the child process: fetch the files, then note in `folder` that all are there."""
    sys.excepthook = lambda kind, error, trace: sys.stderr.write(_first_line(kind, error) + "\n")
    from huggingface_hub import HfApi, constants, hf_hub_download

    # Steps of 10 MB would look like standing still on a slow line.
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    _probe(f"{constants.ENDPOINT}/api/datasets/{repo_id}")
    info = HfApi().dataset_info(repo_id)
    names = [sibling.rfilename for sibling in info.siblings or []]
    files = choose_files(names)
    if not files:
        raise ValueError(f"the dataset has no {', '.join(KINDS)} file, only {', '.join(names)}")
    cache = Path(folder).parent
    for name in files:
        hf_hub_download(repo_id, name, repo_type="dataset", revision=info.sha, cache_dir=str(cache))
    partial = Path(folder) / f"{MARKER}.{os.getpid()}"
    partial.write_text(json.dumps({"revision": info.sha, "files": files}), encoding="utf-8")
    os.replace(partial, Path(folder) / MARKER)


def _instead() -> str:
    return 'Use --data sample (pip install "reso-llm[sample]") or --data path/to/file.jsonl instead'


def _finished(folder: Path) -> list[Path]:
    """The files of a download that was completed here, if all of them still exist."""
    try:
        note = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        paths = [folder / "snapshots" / note["revision"] / name for name in note["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return paths if all(path.is_file() for path in paths) else []


def _unverified(folder: Path) -> list[Path]:
    """What another program left in the cache; nothing says whether it is complete."""
    try:
        root = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        return []
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return [root / name for name in choose_files(names)]


def _download(repo_id: str, folder: Path, deadline: float) -> str:
    """Run `download` in a child process; "" or what went wrong."""
    package_root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", CHILD, package_root, repo_id, str(folder)]
    # Plain HTTP into the watched directory: the Xet transfer keeps its progress elsewhere.
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command,
            env=os.environ | quiet,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            code = _wait(child, folder, deadline)
        finally:
            child.kill()
            child.wait()
        errors.seek(0)
        lines = errors.read().decode("utf-8", errors="replace").strip().splitlines()
    if code is None:
        return f"the hub did not answer within {deadline:g} seconds"
    return "" if code == 0 else f"the hub cannot be used ({lines[-1] if lines else code})"
