"""Evaluate a trained model, or run an experiment on reactors.

python evaluate.py lm --checkpoint runs/first --data heldout.jsonl
python evaluate.py lm --checkpoint runs/first --data heldout.jsonl --json -
python evaluate.py mirror --seeds 0 1 2 --mode published --json mirror.json --plot mirror.png
python evaluate.py mirror --ablation true
python evaluate.py setpoint --targets 1 2 3 4 5 --plot setpoint.png
python evaluate.py zombie --data text.txt --plot zombie.png
python evaluate.py zombie --data text.txt --models gpt2 state-spaces/mamba-130m-hf
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from cer import ablation, figures, setpoint, zombie_report
from cer import mirror as cer_mirror
from cer.zombie_pair import ZombieConfig, quick, zombie_test, zombie_test_pretrained
from reso_llm import cli
from reso_llm.data import BadRows, tokenise_all
from reso_llm.evaluation import score_split
from reso_llm.inference import ResoLLMInference

MODES = ["published", "corrected"]
TEN_SEEDS = list(range(10))


class Task(NamedTuple):
    """A subcommand: its parser, and what it computes from the options and says about it."""

    parser: Callable[[], cli.Parser]
    run: Callable[[Any], dict[str, Any]]
    text: Callable[[dict[str, Any]], str]


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="evaluate.py", description="Evaluate a model or run an experiment.")
    subcommands = parser.add_subcommands()
    for name, task in TASKS.items():
        sub = task.parser()
        sub.add_argument("--json", type=str, help="write the result to this file, - for stdout")
        subcommands.add_subcommand(name, sub, help=sub.description)
    return parser


# --- lm: bits per byte ------------------------------------------------------------------------


def lm_parser() -> cli.Parser:
    lm = cli.Parser(prog="evaluate.py lm", description="Bits per byte of a text under a model.")
    lm.add_argument("--checkpoint", required=True, type=str, help="run or checkpoint directory")
    lm.add_argument("--data", required=True, type=str, help="file, hub id, guanaco or sample")
    lm.add_argument("--on_bad_row", choices=["error", "skip"], default="error")
    lm.add_argument("--stride", type=int, help="new tokens per window; default: half the context")
    lm.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    return lm


def evaluate_lm(options: Any) -> dict[str, Any]:
    """Score every byte of the data once; the result as plain values."""
    engine = ResoLLMInference.from_pretrained(options.checkpoint, options.device)
    bad_rows = BadRows()
    split = tokenise_all(
        options.data, engine.tokenizer, on_bad_row=options.on_bad_row, report=bad_rows
    )
    if bad_rows.count:
        print(bad_rows.summary(), file=sys.stderr)
    targets = split.num_tokens - split.num_documents
    with tqdm(total=targets, desc="scoring", unit="token", leave=False) as bar:
        score = score_split(engine.model, split, stride=options.stride, progress=bar.update)
    return {
        "checkpoint": options.checkpoint,
        "data": options.data,
        "context": engine.config.max_seq_len,
        "stride": options.stride or engine.config.max_seq_len // 2,
        "skipped_rows": bad_rows.count,
        **score.to_dict(),
    }


def lm_text(result: dict[str, Any]) -> str:
    return (
        f"{result['bits_per_byte']:.4f} bits/byte, {result['nats_per_token']:.4f} nats/token, "
        f"perplexity {result['perplexity']:.2f} per token and {result['byte_perplexity']:.3f} per "
        f"byte\n{result['bytes']:,} bytes, {result['tokens']:,} tokens, "
        f"{result['documents']:,} documents, each byte scored once"
    )


# --- mirror and setpoint: the reactor's entropy -----------------------------------------------


def mirror_parser() -> cli.Parser:
    mirror = cli.Parser(
        prog="evaluate.py mirror", description="Entropy of reactors fed three distributions."
    )
    mirror.add_argument("--seeds", type=int, nargs="+", default=TEN_SEEDS)
    mirror.add_argument("--mode", choices=MODES, default="published")
    mirror.add_argument("--ablation", type=bool, default=False, help="take parts out, in turn")
    mirror.add_argument("--plot", type=str, help="write the figure to this file")
    return mirror


def evaluate_mirror(options: Any) -> dict[str, Any]:
    """The mirror test, or the table of its ablations."""
    if options.ablation:
        if options.plot:
            raise ValueError("--ablation prints a table; --plot is for the mirror test itself")
        build = functools.partial(cer_mirror.build_reactor, mode=options.mode)
        bar = functools.partial(tqdm, desc="variants", leave=False)
        return {
            "mode": options.mode,
            "ablation": ablation.ablate(options.seeds, build, progress=bar),
        }
    bar = functools.partial(tqdm, desc="seeds", leave=False)
    result = cer_mirror.mirror_test(options.seeds, options.mode, progress=bar)
    if options.plot:
        figures.mirror_figure(result).savefig(options.plot, dpi=150)
    return result


def mirror_text(result: dict[str, Any]) -> str:
    if "ablation" in result:
        return ablation.ablation_table(result["ablation"])
    return cer_mirror.mirror_table(result)


def setpoint_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="evaluate.py setpoint", description="How far a reactor's entropy ends from its target."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", type=float, nargs="+", default=list(setpoint.TARGETS_NATS))
    parser.add_argument("--mode", choices=MODES, default="corrected")
    parser.add_argument("--plot", type=str, help="write the figure to this file")
    return parser


def evaluate_setpoint(options: Any) -> dict[str, Any]:
    """The control error curve."""
    result = setpoint.setpoint_curve(options.seeds, options.targets, options.mode)
    if options.plot:
        figures.setpoint_figure(result).savefig(options.plot, dpi=150)
    return result


# --- zombie: noise on the embeddings of language models ---------------------------------------


def zombie_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="evaluate.py zombie", description="Noise on embeddings: attention or recurrence?"
    )
    parser.add_argument("--data", type=str, help="text file; default: a random Markov text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", type=str, nargs="+", help="two directories or hub ids")
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds for a download")
    parser.add_argument("--quick", type=bool, default=False, help="seconds, and no conclusion")
    parser.add_argument("--record", type=bool, default=False, help="rows to benchmarks/results")
    parser.add_argument("--plot", type=str, help="write the figure to this file")
    return parser


def evaluate_zombie(options: Any) -> dict[str, Any]:
    """Train a matched pair for every seed, or load two models; rows are told as they come."""
    config = ZombieConfig(seeds=tuple(options.seeds))
    config = quick(config) if options.quick else config
    text = Path(options.data).read_bytes() if options.data else None
    with tqdm(total=len(options.seeds), desc="seeds", leave=False) as bar:

        def on_row(row: dict[str, Any]) -> None:
            bar.update()
            if options.record:
                from benchmarks.common import write_row

                name = Path(options.data).name if options.data else row["data"]
                write_row("zombie", {**row, "data": name, "quick": options.quick})

        if options.models is None:
            result = zombie_test(config, text, on_row)
        elif text is None:
            raise ValueError("--models needs a text in their language: --data FILE")
        else:
            result = zombie_test_pretrained(
                config, options.models, text.decode("utf-8"), on_row, deadline=options.deadline
            )
    if options.plot:
        zombie_report.zombie_figure(result).savefig(options.plot, dpi=150)
    return result


TASKS = {
    "lm": Task(lm_parser, evaluate_lm, lm_text),
    "mirror": Task(mirror_parser, evaluate_mirror, mirror_text),
    "setpoint": Task(setpoint_parser, evaluate_setpoint, setpoint.setpoint_table),
    "zombie": Task(zombie_parser, evaluate_zombie, zombie_report.zombie_table),
}


def main() -> None:
    parsed = make_parser().read(sys.argv[1:])
    task, options = TASKS[parsed.subcommand], parsed[parsed.subcommand]
    result = task.run(options)
    text = json.dumps(result, indent=2)
    if options.json == "-":
        print(text)
        return
    print(task.text(result))
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    cli.run(main)
