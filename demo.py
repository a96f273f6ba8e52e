"""A guided tour of a trained model: each stage on real text, with and without it.

python demo.py
python demo.py --checkpoint runs/quickstart --save-figure tour.png
python demo.py --model smollm2
python demo.py --train runs/demo
"""

import os
import sys
import textwrap
from pathlib import Path

from reso_llm.training.config import TrainConfig
from run_core import cli
from run_core.wandb_log import chosen_mode

QUICKSTART = Path(__file__).parent / "configs" / "quickstart.yaml"


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="demo.py", description="Show each stage of a trained model at work.")
    add = parser.add_argument
    add("--checkpoint", type=str | None, help="run or checkpoint directory; default: the shipped")
    add("--model", type=str | None, help="smollm2, or a model of transformers: DIR, owner/name")
    add("--train", type=str | None, help="train with configs/quickstart.yaml into this run first")
    add("--save_figure", type=str | None, help="draw the tour into this file (png, svg or pdf)")
    add("--seed", type=int, default=0, help="of the damage and of what is sampled")
    add("--device", type=str, default="cpu", help="cpu or cuda")
    return parser


def train_first(out: str) -> None:
    """Train as `train.py --config configs/quickstart.yaml --out <out>` does, or go on with it."""
    parser = cli.Parser(prog="demo.py")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TrainConfig, None, as_group=False)
    values = parser.read([f"--config={QUICKSTART}", f"--out={out}"])
    values.wandb = chosen_mode(os.environ, values.wandb, is_flag=False)
    from reso_llm.training.run import train

    train(parser.build(TrainConfig, values, "config"), resume=Path(out, "config.yaml").is_file())


def show(text: str, columns: int, indent: str = "") -> None:
    """Print text in lines of at most `columns` characters, now."""
    lines = textwrap.wrap(text, columns - len(indent), subsequent_indent="  ")
    print(textwrap.indent("\n".join(lines), indent), flush=True)


def main() -> None:
    parser = make_parser()
    options = parser.read(sys.argv[1:])
    given = [name for name in ("train", "checkpoint", "model") if options[name]]
    if len(given) > 1:
        parser.error(f"{' and '.join(given)} are {len(given)} models: give one of them")
    if options.model and options.save_figure:
        parser.error("save_figure draws the stages of a ResoLLM: leave it out, or leave out model")
    from reso_llm.hf.engine import HFEngine
    from reso_llm.inference import ResoLLMInference
    from reso_llm.tour.figures import check_figure, save_figure
    from reso_llm.tour.stations import STATIONS, stations_of, visit
    from reso_llm.tour.verdict import verdict
    from run_core.streams import reader_is_gone
    from run_core.terminal import Screen, printable

    if options.save_figure:
        check_figure(options.save_figure)
    if options.train:
        train_first(options.train)
    checkpoint = options.train or options.checkpoint
    loads, source = (HFEngine, options.model) if options.model else (ResoLLMInference, checkpoint)
    engine = loads.from_pretrained(source, options.device)
    columns = min(80, Screen.of(sys.stdout).columns)
    show(engine.description, columns)
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
    print()
    show(verdict(engine, options.seed), columns)
    if options.save_figure:
        save_figure(findings, options.save_figure)
        print(f"\nfigure: {options.save_figure}")
    option = f" --{given[0].replace('train', 'checkpoint')} {source}" if given else ""
    print(f"\nTalk to it: python chat.py{option}")


if __name__ == "__main__":
    cli.run(main)
