"""A guided tour of a trained model: each stage on real text, with and without it.

python demo.py
python demo.py --checkpoint runs/quickstart --save-figure tour.png
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
    if options.train and options.checkpoint:
        parser.error("train and checkpoint are two models: give one of them")
    from reso_llm.inference import ResoLLMInference
    from reso_llm.tour.figures import check_figure, save_figure
    from reso_llm.tour.stations import stations_of, visit
    from run_core.streams import reader_is_gone
    from run_core.terminal import Screen, printable

    if options.save_figure:
        check_figure(options.save_figure)
    if options.train:
        train_first(options.train)
    checkpoint = options.train or options.checkpoint
    engine = ResoLLMInference.from_pretrained(checkpoint, options.device)
    columns = min(80, Screen.of(sys.stdout).columns)
    show(engine.description, columns)
    tour, findings = stations_of(engine.model), {}
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
    print("\nTalk to it: python chat.py" + (f" --checkpoint {checkpoint}" if checkpoint else ""))


if __name__ == "__main__":
    cli.run(main)
