"""A guided tour of a trained model: each stage on real text, with and without it.

reso demo
reso demo --checkpoint runs/quickstart --save-figure tour.png
reso demo --model smollm2
reso demo --train runs/demo
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from reso import train
from run_core import cli
from run_core.loading import loading
from run_core.streams import reader_is_gone
from run_core.terminal import Screen, printable

QUICKSTART = "quickstart"


def make_parser(prog: str = "demo.py") -> cli.Parser:
    parser = cli.Parser(prog=prog, description="Show each stage of a trained model at work.")
    add = parser.add_argument
    add("--checkpoint", type=str | None, help="run or checkpoint directory; default: the shipped")
    add("--model", type=str | None, help="smollm2, or a model of transformers: DIR, owner/name")
    add("--train", type=str | None, help="train with --config quickstart into this run first")
    add("--save_figure", type=str | None, help="draw the tour into this file (png, svg or pdf)")
    add("--seed", type=int, default=0, help="of the damage and of what is sampled")
    add("--device", type=str, default="cpu", help="cpu or cuda")
    return parser


def train_first(out: str) -> None:
    """Train as `reso train --config quickstart --out OUT` does, or go on with that run."""
    resumes = ["--resume"] if Path(out, train.CONFIG).is_file() else []
    train.main([f"--config={QUICKSTART}", f"--out={out}", *resumes])


def show(text: str, columns: int, indent: str = "") -> None:
    """Print text in lines of at most `columns` characters, now."""
    lines = textwrap.wrap(text, columns - len(indent), subsequent_indent="  ")
    print(textwrap.indent("\n".join(lines), indent), flush=True)


def main(args: Sequence[str] | None = None, prog: str = "demo.py") -> None:
    """Show the tour as the arguments say; prog names the command."""
    parser = make_parser(prog)
    options = parser.read(sys.argv[1:] if args is None else args)
    given = [name for name in ("train", "checkpoint", "model") if options[name]]
    if len(given) > 1:
        parser.error(f"{' and '.join(given)} are {len(given)} models: give one of them")
    if options.model and options.save_figure:
        parser.error("save_figure draws the stages of a ResoLLM: leave it out, or leave out model")
    with loading():
        from reso_llm.inference import load_engine
        from reso_llm.tour.figures import check_figure, save_figure
        from reso_llm.tour.stations import STATIONS, stations_of, visit
        from reso_llm.tour.verdict import verdict

    if options.save_figure:
        check_figure(options.save_figure)
    if options.train:
        train_first(options.train)
    engine = load_engine(options.train or options.checkpoint, options.model, options.device)
    columns = min(80, Screen.of(sys.stdout).columns)
    show(engine.description, columns)
    show(verdict(engine, options.seed), columns)
    tour, findings = stations_of(engine), {}
    absent = [station.title for name, station in STATIONS.items() if name not in tour]
    if absent:
        show(f"Without the stations that need a ResoLLM: {', '.join(absent)}.", columns)
    for number, (name, station) in enumerate(tour.items(), start=1):
        if reader_is_gone(sys.stdout) and not options.save_figure:
            return
        print()
        show(f"{number}. {station.title}", columns)
        show(station.purpose, columns, "   ")
        findings[name] = visit(engine, station, options.seed)
        for line in findings[name].lines:
            show(printable(line), columns, "   ")
    if options.save_figure:
        save_figure(findings, options.save_figure)
        print(f"\nfigure: {options.save_figure}")
    option = "".join(f" --{n.replace('train', 'checkpoint')} {options[n]}" for n in given)
    reso = "python -m reso" if prog == "demo.py" else "reso"
    print(f"\nNext: {reso} chat{option}     talk to it")
    print(f"      {reso} serve{option}    see each token on a page (extra web)")
    print(f"      {reso} train --data rows.jsonl --out runs/mine    train on text of yours")
