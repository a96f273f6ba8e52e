"""Do several processes learn what one does? The largest difference of any weight.

python -m benchmarks.studies.processes --record

All train 20 steps of the same batches (goals, replies_only, Muon), in float64 and in float32. n
processes take a batch in one pass of all, and are compared with one process that takes it in n: the
sums then have the same terms. "one in four passes" is compared with one in two: what rounding alone
does, which the optimizers magnify.
"""

import argparse
import json
import multiprocessing
import os
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.records import write_row
from benchmarks.studies.crash import row_of_text
from reso_llm.config import ResoLLMConfig
from reso_llm.data.prepare import prepare
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training.config import TrainConfig
from reso_llm.training.learner import Learner
from run_core.world import open_world

STEPS, WINDOWS = 20, 8
FORMS = {
    "": {},
    ", sharded": {"shard": True},
    ", sharded, blocks recomputed": {"shard": True, "activation_checkpointing": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="append the rows to results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for row in measured(Path(directory)):
            print("{form}, {dtype}: {largest_difference:.1e}".format_map(row), flush=True)
            if options.record:
                write_row("processes", row)


def measured(directory: Path) -> Iterator[dict]:
    """The rows: forms of two and of four processes."""
    for dtype in ("float64", "float32"):
        alone = {n: trained(directory, dtype, 1, in_passes(n)) for n in (2, 4)}
        compared = {"one in four passes": (alone[2], alone[4])}
        for size, name in ((2, "two"), (4, "four")):
            for form, changes in FORMS.items():
                weights = trained(directory, dtype, size, in_passes(1) | changes)
                compared[name + form] = (alone[size], weights)
        for form, (one, other) in compared.items():
            largest = max((one[n] - other[n]).abs().max().item() for n in one)
            yield {"form": form, "dtype": dtype, "steps": STEPS, "largest_difference": largest}


def in_passes(number: int) -> dict[str, int]:
    """The batch, which is that of all forms, in so many passes."""
    return {"batch_size": WINDOWS // number, "grad_accumulation": number}


def trained(directory: Path, dtype: str, size: int, changes: dict) -> dict[str, Tensor]:
    """The weights that `size` processes learn."""
    run_processes(size, learn, directory, dtype, changes)
    return torch.load(directory / "weights.pt", weights_only=True)


def run_processes(size: int, task: Callable[..., None], *arguments: Any) -> None:
    """Call `task(rank, *arguments)` in `size` processes of one run; SystemExit where one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("forkserver")  # imports once for all of them
    server.set_forkserver_preload(["reso_llm.training.run", "torch._dynamo"])
    processes = [
        server.Process(target=run_process, args=(rank, size, port, task, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if codes := {process.exitcode for process in processes} - {0}:
        raise SystemExit(f"a process ended with {codes}; its last lines say why")


def run_process(rank: int, size: int, port: int, task: Callable, arguments: tuple) -> None:
    """Call the task in the environment that torchrun would give it."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    task(rank, *arguments)


def learn(rank: int, directory: Path, dtype: str, changes: dict) -> None:
    """Train as one of the processes; the first leaves the weights in `directory`."""
    torch.set_default_dtype(getattr(torch, dtype))
    model = ResoLLMConfig(vocab_size=261, dim=64, num_layers=2, num_heads=2, max_seq_len=64)
    options = {"steps": STEPS, "replies_only": True} | changes
    config = TrainConfig(data=data_of(directory, rank), model=model, **options)
    tokenizer = ResoTokenizer.train(["bytes alone"], 261)
    data = prepare(config.data, tokenizer, cache_dir=directory / f"cache{rank}")
    device = torch.device("cpu")
    with open_world(device) as world:
        learner = Learner(config, data, device, world=world)
        learner.model.embedding.read_names(tokenizer.names)
        for step in range(STEPS):
            learner.step(step / STEPS)
        whole = learner.whole_model()
        if whole is not None:
            torch.save(dict(whole.named_parameters()), directory / "weights.pt")


def data_of(directory: Path, rank: int) -> str:
    """A file of conversations, the same for every rank."""
    generator, path = random.Random(0), directory / f"rows{rank}.jsonl"
    rows = [{"text": row_of_text(generator, number)} for number in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


if __name__ == "__main__":
    main()
