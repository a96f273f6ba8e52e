"""What counting n-grams and tokenising cost as the text grows: seconds, memory, disk.

python -m benchmarks.studies.data_scale counting --tokens 1e6 5e6 20e6
python -m benchmarks.studies.data_scale tokenising --megabytes 100 500
python -m benchmarks.studies.data_scale tokenising --megabytes 100 2000 --kill
python -m benchmarks.studies.data_scale picture docs/figures/data_scale.png

Each point is a process of its own. Its peak memory is that of the process, Python, torch and mapped
pages included; its disk is the most that its files had together. With --kill the process gets
SIGKILL when half of the text is written, and the row is of a second one, which goes on. Rows go to
results/data_scale.jsonl and are not measured again.

Synthetic text, from a seed: token t follows token s as (31 s + z) modulo V, or with probability .2
whatever came before as z alone, with P(z) ~ 1 / (z + 2) (Zipf).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kit.figures import BLUE, ORANGE, new_figure
from benchmarks.kit.records import Records, read_rows

VOCABULARY, DOCUMENT, PIECE = 8192, 512, 1 << 20
AFRESH = 0.2
CONFIG = {"max_order": 3, "max_slots": 128, "max_entries": 1_000_000}  # of PRSCConfig
DATA_SCALE = "data_scale"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("counting").add_argument("--tokens", type=float, nargs="+", required=True)
    tokenising = tasks.add_parser("tokenising")
    tokenising.add_argument("--megabytes", type=int, nargs="+", required=True)
    tokenising.add_argument("--kill", action="store_true", help="kill it once, half way")
    tasks.add_parser("picture").add_argument("path", type=Path)
    point = tasks.add_parser("point", help="one measurement, which the others start")
    point.add_argument("kind", choices=MEASURED)
    point.add_argument("directory", type=Path)
    options = parser.parse_args()
    if options.task == "picture":
        draw(read_rows(DATA_SCALE)).savefig(options.path, dpi=130)
    elif options.task == "point":
        print(json.dumps(MEASURED[options.kind](options.directory)))
    else:
        sizes = options.tokens if options.task == "counting" else options.megabytes
        killed = (options.task == "tokenising" and options.kill) or None
        for size in sizes:
            key = {"kind": options.task, "size": int(size), "killed": killed}
            print(
                json.dumps(Records(DATA_SCALE, on=True).row(key, lambda key=key: measured(**key)))
            )


def measured(kind: str, size: int, killed: bool | None) -> dict[str, Any]:
    """The row of one point, from a process of its own; if `killed`, after another was killed."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "benchmarks.studies.data_scale", "point", kind, name]
        WRITTEN[kind](Path(name), size)
        before = kill_half_way(command, Path(name), size * 500_000) if killed else {}
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        return {**before, **json.loads(found)}


def kill_half_way(command: list[str], directory: Path, num_bytes: int) -> dict[str, Any]:
    """Kill the tokenising process when `num_bytes` of text are written; what it had then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while (written := journalled(directory))[1] < num_bytes:
        if process.poll() is not None:
            raise SystemExit("the process ended before it was killed")
        time.sleep(0.05)
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    process.kill()
    process.wait()
    return {"tokens_before_kill": written[0], "peak_bytes_before_kill": int(peak) * 1024}


def journalled(directory: Path) -> tuple[int, int]:
    """Tokens, and bytes of their text, that a cache in the making could go on from."""
    found = [(0, 0)]
    for path in directory.glob("cache/*.partial/journal.json"):
        sides = json.loads(path.read_text())["done"].values()
        found.append(tuple(sum(side["counts"][i] for side in sides) for i in (0, 1)))
    return found[-1]


def synthetic_tokens(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """`count` ids of the synthetic text, in pieces of PIECE (uint16); documents begin afresh."""
    random = np.random.default_rng(seed)
    weights = np.cumsum(1 / np.arange(2, VOCABULARY + 2))
    for begin in range(0, count, PIECE):
        drawn = np.searchsorted(weights, random.random((DOCUMENT, PIECE // DOCUMENT)) * weights[-1])
        afresh = random.random(drawn.shape) < AFRESH
        for place in range(1, DOCUMENT):
            before = np.where(afresh[place], 0, drawn[place - 1] * 31)
            drawn[place] = (drawn[place] + before) % VOCABULARY
        yield drawn.T.reshape(-1)[: count - begin].astype(np.uint16)


def write_tokens(directory: Path, size: int) -> None:
    """`size` tokens to count."""
    with (directory / "tokens").open("wb") as file:
        for piece in synthetic_tokens(size):
            file.write(piece.tobytes())


def count_point(directory: Path) -> dict[str, Any]:
    """Count the tokens with the tables of the default configuration."""
    from reso_llm.config import PRSCConfig
    from reso_llm.stages.prsc import BindingMemory

    tokens = np.memmap(directory / "tokens", np.uint16, mode="r")
    memory = BindingMemory(VOCABULARY, 8, PRSCConfig(**CONFIG))
    with watched(directory) as cost:
        memory.fit(tokens, directory)
    kept = sum(path.stat().st_size for path in directory.glob("bindings-*/*"))
    return {**cost, "contexts": len(memory.keys) - 1, "kept_bytes": kept}


def write_corpus(directory: Path, megabytes: int, file_bytes: int = 50_000_000) -> None:
    """JSON rows of synthetic words, so many megabytes in all, in several files."""
    words = ["".join("aeioubdklmnprst"[d % 15] for d in divmod_all(i)) for i in range(VOCABULARY)]
    num_bytes = megabytes * 1_000_000
    tokens = -(-num_bytes // PIECE) * PIECE  # more than enough: one has at least two bytes
    pieces = synthetic_tokens(tokens)
    documents = (row for piece in pieces for row in piece.reshape(-1, DOCUMENT).tolist())
    (directory / "rows").mkdir()
    written, number = 0, 0
    while written < num_bytes:
        number += 1
        with (directory / "rows" / f"{number:05}.jsonl").open("w") as file:
            size = 0
            while size < file_bytes and written + size < num_bytes:
                text = " ".join(words[token] for token in next(documents))
                size += file.write(json.dumps({"text": text}) + "\n")
        written += size


def tokenise_point(directory: Path) -> dict[str, Any]:
    """Tokenise the corpus, or go on with it; the sha256 are of the files of tokens and masks."""
    from reso_llm.data.prepare import prepare
    from reso_llm.tokenizer import create_default_tokenizer

    with watched(directory / "cache") as cost:
        data = prepare(
            f"{directory}/rows", create_default_tokenizer(), cache_dir=directory / "cache"
        )
    manifest = json.loads((data.path / "manifest.json").read_text())["body"]
    return {
        **cost,
        "files": len(list((directory / "rows").iterdir())),
        "tokens": data.train.num_tokens + data.val.num_tokens,
        "sha256": {
            name: manifest["train"]["files"][f"train.{name}"][1] for name in ("tokens", "mask")
        },
    }


def divmod_all(number: int) -> list[int]:
    """The digits of a number in base 15, the last first, at least two."""
    digits = []
    while number or len(digits) < 2:
        number, digit = divmod(number, 15)
        digits.append(digit)
    return digits


@contextmanager
def watched(directory: Path) -> Iterator[dict[str, float]]:
    """Seconds, seconds of the CPU, peak memory and most disk below `directory`, in bytes."""
    cost: dict[str, float] = {"disk_bytes": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            cost["disk_bytes"] = max(cost["disk_bytes"], size_of(directory))

    before = size_of(directory)
    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost["seconds"] = time.perf_counter() - started
    cost["cpu_seconds"] = time.process_time() - cpu
    done.set()
    watcher.join()
    cost["disk_bytes"] = max(0, cost["disk_bytes"] - before)
    cost["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def size_of(directory: Path) -> int:
    """Bytes of all files below a directory; those that vanish meanwhile count as nothing."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def draw(rows: list[dict[str, Any]]) -> Any:
    """Counting and tokenising: seconds of the CPU, and peak memory, against the size."""
    figure = new_figure(9, 3.4)
    panels = figure.subplots(1, 2)
    units = {"counting": (1e6, "million tokens"), "tokenising": (1, "megabytes of text")}
    for axes, (kind, (unit, name)) in zip(panels, units.items(), strict=True):
        whole = (row for row in rows if row["kind"] == kind and not row.get("killed"))
        points = sorted(whole, key=lambda row: row["size"])
        sizes = [row["size"] / unit for row in points]
        axes.plot(sizes, [row["cpu_seconds"] for row in points], "o-", color=BLUE)
        axes.set(title=kind, xlabel=name, ylabel="seconds of one core", ylim=(0, None))
        memory = axes.twinx()
        memory.plot(sizes, [row["peak_bytes"] / 1e9 for row in points], "s--", color=ORANGE)
        memory.set(ylabel="peak memory, GB (dashed)", ylim=(0, 2))
    return figure


WRITTEN = {"counting": write_tokens, "tokenising": write_corpus}
MEASURED = {"counting": count_point, "tokenising": tokenise_point}

if __name__ == "__main__":
    main()
