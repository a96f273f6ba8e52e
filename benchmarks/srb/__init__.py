"""SRB against other places to stop, on long-form prompts: tokens, time and quality.

python evaluate.py srb --record                                     the checkpoint of the package
python evaluate.py srb --model SmolLM2-135M-Instruct --record       a directory or a hub id
python evaluate.py srb --from-csv summary_longform.csv              anybody's files

Sixty prompts in five buckets (prompts.py); thresholds are calibrated on one half and all arms run
on the other (study.py): static, SRB, fixed length, random stop, and a rule on p(end), with one
sampler (T 0.8, top-p 0.95), one clock and paired seeds. SRB does not deepen here: an arm that only
stops can be compared with every other place of the same reply (analysis.py). Quality: perplexity
under the model without control and under a judge, repetition, truncation, code that parses, steps
as asked for (quality.py). Research questions 1 to 3 of the derivation notes: questions.py.

Replies, and the four public files (schema.py), are kept in --out and found again: a study that was
stopped goes on. With --record they are kept in benchmarks/results/srb/MODEL. A reply that is there
is not written again, whatever else changed; other options need another --out.
"""

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, Records
from benchmarks.phase_slip.texts import weights_hash
from benchmarks.srb import analysis, questions, study
from benchmarks.srb.text import study_text
from benchmarks.srb.writers import SAMPLER, HFWriter, ResoWriter, Writer
from benchmarks.srb_tables import write_all
from reso_llm.cli import Parser
from reso_llm.hardware import keep_freed_memory

REPOSITORY = RESULTS.parent.parent
QUICK = study.Protocol(cap=32, seeds=(0,), per_bucket=1)


def add_options(parser: Parser) -> None:
    parser.add_argument("--model", type=str, help="causal language model of transformers")
    parser.add_argument("--checkpoint", type=str, help="run directory; default: the shipped one")
    parser.add_argument("--judge", type=str, help="model that reads the replies; for --model: ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cap", type=int, default=512, help="tokens of a reply at most")
    parser.add_argument("--target", type=float, default=0.5, help="share of replies that SRB ends")
    parser.add_argument("--out", type=str, help="directory of replies and tables")


def run(options: Any) -> list[dict[str, Any]]:
    """One row for the study of one model."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.model and options.checkpoint:
        raise ValueError("--model is not ours and --checkpoint is: expected one of them")
    protocol = study.Protocol(target=options.target, cap=options.cap, seeds=tuple(options.seeds))
    protocol = QUICK if options.quick else protocol
    writer = HFWriter(options.model) if options.model else ResoWriter(options.checkpoint)
    judge = HFWriter(options.judge) if options.judge else None
    if judge is None and options.model:
        judge = ResoWriter(None)
    directory = place(options, writer)
    names = {
        "model": writer.model_id, "weights_sha256": weights_hash(writer.files),
        "judge": judge and judge.model_id, "sampler": SAMPLER,
        "target": protocol.target, "cap": protocol.cap,
    }  # fmt: skip
    same_study(directory, names)
    replies = study.Replies(directory / "replies.jsonl.gz")
    found = study.run(writer, protocol, replies)
    row = {**names, "files": _named(directory), **_plain(found)}
    row |= results(replies, writer, judge, protocol, directory)
    Records("srb", options.record).add(row)
    return [row]


def place(options: Any, writer: Writer) -> Path:
    """Where replies and tables are kept."""
    if options.out:
        return Path(options.out)
    if options.quick:
        return Path(tempfile.mkdtemp(prefix="srb-quick-"))
    return (RESULTS if options.record else Path("runs")) / "srb" / writer.model_id


def same_study(directory: Path, names: dict[str, Any]) -> None:
    """Write down what the replies of a directory are of; ValueError if they are of something else.

    The judge does not write, so another one may read the same replies.
    """
    wanted = {key: value for key, value in names.items() if key != "judge"}
    file = directory / "study.json"
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        for key, value in wanted.items():
            if known.get(key) != value:
                raise ValueError(
                    f"{file}: its replies have {key} = {known.get(key)}, not {value}: "
                    "expected the same, or another --out"
                )
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def results(
    replies: study.Replies, writer: Writer, judge: Writer | None, protocol: study.Protocol,
    directory: Path,
) -> dict[str, Any]:  # fmt: skip
    """Everything measured on the replies; the public files are written on the way."""
    bar = functools.partial(tqdm, desc="quality", unit="reply", leave=False)
    tables = analysis.tables_of(replies, writer, judge, bar)
    write_all(directory, analysis.public_runs(replies, tables, writer, protocol.seeds))
    statics = [row for row in replies.of(1, "static") if row["seed"] in protocol.seeds]
    return {
        "seeds": protocol.seeds,
        **analysis.compared(replies, tables, protocol.seeds),
        "by_seed": {s: analysis.compared(replies, tables, [s]) for s in protocol.seeds},
        "questions": questions.answered(statics, tables),
    }


def text(rows: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join(study_text(row) for row in rows)


def _plain(found: study.Calibration) -> dict[str, Any]:
    """What calibration found, as JSON can say it: infinities are None."""
    rule = {name: getattr(found.rule, name) for name in analysis.SETTLED}
    values = asdict(found) | {"rule": rule}
    values["random_caps"] = [None if c == float("inf") else c for c in found.random_caps]
    return values


def _named(directory: Path) -> str:
    """The path in the repository, if it is there."""
    whole = directory.resolve()
    return str(whole.relative_to(REPOSITORY) if whole.is_relative_to(REPOSITORY) else directory)


def figure(rows):
    raise NotImplementedError
