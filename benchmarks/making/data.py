"""Puts the files that rerun commands name into data/: `python -m benchmarks.making.data`.

    tinyshakespeare.txt   from github.com/karpathy/char-rnn                       network, 1.1 MB
    guanaco_900.jsonl     900 rows of timdettmers/openassistant-guanaco           network, 21 MB
    train.jsonl           its rows 1 to 810
    heldout.jsonl         its rows 811 to 900
    clean.jsonl           the first half of heldout.jsonl, which calibrates the stability monitor
    unseen.jsonl          the second half

A file that is there is checked and left alone. The rows of guanaco are found in the hub's file by
hashes of their texts (guanaco_900.txt), so that neither its order nor its version matters. All have
to have the sha256 below, or nothing is written. Where there is no network, put tinyshakespeare.txt
and guanaco_900.jsonl into the folder by hand.
"""

import argparse
import hashlib
import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

from benchmarks.kit.records import REPOSITORY
from reso_llm.data.errors import DataError
from reso_llm.data.files import Selection
from reso_llm.data.hub import dataset_files
from reso_llm.data.sources import HUB_NAMES
from run_core import exits
from run_core.files import write_file

FOLDER = REPOSITORY / "data"
SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
KEYS = Path(__file__).with_name("guanaco_900.txt")
NUM_TRAIN, NUM_CLEAN = 810, 45
SECONDS = 45.0

SHA256 = {
    "tinyshakespeare.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "guanaco_900.jsonl": "ab24cb4ac598f4d1ffc246fc0f05067ae1a6bd7b0f230efb356ab580320c526a",
    "train.jsonl": "50e81cd23873eb289300c66b5fbd374c99ff82a244a0eb4b6d038de139a33574",
    "heldout.jsonl": "a12ef7fe44265f4097c1af081936dc82130d61f45c1f7965084490d8e561b912",
    "clean.jsonl": "1eef8b3be68b0b243e523c9eecc76d639ab622eac5700b7b157d940f7d48e85b",
    "unseen.jsonl": "055c935a669d3c8c08c4ced96118a436665cbd1bb5dddd4512a2b3eb7f26eaa3",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the data of the rerun commands into data/.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder (default: data/)")
    prepare(parser.parse_args().out)


def prepare(folder: Path = FOLDER) -> None:
    """Make what is missing in the folder, and print a line for each file.

    Raises DataError where one could not be had, after the others were made; each says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], bytes]] = {
        "tinyshakespeare.txt": shakespeare,
        "guanaco_900.jsonl": guanaco,
        "train.jsonl": lambda: b"".join(rows(folder)[:NUM_TRAIN]),
        "heldout.jsonl": lambda: b"".join(rows(folder)[NUM_TRAIN:]),
        "clean.jsonl": lambda: b"".join(rows(folder)[NUM_TRAIN:][:NUM_CLEAN]),
        "unseen.jsonl": lambda: b"".join(rows(folder)[NUM_TRAIN:][NUM_CLEAN:]),
    }
    missing = []
    for name, make in makers.items():
        try:
            print(f"{folder / name}: {put(folder / name, make, SHA256[name])}", flush=True)
        except (OSError, ValueError) as error:
            print(f"{folder / name}: {error}", file=sys.stderr)
            missing.append(name)
    if missing:
        raise DataError(
            f"{', '.join(missing)} could not be had: mend what is said above, or put "
            f"tinyshakespeare.txt and guanaco_900.jsonl into {folder} by hand"
        )


def put(path: Path, make: Callable[[], bytes], sha256: str) -> str:
    """Check the file, or make it: "there already" or "made".

    Raises ValueError where the content is not that of the sha256; nothing is written then.
    """
    there = path.is_file()
    content = path.read_bytes() if there else make()
    if hashlib.sha256(content).hexdigest() != sha256:
        what = "the file is another one; remove it" if there else "the source has changed"
        raise ValueError(f"{what} (expected sha256 {sha256[:12]}...)")
    if there:
        return "there already"
    write_file(path, content)
    return "made"


def shakespeare() -> bytes:
    """The file of char-rnn. Raises OSError where the network does not answer."""
    print(f"downloading {SHAKESPEARE}", flush=True)
    with urllib.request.urlopen(SHAKESPEARE, timeout=SECONDS) as answer:
        return answer.read()


def guanaco() -> bytes:
    """The 900 rows as JSON lines, from the hub's cache or the network.

    Raises DataError without either, ValueError where the dataset no longer holds a row.
    """
    print(f"reading {HUB_NAMES['guanaco']} of the Hugging Face hub", flush=True)
    paths = dataset_files(HUB_NAMES["guanaco"], Selection(), deadline=SECONDS)
    texts = {}
    for path in paths.values():
        for line in path.read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"].strip()
            texts[key(text)] = text
    wanted = KEYS.read_text().split()
    missing = sum(k not in texts for k in wanted)
    if missing:
        raise ValueError(f"{missing} of the {len(wanted)} rows are not in the hub's dataset")
    lines = (json.dumps({"text": texts[k]}, ensure_ascii=False) + "\n" for k in wanted)
    return "".join(lines).encode()


def key(text: str) -> str:
    """The name of a row in guanaco_900.txt."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def rows(folder: Path) -> list[bytes]:
    """The lines of guanaco_900.jsonl. Raises ValueError where the file is missing."""
    path = folder / "guanaco_900.jsonl"
    if not path.is_file():
        raise ValueError(f"needs {path.name}")
    return path.read_bytes().splitlines(keepends=True)


if __name__ == "__main__":
    exits.run(main)
