"""Tracking: what clocks that the tokens turn are for, and what they are not.

Four tasks that attention cannot do at any length, trained at 40 tokens and read at 400: the parity
of a stream of bits, a sum modulo 5, the depth of brackets, and a text in which one of five switches
is on, is moved by sentences ("move left ."), and is asked for ("which ?") without an answer.

    full      the Kuramoto stage on the plain control
    coupled   the same with the clocks' read held at zero: the stage as it was before the clocks
    control   the plain decoder
    full, window; control, window: the same two where attention sees 8 tokens and no more, so that
              it cannot count by itself what the clocks should

A seed holds a length when 99 % of its answers there are right. Two questions more: do clocks and
phases of a bracket and its partner agree more than those of other pairs (`brackets`), and what does
the stage change on plain text in equal time (`text`)?

    python -m benchmarks.studies.tracking tasks [--device cuda] [--jobs 8] [--seeds 0 1 2 3 4]
    python -m benchmarks.studies.tracking brackets [--device cuda]
    python -m benchmarks.studies.tracking text --data FILE [--seconds 10] [--seeds 0 1 2]
    python -m benchmarks.studies.tracking table

Rows go to results/tracking.jsonl; what is there already is not measured again.
"""

import argparse
import functools
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kit.records import Records, grouped, num_parameters, read_rows
from benchmarks.kit.statistics import mean_of
from benchmarks.kit.tables import shown, table
from reso_llm.config import ResoLLMConfig, control_of, with_stage
from reso_llm.model import ResoLLMModel
from reso_llm.training.config import OptimConfig
from reso_llm.training.optim import make_optimizers

TRAINED, LONGEST = 40, 400  # tokens of a text in training, at most
SPANS = {"1-40": (0, 40), "41-160": (40, 160), "161-400": (160, 400)}
FORMS = ("control", "coupled", "full", "full, window", "control, window")
WINDOW = 8  # tokens attended to, in the forms with a window
NO_TARGET = -1

Batch = tuple[Tensor, Tensor]  # ids and targets (B,T); NO_TARGET where nothing is asked


# --- tasks


def running_sum(modulus: int, rows: int, length: int, generator: torch.Generator) -> Batch:
    """Numbers below the modulus, and their sum so far."""
    ids = torch.randint(modulus, (rows, length), generator=generator)
    return ids, modulus + ids.cumsum(1) % modulus


DEEPEST = 8


def depth(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Opening (0) and closing (1) brackets at random between depth 0 and DEEPEST; the depth."""
    steps = 2 * torch.randint(2, (length, rows), generator=generator) - 1
    level, ids, targets = torch.zeros(rows, dtype=torch.int64), [], []
    for step in steps:
        step = torch.where(level == 0, 1, torch.where(level == DEEPEST, -1, step))
        level = level + step
        ids.append((step < 0).long())
        targets.append(2 + level)
    return torch.stack(ids, 1), torch.stack(targets, 1)


NAMES = ("red", "blue", "green", "white", "black")
SENTENCES = {  # and by how many switches each moves on
    "move right .": 1, "move left .": -1, "wait .": 0, "the lamp hums .": 0,
}  # fmt: skip
WORDS = (*NAMES, *sorted({w for s in (*SENTENCES, "is on . which ?") for w in s.split()}))


def switches(rows: int, length: int, generator: torch.Generator) -> Batch:
    """ "red is on . move left . which ? move right . ...": at each ? the name of the one on."""
    texts, targets = [], []
    moves = tuple(SENTENCES.items())
    for _ in range(rows):
        draws = iter(torch.randint(1 << 20, (2 * length,), generator=generator).tolist())
        at = next(draws) % len(NAMES)
        words, answers = [NAMES[at], "is", "on", "."], {}
        while len(words) < length:
            sentence, step = moves[next(draws) % len(moves)]
            words += sentence.split()
            at = (at + step) % len(NAMES)
            if next(draws) % 2:
                words += ["which", "?"]
                answers[len(words) - 1] = at
        texts.append([WORDS.index(w) for w in words[:length]])
        targets.append([answers.get(t, NO_TARGET) for t in range(length)])
    return torch.tensor(texts), torch.tensor(targets)


TASKS: dict[str, tuple[int, Callable[..., Batch]]] = {  # size of the vocabulary, and the draw
    "parity": (4, functools.partial(running_sum, 2)),
    "sum modulo 5": (10, functools.partial(running_sum, 5)),
    "bracket depth": (3 + DEEPEST, depth),
    "switches": (len(WORDS), switches),
}


# --- models


def make_model(form: str, vocab_size: int, device: str, **changes) -> ResoLLMModel:
    form, _, window = form.partition(", ")
    shape = dict(dim=64, num_layers=2, num_heads=2, max_seq_len=LONGEST, tie_embeddings=False,
                 attention_window=WINDOW if window else 0)  # fmt: skip
    config = control_of(ResoLLMConfig(vocab_size=vocab_size, **(shape | changes)))
    model = ResoLLMModel(with_stage(config, "kuramoto", form != "control"))
    if form == "coupled":
        model.kuramoto.read.weight.requires_grad_(False)
    return model.to(device)


def train(model: ResoLLMModel, draw: Callable[[], Batch], progress: Callable[[], float]) -> int:
    """Constant rate, then linear decay over the second half, until progress is 1; the steps."""
    optimizers, steps = make_optimizers(model, OptimConfig()).values(), 0
    device = next(model.parameters()).device
    while (done := progress()) < 1:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * min(1.0, 2 * (1 - done))
        ids, targets = (tensor.to(device) for tensor in draw())
        model.zero_grad()
        model.loss(ids, targets.clamp_min(0), targets != NO_TARGET).backward()
        for optimizer in optimizers:
            optimizer.step()
        steps += 1
    return steps


def count_to(steps: int) -> Callable[[], float]:
    """Progress of a training of so many steps: 0, 1 / steps, ..., 1."""
    return iter(torch.linspace(0, 1, steps + 1).tolist()).__next__


@torch.no_grad()
def accuracies(model: ResoLLMModel, batch: Batch) -> dict[str, float]:
    """Share of right answers in each of SPANS."""
    device = next(model.parameters()).device
    ids, targets = (tensor.to(device) for tensor in batch)
    asked = targets != NO_TARGET
    right = (model(ids).logits.argmax(-1) == targets) & asked
    return {
        name: (right[:, a:b].sum() / asked[:, a:b].sum()).item() for name, (a, b) in SPANS.items()
    }


def measure_task(key: dict, device: str) -> dict:
    """Train one form on one task and read its accuracy; key as in the row."""
    torch.set_num_threads(1)
    vocab_size, draw = TASKS[key["task"]]
    torch.manual_seed(key["seed"])
    model = make_model(key["form"], vocab_size, device)
    generator = torch.Generator().manual_seed(key["seed"])
    train(model, lambda: draw(key["rows"], TRAINED, generator), count_to(key["steps"]))
    unseen = draw(128, LONGEST, torch.Generator().manual_seed(10**6))
    row = {"parameters": num_parameters(model), "accuracy": accuracies(model.eval(), unseen)}
    return key | row | {"device": device}


def run_tasks(options: argparse.Namespace) -> None:
    records = Records("tracking", on=True)
    keys = [
        {"what": "task", "task": task, "form": form, "steps": options.steps, "rows": options.rows,
         "seed": seed}
        for seed in options.seeds for task in options.tasks for form in options.forms
    ]  # fmt: skip
    keys = [key for key in keys if records.find(**key) is None]
    measure = functools.partial(measure_task, device=options.device)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for row in pool.imap_unordered(measure, keys):
            print({k: row[k] for k in ("task", "form", "seed", "accuracy")}, flush=True)
            records.add(row)


# --- do relevant tokens synchronise?

PAIRS = ("()", "[]")
LETTERS = 4


def bracket_text(rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Nested brackets of two kinds with letters between, and the partner of each, -1 for none.

    Ids 0, 1 open, 2, 3 close, the rest are letters; a text of `length` may end with some open.
    """
    ids, partners = torch.zeros(rows, length, dtype=torch.int64), torch.full((rows, length), -1)
    for row in range(rows):
        draws, stack = torch.randint(12, (2, length), generator=generator).tolist(), []
        for t, (choice, kind) in enumerate(zip(*draws, strict=True)):
            if choice < 4 and len(stack) < DEEPEST:
                ids[row, t] = kind % 2
                stack.append(t)
            elif choice < 8 and stack:
                opening = stack.pop()
                ids[row, t] = 2 + ids[row, opening]
                partners[row, t] = opening
            else:
                ids[row, t] = 4 + kind % LETTERS
    return ids, partners


def next_token(text: Tensor) -> Batch:
    return text[:, :-1], text[:, 1:]


@torch.no_grad()
def synchrony(model: ResoLLMModel, ids: Tensor, partners: Tensor) -> dict[str, float]:
    """Mean resultants |<u_a conj(u_b)>| over brackets and their partners, and over other pairs.

    u is the clock h or e^{i theta} of a token after reading it; the others are closing brackets,
    each with the partner of the next one that is of its kind, so that kinds and distances are much
    alike. The largest of the oscillators and their mean.
    """
    state, stage = None, model.kuramoto
    clocks, phases = [], []
    x, _ = model.embedding(ids, None)
    for t in range(ids.shape[1]):  # one at a time: the state tells every clock
        _, theta, _, state = stage(x[:, t : t + 1], state)
        clocks.append(torch.complex(*state.clocks[:, 0].unbind(1)))
        phases.append(torch.polar(torch.ones_like(theta[:, 0]), theta[:, 0]))
    rows, closing = (partners >= 0).nonzero(as_tuple=True)
    opening = partners[rows, closing]
    other = torch.empty_like(opening)
    for kind in (2, 3):
        own = (ids[rows, closing] == kind).nonzero()[:, 0]
        other[own] = opening[own].roll(-1)
    apart = (other != opening) & (other < closing)
    apart[:-1] &= rows[1:] == rows[:-1]
    found = {}
    for name, u in (("clocks", torch.stack(clocks, 1)), ("phases", torch.stack(phases, 1))):
        mates = (u[rows, closing] * u[rows, opening].conj()).mean(0).abs()
        strangers = (u[rows, closing] * u[rows, other].conj())[apart].mean(0).abs()
        best = (mates - strangers).argmax()
        for pairs, value in (("partners", mates), ("others", strangers)):
            found |= {f"{name}, {pairs}, mean": value.mean().item(),
                      f"{name}, {pairs}, best": value[best].item()}  # fmt: skip
    return found


def measure_brackets(form: str, steps: int, seed: int, device: str) -> dict:
    """Train on bracket text as a language model; score closings, and measure synchrony."""
    torch.manual_seed(seed)
    model = make_model(form, 4 + LETTERS, device)
    generator = torch.Generator().manual_seed(seed)
    train(model, lambda: next_token(bracket_text(32, TRAINED, generator)[0]), count_to(steps))
    ids, partners = bracket_text(64, 160, torch.Generator().manual_seed(10**6))
    ids, partners = ids.to(device), partners.to(device)
    with torch.no_grad():
        logits = model.eval()(ids[:, :-1]).logits[..., 2:4]
    asked = partners[:, 1:] >= 0
    right = (logits.argmax(-1) + 2 == ids[:, 1:]) & asked
    row = {"kind of closing": (right.sum() / asked.sum()).item(), "device": device}
    return row | (synchrony(model, ids, partners) if model.kuramoto is not None else {})


def run_brackets(options: argparse.Namespace) -> None:
    records = Records("tracking", on=True)
    for seed in options.seeds:
        for form in options.forms:
            key = {"what": "brackets", "form": form, "steps": options.steps, "seed": seed}
            measure = functools.partial(measure_brackets, form, options.steps, seed, options.device)
            print(records.row(key, measure), flush=True)


# --- text


def measure_text(form: str, data: Path, seconds: float, seed: int, device: str) -> dict:
    """Bits per character of the last tenth after so many seconds of training on the rest."""
    text = data.read_text(encoding="utf-8")
    known = {character: i for i, character in enumerate(sorted(set(text)))}
    ids, length = torch.tensor([known[c] for c in text], device=device), 64
    train_ids, held_out = ids.split((len(ids) * 9 // 10, len(ids) - len(ids) * 9 // 10))
    torch.manual_seed(seed)
    model = make_model(form, len(known), device, dim=128, num_layers=4, num_heads=4)
    generator, begun = torch.Generator().manual_seed(seed), time.perf_counter()

    def draw() -> Batch:
        starts = torch.randint(len(train_ids) - length, (24,), generator=generator)
        return next_token(train_ids[starts[:, None].to(device) + torch.arange(length + 1).to(ids)])

    steps = train(model, draw, lambda: (time.perf_counter() - begun) / seconds)
    windows = held_out[: len(held_out) // (length + 1) * (length + 1)].view(-1, length + 1)
    with torch.no_grad():
        losses = [model.eval().loss(*next_token(part)).item() * len(part)
                  for part in windows.split(256)]  # fmt: skip
    bits = sum(losses) / len(windows) / torch.log(torch.tensor(2.0)).item()
    return {"steps": steps, "bits": bits, "parameters": num_parameters(model), "device": device}


def run_text(options: argparse.Namespace) -> None:
    """One form after the other within a seed; the first model of a process warms it up, unread."""
    measure_text("full", options.data, 3.0, 0, options.device)
    records = Records("tracking", on=True)
    for seed in options.seeds:
        for form in options.forms:
            key = {"what": "text", "form": form, "data": options.data.name, "seed": seed,
                   "seconds": options.seconds}  # fmt: skip
            measure = functools.partial(
                measure_text, form, options.data, options.seconds, seed, options.device
            )
            print(records.row(key, measure), flush=True)


# --- table


def lines(rows: list[dict], *names: str) -> list[list[str]]:
    """For each group of rows of equal names: the names, the seeds, and mean and interval."""
    found = []
    for key, some in grouped(rows, *names).items():
        values = {k: [row[k] for row in some] for k, v in some[0].items() if isinstance(v, float)}
        values |= {
            span: [row["accuracy"][span] for row in some] for span in some[0].get("accuracy", ())
        }
        for name, numbers in values.items():
            if name not in names and name != "seconds":
                held = sum(value >= 0.99 for value in numbers)
                line = [*map(str, key), name, shown(mean_of(numbers), 3), f"{held}/{len(numbers)}"]
                found.append(line)
    return found


def print_tables(options: argparse.Namespace) -> None:
    rows = read_rows("tracking")
    tables = {
        "task": ("task", "form", "steps", "rows"),
        "brackets": ("form", "steps"),
        "text": ("data", "form", "seconds"),
    }
    for what, names in tables.items():
        some = [row for row in rows if row["what"] == what]
        if some:
            print(table((*names, "of", "mean [95 %]", "seeds of .99"), lines(some, *names)), "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = {"tasks": run_tasks, "brackets": run_brackets, "text": run_text,
                "table": print_tables}  # fmt: skip
    parser.add_argument("command", choices=commands)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (tasks)")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rows", type=int, default=64, help="texts a step (tasks)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=tuple(TASKS))
    parser.add_argument("--data", type=Path, help="a text file (text)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each training (text)")
    options = parser.parse_args()
    if options.command == "text" and options.data is None:
        parser.error("text: --data FILE is needed")
    commands[options.command](options)


if __name__ == "__main__":
    main()
