"""Every variant of the ablation and of the quality study, on both texts, at equal time.

python -m benchmarks.studies.equal_time --shakespeare data/tinyshakespeare.txt \
    --guanaco data/guanaco_900.jsonl --measure_pace pace.json
python -m benchmarks.studies.equal_time --shakespeare data/tinyshakespeare.txt \
    --guanaco data/guanaco_900.jsonl --pace pace.json --device cuda --jobs 10

The first command measures the pace of all models on a machine; the second one trains each, on any
machine, for the steps that the first would have made in 130 s (shakespeare) or 180 s (guanaco), in
one pool of processes (`kit/trials.py`). A model of both studies is trained once and recorded in
both. It needs torch, numpy, tqdm, einops, safetensors and tokenizers, and transformers for GPT-2
alone.
"""

import argparse
from collections.abc import Mapping, Sequence

from benchmarks.kit import trials
from benchmarks.kit.learners import TASKS, Task
from benchmarks.kit.pace import measure_pace
from benchmarks.kit.records import Records
from benchmarks.kit.variants import GPT2, variants
from benchmarks.studies.quality import MODELS, SECONDS
from reso_llm.config import ResoLLMConfig


def all_trials(tasks: Sequence[str], options: argparse.Namespace) -> list[trials.Trial]:
    """The ablation's variants, and those models of the quality study that it has not."""
    ablation = list(variants(ResoLLMConfig()))
    some = {"ablation": ablation, "quality": [m for m in MODELS if m not in ablation]}
    return [
        trial
        for study, names in some.items()
        for task in tasks
        for trial in trials.trials_of(
            study, task, [n for n in names if n in (options.only or names)], options,
            seconds=SECONDS[task],
        )
    ]  # fmt: skip


def record_quality(wanted: Sequence[trials.Trial], rows: Sequence[Mapping]) -> None:
    """Copy the rows that are of the quality study, too."""
    records = Records("quality", on=True)
    for trial, row in zip(wanted, rows, strict=True):
        if trial.study != "quality" and trial.variant in MODELS and not records.find(**trial.key):
            records.add(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for task in TASKS:
        parser.add_argument(f"--{task}", help="the text; without it this task is left out")
    names = [*variants(ResoLLMConfig()), *GPT2]
    parser.add_argument("--only", nargs="+", choices=names, help="these models alone")
    trials.add_options(parser)
    options = parser.parse_args()
    paths = {task: getattr(options, task) for task in TASKS if getattr(options, task)}
    if not paths or not (options.pace or options.measure_pace):
        parser.error("expected a text, and --measure_pace or --pace")
    try:
        tasks: dict[str, Task] = {task: TASKS[task](path) for task, path in paths.items()}
        if options.measure_pace:
            measure_pace(options.measure_pace, tasks, options.only or names)
            return
        wanted = all_trials(list(tasks), options)
    except ValueError as error:
        parser.error(str(error))
    record_quality(wanted, trials.run(wanted, tasks, jobs=options.jobs))


if __name__ == "__main__":
    main()
