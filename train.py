"""Train a ResoLLM, or a Coherent Entropy Reactor where the configuration has a `reactor`.

python train.py --config configs/small.yaml --data guanaco --out runs/first
python train.py --config configs/small.yaml --data rows.jsonl --minutes 8 model.num_layers=6
python train.py --out runs/first --resume
python train.py --init_from runs/first --data rows.jsonl --replies_only true --out runs/second
python train.py --data rows.jsonl --inspect
python train.py --config configs/cer.yaml --steps 100
"""

import sys
from pathlib import Path
from typing import Any, Literal

import yaml

from reso_llm.training.config import TrainConfig
from run_core import cli


def make_parser(config_class: type = TrainConfig) -> cli.Parser:
    what = "ResoLLM" if config_class is TrainConfig else "Coherent Entropy Reactor"
    parser = cli.Parser(prog="train.py", description=f"Train a {what} from scratch.")
    parser.add_argument("--config", action="config", help="YAML file of the options below")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    if config_class is TrainConfig:
        parser.add_argument(
            "--inspect", nargs="?", const="text", type=Literal["text", "json"],
            help="print what --data holds, as text or json, and train nothing",
        )  # fmt: skip
    parser.add_class_arguments(config_class, None, as_group=False)
    return parser


def names_reactor(args: list[str]) -> bool:
    """Whether --config, or without one the run in --out, has a `reactor` section."""
    given = {"--config": None, "--out": None}
    for i, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        name = f"--{name.removeprefix('--')}"
        if name in given:
            given[name] = value if equals else next(iter(args[i + 1 :]), None)
    run = Path(given["--out"], "config.yaml") if given["--out"] else None
    path = given["--config"] or (run if "--resume" in args else None)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False  # the parser tells what is wrong with it
    return isinstance(content, dict) and "reactor" in content


def read_config(args: list[str], config_class: type = TrainConfig) -> tuple[Any, bool]:
    """The configuration and whether to resume.

    A resumed run starts from its own config.yaml, a run with init_from from that model's shape.
    """
    parser = make_parser(config_class)
    values = parser.read(args)
    saved = Path(values.out, "config.yaml")
    if values.resume and values.config is None and saved.is_file():
        values = parser.read(["--config", str(saved), *args])
    elif values.get("init_from"):
        from reso_llm.training.initial import model_options

        parser.set_defaults(model_options(values.init_from))
        values = parser.read(args)
    return parser.build(config_class, values, "config", "resume", "inspect"), values.resume


def inspected(args: list[str]) -> str | None:
    """What --inspect prints; None when the arguments have no --inspect."""
    if not any(argument.partition("=")[0] == "--inspect" for argument in args):
        return None
    values = make_parser().read(args)
    from reso_llm.data.inspection import inspect_data

    return inspect_data(
        values.data,
        values.inspect,
        columns=values.columns,
        val_spec=values.val_data,
        on_bad_row=values.on_bad_row,
    )


def main() -> None:
    if names_reactor(sys.argv[1:]):
        return main_reactor()
    if (text := inspected(sys.argv[1:])) is not None:
        print(text)
        return
    config, resume = read_config(sys.argv[1:])
    from reso_llm.training.run import train

    summary = train(config, resume=resume)
    if summary.validation is not None:
        print(
            f"{config.out}: {summary.step:,} steps in {summary.seconds / 60:.1f} minutes, "
            f"validation {summary.validation.bits_per_byte:.4f} bits/byte "
            f"({summary.validation.nats_per_token:.4f} nats/token)"
        )


# --- the reactor ----------------------------------------------------------------------------------


def main_reactor() -> None:
    from cer.run import train
    from cer.training import CERTrainConfig

    config, resume = read_config(sys.argv[1:], CERTrainConfig)
    result = train(config, resume=resume)
    kl = ", ".join(f"{value:.4f}" for value in result.validation.kl_nats)
    converged = result.validation.convergence
    score = "" if converged is None else f", convergence {converged:.4f}"
    print(f"{config.out}: {result.step:,} steps, validation KL {kl} nats{score}")


if __name__ == "__main__":
    cli.run(main)
