"""Forms of three stages, trained side by side: which embedding, which positions, which rates.

    embedding   beside a token's row: nothing, waves of its prime, bytes from the start, residues
                of its number, substrings, the word without space and case, its beginnings and
                endings; bytes from both ends, which is the stage, and these of other tokens
    attention   the ladder of rotary frequencies (geometric, golden, golden in half steps), on all
                pairs, on half of them or on those whose waves fit into the context, with and
                without heads' temperatures
    rates       learning rates, momentum and decay by the golden ratio

    python -m benchmarks.studies.stage_forms run --data DIR --device cuda --jobs 8
    python -m benchmarks.studies.stage_forms table

Every model is the plain control with the binding memory on, trained for the same steps: guanaco
(BPE of 4096, 4 x 256, context 256) and tinyshakespeare (characters, 4 x 128, context 64), both read
from DIR. It is scored on held-out text at the context it was trained at; `attention` also at four
times that context. `embedding` records nats by how often the target stands in the training text.
Rows go to results/stage_forms.jsonl as they come; those that are there are not measured again.
"""

import argparse
import dataclasses
import functools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.kit.learners import TASKS, Task, learner_for
from benchmarks.kit.records import Row, grouped, newest, num_parameters, read_rows, write_row
from benchmarks.kit.statistics import student
from benchmarks.kit.tables import table
from entropy_core.primes import GOLDEN_RATIO, first_primes, golden_frequencies, log_phases
from reso_llm.config import control_of, with_stage
from reso_llm.data.windows import eval_batches
from reso_llm.model import ResoLLMModel
from reso_llm.stages.embedding import TokenEmbedding
from reso_llm.training.config import OptimConfig

NAME = "stage_forms"
FILES = {"guanaco": "guanaco_900.jsonl", "shakespeare": "tinyshakespeare.txt"}
BINS = ((0, 10), (11, 30), (31, 100), (101, 1000), (1001, 1 << 40))


class Run(NamedTuple):
    """One model to train."""

    part: str
    task: str
    form: str
    seed: int
    steps: int


# --- embeddings


def parts_from_start(name: bytes) -> list[Any]:
    """(byte, place) pairs: the factors of the token's number, read once."""
    return list(enumerate(name[:8]))


def residues(name: bytes) -> list[Any]:
    """The token's number modulo four primes: tokens of one residue share a row."""
    primes = first_primes(256)
    powers = [[pow(primes[b], 1 << k, m) for k, b in enumerate(name)] for m in (251, 257, 263, 269)]
    return [(m, math.prod(row) % m) for m, row in zip((251, 257, 263, 269), powers, strict=True)]


def substrings(name: bytes) -> list[Any]:
    """Substrings of up to four bytes of the word between two marks (fastText, Bojanowski 2017)."""
    marked, letters = without_space(name)
    word = (0, *(b + 2 for b in letters), 1)
    found = [word[i : i + n] for n in range(1, 5) for i in range(len(word) - n + 1)]
    return [*(s for s in found if s not in ((0,), (1,))), *(["space"] if marked else [])]


def word_alone(name: bytes) -> list[Any]:
    """The word without space and case, and the two marks taken off it."""
    marked, letters = without_space(name)
    small = letters.lower()
    case = ["capital"] if letters[:1] != small[:1] else []
    case += ["capitals"] if letters[1:] != small[1:] else []
    return [small, *case, *(["space"] if marked else [])]


def beginnings_and_endings(name: bytes) -> list[Any]:
    small = word_alone(name)[0]
    sizes = range(1, min(5, len(small)))
    ends = [(size, small[:size]) for size in sizes] + [(-size, small[-size:]) for size in sizes]
    return word_alone(name) + ends


def without_space(name: bytes) -> tuple[bool, bytes]:
    marked = name[:1] == b" " and len(name) > 1
    return marked, name[marked:]


class Parts(TokenEmbedding):
    """W = E + sum of a token's parts / sqrt(their number)."""

    def __init__(self, like: TokenEmbedding, parts: list[list[Any]]) -> None:
        super().__init__(*like.table.weight.shape)
        self.table = like.table
        rows: dict[Any, int] = {}
        bags = [[rows.setdefault(part, len(rows)) + 1 for part in some] for some in parts]
        shape = len(self.table.weight), max(map(len, bags))
        padded = torch.zeros(shape, dtype=torch.int64)
        for row, bag in zip(padded, bags, strict=False):  # fewer names than ids, perhaps
            row[: len(bag)] = torch.tensor(bag, dtype=torch.int64)
        self.register_buffer("bags", padded)
        self.part_table = nn.Parameter(torch.zeros(len(rows) + 1, self.table.embedding_dim))

    @property
    def weight(self) -> Tensor:
        scale = (self.bags > 0).sum(1, keepdim=True).clamp_min(1) ** -0.5
        summed = F.embedding_bag(self.bags, self.part_table, mode="sum", padding_idx=0)
        return self.table.weight + scale * summed


class Waves(TokenEmbedding):
    """W = E + Phi P: 32 golden waves of ln p, the form before."""

    def __init__(self, like: TokenEmbedding) -> None:
        size, dim = like.table.weight.shape
        super().__init__(size, dim)
        self.table = like.table
        primes = first_primes(size)
        phases = log_phases(primes, golden_frequencies(primes[-1], 32))
        waves = np.concatenate((np.cos(phases), np.sin(phases)), axis=-1)
        self.register_buffer("waves", torch.tensor(waves, dtype=torch.float32))
        self.prime_map = nn.Parameter(torch.zeros(64, dim))

    @property
    def weight(self) -> Tensor:
        return torch.addmm(self.table.weight, self.waves, self.prime_map)


def shuffled(names: Sequence[bytes]) -> list[bytes]:
    """The names dealt out at random: the same parameters and rates, but no composition."""
    return [names[i] for i in np.random.default_rng(0).permutation(len(names))]


PARTS: dict[str, Callable[[bytes], list[Any]]] = {
    "bytes from start": parts_from_start,
    "residues": residues,
    "substrings": substrings,
    "word alone": word_alone,
    "beginnings and endings": beginnings_and_endings,
}
STAGE, SHUFFLED = "bytes from both ends", "bytes from both ends, shuffled"  # the stage itself
EMBEDDINGS = ("none", "waves", *PARTS, STAGE, SHUFFLED)


def set_embedding(model: ResoLLMModel, form: str, names: Sequence[bytes]) -> None:
    """Give a model the embedding of a form, with the same table to start from."""
    if form == "waves":
        model.embedding = Waves(model.embedding)
    elif form in PARTS:
        model.embedding = Parts(model.embedding, [PARTS[form](n) if n else [] for n in names])
    else:  # the stage, or nothing where it is off
        model.embedding.read_names(shuffled(names) if form == SHUFFLED else names)


# --- positions


def ladder(form: str, width: int, context: int) -> np.ndarray:
    """Frequencies (K/2,) in radians a token; a pair of frequency 0 carries content alone."""
    index = np.arange(width // 2)
    if "golden" in form:
        frequencies = GOLDEN_RATIO ** (-index / (2 if "half steps" in form else 1))
    elif "half the pairs" in form:
        turning = width // 4
        frequencies = np.where(index < turning, 1e4 ** (-index / turning), 0.0)
    else:
        frequencies = 1e4 ** (-2 * index / width)
    # A wave that does not fit into the context is seen in part only, and unseen beyond it.
    fits = 2 * math.pi <= context * frequencies
    return np.where(fits, frequencies, 0.0) if "cut" in form else frequencies


ATTENTIONS = (
    "geometric", "geometric, temperature", "geometric, half the pairs", "golden",
    "golden, temperature", "golden, cut", "golden half steps", "golden half steps, temperature",
)  # fmt: skip


BPE_ATTENTIONS = tuple(form for form in ATTENTIONS if "half the" not in form and "cut" not in form)


def set_positions(model: ResoLLMModel, form: str, context: int) -> None:
    frequencies = torch.from_numpy(ladder(form, model.config.head_dim, context))
    positions = torch.arange(len(model.rotary), dtype=torch.float64)
    angles = torch.outer(positions, frequencies)
    model.rotary = torch.stack((angles.cos(), angles.sin()), dim=-1).float()


# --- rates


def golden_rates(optim: OptimConfig, form: str) -> OptimConfig:
    """The task's rates as they were before, with some of them set by phi."""
    phi, base = GOLDEN_RATIO, optim.matrix_lr
    changes: dict[str, dict[str, float]] = {
        "before": {},
        "decay 1/phi": {"decay_fraction": 1 / phi},
        "decay 1/phi^2": {"decay_fraction": phi**-2},
        "ratio phi": {"embedding_lr": base / phi, "scalar_lr": base / phi,
                      "head_lr": base / phi**3},
        "momentum": {"momentum": 1 - phi**-6, "beta2": 1 - phi**-6},
    }  # fmt: skip
    changes["all golden"] = changes["decay 1/phi"] | changes["ratio phi"] | changes["momentum"]
    return dataclasses.replace(optim, **{"decay_fraction": 0.6} | changes[form])


RATES = ("before", "decay 1/phi", "decay 1/phi^2", "ratio phi", "momentum", "all golden")


# --- one run

PLAN = {
    "embedding": {"guanaco": EMBEDDINGS},
    "attention": {"shakespeare": ATTENTIONS, "guanaco": BPE_ATTENTIONS},
    "rates": {"guanaco": RATES, "shakespeare": RATES},
}
"""For each part and task, the forms; gains are over the first."""


@functools.cache
def task_of(name: str, data: str) -> Task:
    return TASKS[name](str(Path(data) / FILES[name]))


def make_model(run: Run, data: str) -> tuple[ResoLLMModel, Task]:
    """The model of a run, and its task with the run's rates."""
    task = task_of(run.task, data)
    config = with_stage(control_of(task.config), "prsc", enabled=True)
    if run.part == "attention":
        config = with_stage(config, "resonant_attention", "temperature" in run.form)
        config = dataclasses.replace(config, max_seq_len=4 * config.max_seq_len)
    config = with_stage(config, "prime_embedding", run.form in (STAGE, SHUFFLED))
    torch.manual_seed(run.seed)
    model = ResoLLMModel(config)
    if run.part == "embedding":
        set_embedding(model, run.form, task.names)
    elif run.part == "attention":
        set_positions(model, run.form, task.config.max_seq_len)
    else:
        task = dataclasses.replace(task, optim=golden_rates(task.optim, run.form))
    return model, task


@torch.inference_mode()
def nats_of_tokens(model: ResoLLMModel, task: Task, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats (V,) and counts (V,) of the held-out targets, by token."""
    device, size = model.head_weight.device, model.config.vocab_size
    nats, counts = torch.zeros(2, size, dtype=torch.float64, device=device)
    windows = (task.val.tokens, task.val.doc_starts, context, context // 2)
    for batch in eval_batches(*windows, batch_size=4096 // context):
        inputs, targets, scored = (values.to(device) for values in batch[:3])
        logits = model(inputs).logits.transpose(1, 2).float()
        losses = F.cross_entropy(logits, targets, reduction="none")[scored].double()
        nats.index_add_(0, targets[scored], losses)
        counts.index_add_(0, targets[scored], torch.ones_like(losses))
    return nats.cpu().numpy(), counts.cpu().numpy()


def measure(run: Run, data: str, device: str) -> Row:
    """Train the model of a run and score it."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    model, task = make_model(run, data)
    learner = learner_for(model.to(device), task, run.seed)
    for done in range(run.steps):
        learner.timed_step(done / run.steps)
    model.eval()
    context, scale = task.config.max_seq_len, math.log(2) * task.val.num_bytes
    nats, counts = nats_of_tokens(model, task, context)
    row: Row = {
        **run._asdict(), "bits_per_byte": float(nats.sum()) / scale,
        "parameters": num_parameters(model), "device": device,
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    if run.part == "attention":
        longer = nats_of_tokens(model, task, 4 * context)[0]
        row["bits_per_byte_at_4x"] = float(longer.sum()) / scale
    if run.part == "embedding":
        seen = np.bincount(task.train.tokens, minlength=len(nats))
        inside = [(low <= seen) & (seen <= high) for low, high in BINS]
        row["bin_targets"] = [int(counts[some].sum()) for some in inside]
        row["bin_nats"] = [float(nats[some].sum()) for some in inside]
    return row


def measure_in_worker(job: tuple[Run, str, str]) -> Row:
    return measure(*job)


# --- all runs


def planned(parts: Sequence[str], seeds: Sequence[int], steps: int) -> Iterator[Run]:
    """All runs, seed by seed, so that a run that is cut short has whole seeds."""
    for seed in seeds:
        for part in parts:
            for task, forms in PLAN[part].items():
                yield from (Run(part, task, form, seed, steps) for form in forms)


def missing(runs: Iterator[Run]) -> list[Run]:
    """The runs that no row is of."""
    rows = read_rows(NAME)
    done = {tuple(row[field] for field in Run._fields) for row in rows}
    return [run for run in runs if tuple(run) not in done]


def run_all(options: argparse.Namespace) -> None:
    jobs = [
        (run, options.data, options.device)
        for run in missing(planned(options.parts, options.seeds, options.steps))
    ]
    for name in sorted({run.task for run, _, _ in jobs}):
        task_of(name, options.data)  # tokenised once, before the workers look for it
    # Spawned: a forked process cannot use the parent's CUDA.
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        rows = pool.imap_unordered(measure_in_worker, jobs)
        for row in tqdm(rows, total=len(jobs), desc="models", disable=None):
            write_row(NAME, row)


# --- the tables


def text() -> str:
    """Markdown: for each part, task and number of steps, the gain of every form over the first."""
    rows = newest(read_rows(NAME), *Run._fields)
    sections = []
    for (part, task, steps), some in grouped(rows, "part", "task", "steps").items():
        sections.append(f"**{part}, {task}, {steps} steps**\n\n{_section(part, task, some)}")
    return "\n\n".join(sections)


def _section(part: str, task: str, rows: list[Row]) -> str:
    order = PLAN[part][task]
    by_form = {form: {r["seed"]: r for r in rows if r["form"] == form} for form in order}
    reference = by_form[order[0]]
    measures = _measures(part)
    head = ["form", "seeds", *(f"{name}, gain" for name in measures), "parameters"]
    lines = []
    for form, by_seed in by_form.items():
        if not by_seed:
            continue
        cells = []
        for value in measures.values():
            pairs = [(value(reference[s]), value(r)) for s, r in by_seed.items() if s in reference]
            mean = statistics.fmean(value(r) for r in by_seed.values())
            cells.append(f"{mean:.4f}, {_interval([a - b for a, b in pairs])}")
        parameters = f"{next(iter(by_seed.values()))['parameters']:,}"
        lines.append([form, str(len(by_seed)), *cells, parameters])
    return table(head, lines)


def _measures(part: str) -> dict[str, Callable[[Row], float]]:
    """What a part's table shows of a row."""
    measures: dict[str, Callable[[Row], float]] = {"bits/byte": lambda r: r["bits_per_byte"]}
    if part == "attention":
        measures["at 4x the context"] = lambda r: r["bits_per_byte_at_4x"]
    if part == "embedding":
        for i, (low, high) in enumerate(BINS):
            name = f"nats, seen {low}-{high}" if high < 1 << 40 else f"nats, seen over {low - 1}"
            measures[name] = functools.partial(_bin_mean, i)
    return measures


def _bin_mean(index: int, row: Row) -> float:
    return row["bin_nats"][index] / max(1, row["bin_targets"][index])


def _interval(gains: list[float]) -> str:
    """Mean gain and half its 95 % interval over seeds."""
    if not gains:
        return "-"
    mean, half, _ = student(gains)
    return f"{mean:+.4f}" + ("" if half is None else f" ± {half:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data", help=f"directory of {' and '.join(FILES.values())}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--parts", nargs="+", default=list(PLAN), choices=PLAN)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    options = parser.parse_args()
    if options.command == "table":
        print(text())
    elif options.data is None:
        parser.error("--data is needed")
    else:
        run_all(options)


if __name__ == "__main__":
    main()
