"""Eight clients at once against one after the other, first tokens, and memory of the server.

python -m benchmarks.studies.serving --rounds 10 --requests 1000 --record

A server of the shipped model runs in a process of its own; the clients are threads of this one.
Every round takes, in turn: eight texts one after the other, the same eight at once, the first
token of a text alone, and that of an eighth while seven are being written. Ratios are of the same
round; the interval is a bootstrap over the rounds. Texts must be equal, or the study ends.
Memory is the growth of the server's resident memory from the first third of the requests to the
last, after WARM of them.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks.kit.records import REPOSITORY, write_row
from benchmarks.kit.statistics import Interval, mean_of
from benchmarks.studies.soak import Reading, growth, read_process

CLIENTS, TOKENS, LONG = 8, 64, 1024
WARM = 100  # requests
QUESTIONS = (
    "Hi! How was your weekend?", "What do you like?", "Tell me about music.",
    "Do you have a dog?", "Where do you live?", "I like pizza, and you?", "What is your name?",
    "Good morning!",
)  # fmt: skip


class Reply(NamedTuple):
    """A text as a client saw it, with seconds from its request to its first token and its end."""

    text: str
    first: float
    last: float


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """(host and port, process id) of a server of the shipped model."""
    command = [sys.executable, "-u", "-m", "reso_llm.server", "--port", "0"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        yield urlsplit(process.stdout.readline().split()[-1]).netloc, process.pid
    finally:
        process.terminate()
        process.wait()


def ask(
    place: str, number: int, length: int = TOKENS, after_first: Callable[[], None] | None = None
) -> Reply:
    """Stream the reply to one of QUESTIONS; with `after_first`, call it then, and hang up."""
    asked = {
        "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "seed": number, "max_tokens": length, "stream": True,
    }  # fmt: skip
    connection = http.client.HTTPConnection(place, timeout=120)
    began, first, pieces = time.perf_counter(), None, []
    connection.request("POST", "/v1/chat/completions", json.dumps(asked))
    answer = connection.getresponse()
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        pieces.append(chunk["choices"][0]["delta"].get("content", ""))
        if first is None and "reso" in chunk:
            first = time.perf_counter() - began
            if after_first is not None:
                after_first()
                break
    connection.close()
    return Reply("".join(pieces), first, time.perf_counter() - began)


def together(place: str) -> tuple[list[Reply], float]:
    """All questions at once: the replies and the seconds until the last has ended."""
    replies: list[Any] = [None] * CLIENTS
    barrier = threading.Barrier(CLIENTS + 1)

    def client(number: int) -> None:
        barrier.wait()
        replies[number] = ask(place, number)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return replies, time.perf_counter() - began


def eighth(place: str) -> float:
    """Seconds to the first token of a text that comes while seven are being written."""
    written, done = threading.Barrier(CLIENTS), threading.Event()

    def hold() -> None:
        written.wait()
        done.wait()

    threads = [
        threading.Thread(target=ask, args=(place, i, LONG, hold)) for i in range(CLIENTS - 1)
    ]
    for thread in threads:
        thread.start()
    written.wait()
    first = ask(place, CLIENTS - 1, length=1).first
    done.set()
    for thread in threads:
        thread.join()
    return first


def cpu_seconds(process: int) -> float:
    """Seconds that a process has computed, whatever else the machine did meanwhile."""
    after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")  # user and system


def measure(place: str, process: int, rounds: int) -> dict[str, Any]:
    """Ratios over the rounds, each with its interval; RuntimeError where texts differ."""
    names = ("sum", "sum_of_cpu", "first_joining", "first_at_once")
    rows: dict[str, list[float]] = {name: [] for name in names}
    alone_first = []
    for _ in range(rounds):
        cpu, began = [cpu_seconds(process)], time.perf_counter()
        alone = [ask(place, number) for number in range(CLIENTS)]
        seconds = time.perf_counter() - began
        cpu.append(cpu_seconds(process))
        at_once, seconds_at_once = together(place)
        cpu.append(cpu_seconds(process))
        if [reply.text for reply in alone] != [reply.text for reply in at_once]:
            raise RuntimeError("a text written beside others differs from the one written alone")
        first = ask(place, CLIENTS - 1, length=1).first
        rows["sum"].append(seconds_at_once / seconds)
        rows["sum_of_cpu"].append((cpu[2] - cpu[1]) / (cpu[1] - cpu[0]))
        rows["first_joining"].append(eighth(place) / first)
        rows["first_at_once"].append(max(reply.first for reply in at_once) / first)
        alone_first.append(first)
    return {name: _rounded(mean_of(values)) for name, values in rows.items()} | {
        "first_alone_ms": _rounded(mean_of([1000 * first for first in alone_first]))
    }


def memory_growth(place: str, process: int, requests: int) -> float:
    """Growth of the server's resident memory over so many requests."""
    readings: list[Reading] = []
    for number in range(WARM + requests):
        ask(place, number, length=16)
        if number >= WARM and number % 10 == 0:
            readings.append(read_process(process, number))
    return growth(readings)


def _rounded(interval: Sequence[float] | Interval) -> list[float]:
    return [round(float(value), 3) for value in interval]


def main() -> None:
    parser = argparse.ArgumentParser(description="Texts of a server, at once and one by one.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--record", action="store_true", help="add a row to benchmarks/results")
    options = parser.parse_args()
    with server() as (place, process):
        row = {
            "model": "shipped", "clients": CLIENTS, "tokens": TOKENS, "rounds": options.rounds,
            "requests": options.requests, **measure(place, process, options.rounds),
            "memory_growth": round(memory_growth(place, process, options.requests), 4),
        }  # fmt: skip
    print(json.dumps(row, indent=2))
    if options.record:
        write_row("serving", row)


if __name__ == "__main__":
    main()
