"""Trials: a variant of a study, trained on a task from a seed within a budget; a row each.

    --steps N               equal tokens: N steps each
    --seconds S             equal time on this machine: the variants take turns in one process
    --seconds S --pace F    equal time on the machine that F was measured on, trained anywhere:
                            round((S - fitting) / step) steps, by the variant's own pace

`--measure_pace F` writes F (`pace.py`). Trials of a known number of steps do not depend on each
other, so `--jobs N` trains them in N processes side by side, on `--device` cpu or cuda. Rows are
written as they come; those already recorded are not measured again.
"""

import dataclasses
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.kit.choice import chosen_step, train_chosen
from benchmarks.kit.learners import Learner, Task, score, train_alternately, train_steps
from benchmarks.kit.pace import Pace, pace_of, read_pace, steps_within
from benchmarks.kit.records import Records, Row, grouped, num_parameters
from benchmarks.kit.timing import greedy_steps
from benchmarks.kit.variants import learner_of
from reso_llm.model import ResoLLMModel
from run_core.hardware import keep_freed_memory, pick_device


class Trial(NamedTuple):
    """What a row is measured of; steps is 0 where the seconds of this machine are the budget."""

    study: str
    task: str
    variant: str
    seed: int
    steps: int
    seconds: float
    pace: tuple[float, float] | None
    device: str
    dropout: float = 0.0
    choose_on: int = 0  # validation rows by which the checkpoint is chosen; 0 takes the last

    @property
    def key(self) -> Row:
        """The fields by which a recorded row is found again."""
        tokens = self.steps > 0 and self.pace is None
        return {
            "task": self.task, "variant": self.variant, "seed": self.seed,
            "budget": "tokens" if tokens else "time", "paced": self.pace is not None,
            "seconds": self.seconds, "device": self.device, "dropout": self.dropout or None,
            "choose_on": self.choose_on or None,
        } | ({"steps": self.steps} if tokens else {})  # fmt: skip


# --- options and budgets


def add_options(parser: Any) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pace", type=str, help="equal time on the machine of this file")
    parser.add_argument("--measure_pace", type=str, help="measure this machine's pace, no more")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 trains in this one")


def trials_of(
    study: str,
    task: str,
    names: Sequence[str],
    options: Any,
    *,
    steps: int = 0,
    seconds: float = 0.0,
    dropout: float = 0.0,
    choose_on: int = 0,
) -> list[Trial]:
    """Every variant and seed. Raises ValueError for a budget that cannot be kept."""
    device = pick_device(options.device).type
    if steps and options.pace:
        raise ValueError("--steps and --pace: expected one of them")
    if choose_on and not (options.pace and options.jobs):
        raise ValueError("--choose_on: expected --pace FILE and --jobs N: such runs end early")
    if options.jobs and not (steps or options.pace):
        raise ValueError("--jobs: equal time needs --pace FILE, or all variants in one process")
    pace = read_pace(options.pace) if options.pace else None
    return [
        _trial(study, task, name, seed, steps, seconds, pace, device)._replace(
            dropout=dropout, choose_on=choose_on
        )
        for seed in options.seeds
        for name in names
    ]


def _trial(
    study: str, task: str, name: str, seed: int, steps: int, seconds: float,
    pace: Pace | None, device: str,
) -> Trial:  # fmt: skip
    if pace is None:
        return Trial(study, task, name, seed, steps, 0.0 if steps else seconds, None, device)
    own = pace_of(pace, task, name)
    steps = steps_within(seconds, own)
    return Trial(study, task, name, seed, steps, seconds, own, device)


# --- training


def run(
    trials: Sequence[Trial], tasks: Mapping[str, Task], *, jobs: int = 0, record: bool = True
) -> list[Row]:
    """The rows of the trials, in their order; what is not recorded yet is trained now."""
    records = {trial.study: Records(trial.study, record) for trial in trials}
    found = {trial: records[trial.study].find(**trial.key) for trial in trials}
    missing = [trial for trial, row in found.items() if row is None]
    train = _side_by_side if jobs else _in_turn

    def on_row(trial: Trial, row: Row) -> None:
        found[trial] = trial.key | row
        records[trial.study].add(found[trial])

    if missing:
        train(missing, tasks, on_row, jobs)
    return [found[trial] for trial in trials]


def _in_turn(
    trials: Sequence[Trial], tasks: Mapping[str, Task], on_row: Callable, jobs: int
) -> None:
    """The variants of one task and seed take turns in this process."""
    keep_freed_memory()
    fields = ("study", "task", "seed", "seconds")
    by_seed = grouped([trial._asdict() for trial in trials], *fields).values()
    for some in tqdm(by_seed, desc="seeds", leave=False, disable=None):
        group = [trial for trial in trials if trial._asdict() in some]
        learners = trained(group, tasks[group[0].task])
        for trial in group:
            on_row(trial, measured(learners[trial.variant], tasks[trial.task], trial))


def trained(trials: Sequence[Trial], task: Task) -> dict[str, Learner]:
    """The variants of one seed and budget, trained in turn."""
    learners = {t.variant: learner_of(task, t.variant, t.seed, t.device) for t in trials}
    steps = {t.variant: t.steps for t in trials}
    total = sum(steps.values()) or trials[0].seconds * len(trials)
    with tqdm(total=total, desc=f"seed {trials[0].seed}", leave=False, disable=None) as bar:
        if trials[0].steps:
            train_steps(learners, steps, bar.update)
        else:
            train_alternately(learners, trials[0].seconds, bar.update)
    return learners


_TASKS: dict[str, Task] = {}  # of a process of `_side_by_side`


def _receive(tasks: Mapping[str, Task]) -> None:
    torch.set_num_threads(1)
    _TASKS.update(tasks)


def _alone(trial: Trial) -> Row:
    task = _TASKS[trial.task]
    if not trial.choose_on:
        return measured(trained([trial], task)[trial.variant], task, trial)
    learner = learner_of(task, trial.variant, trial.seed, trial.device)
    curve = train_chosen(learner, task, trial.steps)
    found = {"chosen_step": chosen_step(curve), "curve": curve}
    return measured(learner, task, trial) | found


def _side_by_side(
    trials: Sequence[Trial], tasks: Mapping[str, Task], on_row: Callable, jobs: int
) -> None:
    """Each trial in a process of its own, `jobs` at a time, the longest first.

    Raises RuntimeError at the end where some failed; the rows of the others are written.
    """
    spawn, failed = multiprocessing.get_context("spawn"), []
    bare = {name: dataclasses.replace(task, counts={}) for name, task in tasks.items()}
    with ProcessPoolExecutor(jobs, spawn, _receive, (bare,)) as pool:
        order = sorted(trials, key=lambda trial: -trial.steps)
        futures = {pool.submit(_alone, trial): trial for trial in order}
        for future in tqdm(as_completed(futures), total=len(futures), desc="trials", disable=None):
            trial, error = futures[future], future.exception()
            if error is None:
                on_row(trial, future.result())
            else:
                failed.append(trial)
                print(f"{trial.variant}, seed {trial.seed}, {trial.task}: {error}", file=sys.stderr)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(trials)} trials failed, see above")


# --- what is measured of a trained variant


def measured(learner: Learner, task: Task, trial: Trial) -> Row:
    """Its score by both protocols, its speed at its pace, and its size."""
    model = learner.model
    tokens = learner.steps * learner.batch * task.config.max_seq_len
    seconds = learner.seconds
    if trial.pace is not None:
        seconds = trial.pace[0] + trial.pace[1] * learner.steps
    tables = sum(p.numel() for n, p in model.named_parameters() if "table" in n)
    prsc = getattr(model, "prsc", None)
    return {
        "steps": learner.steps, "tokens": tokens, "trained_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds), **score(learner, task),
        "decode_ms": decode_ms(model.eval()) if _decodes(model, trial) else None,
        "parameters": num_parameters(model) - tables, "table_parameters": tables,
        "bound_pairs": len(prsc.entry_ids) if prsc else 0, "pace": trial.pace,
    }  # fmt: skip


def _decodes(model: torch.nn.Module, trial: Trial) -> bool:
    return isinstance(model, ResoLLMModel) and trial.device == "cpu"


def decode_ms(model: ResoLLMModel, num_tokens: int = 40) -> float:
    """Median milliseconds of a greedy step at batch 1, over what fits into the context."""
    count = min(num_tokens, model.config.max_seq_len)
    return statistics.median(greedy_steps(model, model.init_state(), count)[0])
