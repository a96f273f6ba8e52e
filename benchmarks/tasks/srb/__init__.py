"""SRB against other places to stop, on long-form prompts: tokens, time and quality.

python evaluate.py srb --record                                     the checkpoint of the package
python evaluate.py srb --model SmolLM2-135M-Instruct --record       a directory or a hub id
python evaluate.py srb --replay --model DIR --record                the rule that finishes
python evaluate.py srb --from-csv summary_longform.csv              published files
python evaluate.py srb --from-csv runs_longform.csv --plot srb.png  with the picture of the public
                                                                    plot_entropy_overlay

Sixty prompts in five buckets (prompts.py); thresholds are calibrated on one half and all arms run
on the other (study.py): static, SRB, fixed length, random stop, and a rule on p(end), with one
sampler (T 0.8, top-p 0.95), one clock and paired seeds. SRB does not deepen here: an arm that only
stops can be compared with every other place of the same reply (analysis.py). Quality: perplexity
under the model without control and under a judge, repetition, truncation, code that parses, steps
as asked for (quality.py). Research questions 1 to 3 of the derivation notes: questions.py.

Replies, and the four public files (schema.py), are written to --out and read from there again, so
a study that was stopped goes on. With --record the directory is benchmarks/results/srb/MODEL. A
reply that is there is not written again, whatever else changed; other options need another --out.

A study runs the published rule. `--replay` stops the static replies of the same file, and of more
prompts, by the rule that SRB has by default, and by others (replay.py).

A row is of one `kind`: a study, a replay, or csv, the statistics of published files
(comparison.py).
"""

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.kit import records
from benchmarks.kit.pretrained import PretrainedWriter, Writer
from benchmarks.kit.records import REPOSITORY, Records
from benchmarks.kit.writers import SAMPLER, ResoWriter
from benchmarks.tasks.srb import analysis, questions, replay, study
from benchmarks.tasks.srb.comparison import from_csv
from benchmarks.tasks.srb.comparison_text import csv_text
from benchmarks.tasks.srb.panels import figure, pictures
from benchmarks.tasks.srb.statistics import DRAWS
from benchmarks.tasks.srb.tables import write_all
from benchmarks.tasks.srb.text import replay_text, study_text
from run_core.cli import Parser
from run_core.hardware import keep_freed_memory

__all__ = ["add_options", "figure", "pictures", "run", "text"]

QUICK = study.Protocol(cap=32, seeds=(0,), per_bucket=1)
QUICK_DRAWS = 200
QUICK_PROMPTS = 2
TEXTS = {"study": study_text, "replay": replay_text, "csv": csv_text}
CSV_KEY = ("kind", "files", "sha256", "backend", "model_id")


def add_options(parser: Parser) -> None:
    parser.add_argument("--model", type=str, help="causal language model of transformers")
    parser.add_argument("--checkpoint", type=str, help="run directory; default: the shipped one")
    parser.add_argument("--judge", type=str, help="model that reads the replies; for --model: ours")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1, and 0 1 2 of a replay")
    parser.add_argument("--cap", type=int, default=512, help="tokens of a reply at most")
    parser.add_argument("--target", type=float, default=0.5, help="share of replies that SRB ends")
    parser.add_argument("--out", type=str, help="directory of replies and tables")
    parser.add_argument("--replay", action="store_true", help="rules on recorded replies, no runs")
    parser.add_argument(
        "--prompts", type=int, default=analysis.EVERY, help="of a bucket's half, for --replay"
    )
    parser.add_argument(
        "--from_csv", type=str, nargs="+", metavar="FILE",
        help="no study: compare the arms in these files, of any of the four public kinds",
    )  # fmt: skip


def run(options: Any) -> list[dict[str, Any]]:
    """One row for the study of one model, or the rows of published files."""
    recorded = Records("srb", options.record)
    if options.from_csv:
        return of_files(options, recorded)
    torch.set_num_threads(1)
    keep_freed_memory()
    seeds = options.seeds or ((0, 1, 2) if options.replay else (0, 1))
    protocol = study.Protocol(target=options.target, cap=options.cap, seeds=tuple(seeds))
    if options.replay:
        more = {"per_bucket": options.prompts}
        if options.quick:
            more = {"per_bucket": QUICK_PROMPTS, "cap": QUICK.cap, "seeds": QUICK.seeds}
        return [of_replay(options, replace(protocol, **more), recorded)]
    return [of_model(options, QUICK if options.quick else protocol, recorded)]


def of_files(options: Any, recorded: Records) -> list[dict[str, Any]]:
    """The statistics of files, recorded once; the values of single runs are not recorded."""
    if options.model or options.checkpoint:
        raise ValueError("--from-csv runs no model: leave out --model and --checkpoint")
    rows = from_csv(options.from_csv, draws=QUICK_DRAWS if options.quick else DRAWS)
    for row in rows:
        if recorded.find(**{name: row.get(name) for name in CSV_KEY}) is None:
            recorded.add({name: value for name, value in row.items() if name != "runs"})
    return rows


def of_model(options: Any, protocol: study.Protocol, recorded: Records) -> dict[str, Any]:
    """The study of one model: its recorded row, or that of a run."""
    writer, judge = models(options)
    settings = {
        "model": writer.name, "weights_sha256": writer.weights,
        "sampler": SAMPLER, "target": protocol.target, "cap": protocol.cap,
        "per_bucket": protocol.per_bucket,
    }  # fmt: skip
    key = {"kind": "study", **settings, "judge": judge and judge.name, "seeds": protocol.seeds}
    if row := recorded.find(**key):
        return row
    directory = place(options, writer)
    same_study(directory, settings)
    replies = study.Replies(directory / "replies.jsonl.gz")
    parameters = study.calibrate(writer, protocol, replies)
    same_study(directory, settings | {"calibration": _plain(parameters)})
    study.run(writer, protocol, replies, parameters)
    whole = directory.resolve()  # its path in the repository, if it is there
    files = whole.relative_to(REPOSITORY) if whole.is_relative_to(REPOSITORY) else directory
    row = {**key, "files": str(files), **_plain(parameters)}
    row |= results(replies, writer, judge, protocol, directory)
    recorded.add(row)
    return row


def of_replay(options: Any, protocol: study.Protocol, recorded: Records) -> dict[str, Any]:
    """The replay of one model's replies: its recorded row, or a new one."""
    writer, judge = models(options)
    written = {
        "model": writer.name, "weights_sha256": writer.weights, "sampler": SAMPLER,
        "cap": protocol.cap,
    }  # fmt: skip
    key = {
        "kind": "replay", **written, "per_bucket": protocol.per_bucket,
        "judge": judge and judge.name, "seeds": protocol.seeds,
    }  # fmt: skip
    if row := recorded.find(**key):
        return row
    directory = place(options, writer)
    same_study(directory, written)
    replies = study.Replies(directory / "replies.jsonl.gz")
    row = {**key, **replay.replay(writer, judge, replies, protocol)}
    recorded.add(row)
    return row


def models(options: Any) -> tuple[Writer, Writer | None]:
    """The model that writes the replies, and the judge that reads them."""
    if options.model and options.checkpoint:
        raise ValueError("--model is not ours and --checkpoint is: expected one of them")
    writer = PretrainedWriter(options.model) if options.model else ResoWriter(options.checkpoint)
    if options.judge:
        return writer, PretrainedWriter(options.judge)
    return writer, ResoWriter(None) if options.model else None


def place(options: Any, writer: Writer) -> Path:
    """The directory of replies and tables. ValueError where a recorded row could not name it."""
    if options.out:
        if options.record and not Path(options.out).resolve().is_relative_to(REPOSITORY):
            raise ValueError(f"--out {options.out}: expected a directory of the repository, as the "
                             "recorded row names it")  # fmt: skip
        return Path(options.out)
    if options.quick:
        return Path(tempfile.mkdtemp(prefix="srb-quick-"))
    return (records.RESULTS if options.record else Path("runs")) / "srb" / writer.name


def same_study(directory: Path, wanted: dict[str, Any]) -> None:
    """Write down what the replies of a directory are of; ValueError if they are of something else.

    The judge does not write, so another one may read the same replies.
    """
    file = directory / "study.json"
    known = _read(file) if file.exists() else {}
    for key, value in wanted.items():
        if known.get(key, value) != value:
            raise ValueError(
                f"{file}: its replies have {key} = {known[key]}, not {value}: "
                "expected the same, or another --out"
            )
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known | wanted, indent=1) + "\n", encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}: expected what a study wrote there") from None
    if not isinstance(known, dict):
        raise ValueError(f"{file}: expected what a study wrote there")
    return known


def results(
    replies: study.Replies, writer: Writer, judge: Writer | None, protocol: study.Protocol,
    directory: Path,
) -> dict[str, Any]:  # fmt: skip
    """Everything measured on the replies; the public files are written on the way."""
    bar = functools.partial(tqdm, desc="quality", unit="reply", leave=False)
    tables = analysis.tables_of(replies, writer, judge, bar)
    write_all(directory, analysis.public_runs(replies, tables, writer, protocol.seeds))
    statics = [
        row for row in replies.of(1, "static")
        if row["seed"] in protocol.seeds and (row["name"], row["seed"]) in tables
    ]  # fmt: skip
    alone = {seed: analysis.runs_of(replies, tables, [seed]) for seed in protocol.seeds}
    first, last = alone[protocol.seeds[0]], alone[protocol.seeds[-1]]
    return {
        **analysis.compared(analysis.runs_of(replies, tables, protocol.seeds)),
        "by_seed": {
            seed: {"srb_minus": {"static": runs.minus("static")}} for seed, runs in alone.items()
        },
        "rerun": analysis.rerun(first, last) if len(alone) > 1 else {},
        "questions": questions.answered(statics, tables),
    }


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Studies first, then files. Rows without a kind are of an earlier study and left out."""
    return "\n\n".join(
        write(row) for kind, write in TEXTS.items() for row in rows if row.get("kind") == kind
    )


def _plain(parameters: study.Calibration) -> dict[str, Any]:
    """The parameters of the arms as JSON: infinities are None."""
    rule = {name: getattr(parameters.rule, name) for name in analysis.SETTLED}
    values = asdict(parameters) | {"rule": rule}
    values["random_caps"] = [None if c == float("inf") else c for c in parameters.random_caps]
    return values
