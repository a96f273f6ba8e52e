"""Several processes of one run, as torchrun starts them, without paying for the imports each time.

One server process imports everything and computes nothing; every process is a fork of it.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

TIMEOUT = 120  # seconds; a deadlock fails the test


def start_processes(size: int, task: Callable, *args: Any) -> tuple[list, Any]:
    """Processes that call `task(rank, *args)`, and the queue of what they return, by rank."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["reso_llm.training.run", "torch._dynamo"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = server.Queue()
    processes = [
        server.Process(target=_child, args=(rank, size, port, results, task, args))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes, results


def run_processes(size: int, task: Callable, *args: Any) -> list[Any]:
    """What `task(rank, *args)` returns in each of `size` processes, in their order."""
    processes, results = start_processes(size, task, *args)
    try:
        values = dict(results.get(timeout=TIMEOUT) for _ in processes)
    finally:
        end(processes)
    return [values[rank] for rank in range(size)]


def end(processes: list) -> None:
    """Wait for the processes; one that does not end by itself is killed, and is an error."""
    for process in processes:
        process.join(TIMEOUT)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, f"{len(late)} processes did not end"


def _child(rank: int, size: int, port: int, results: Any, task: Callable, args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    try:
        value = task(rank, *args)
    except RuntimeError as error:
        value = error
    results.put((rank, value))
