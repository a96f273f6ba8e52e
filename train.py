"""Train a ResoLLM.

python train.py --config configs/small.yaml --data guanaco --out runs/first
python train.py --config configs/small.yaml --data rows.jsonl --minutes 8 model.num_layers=6
python train.py --out runs/first --resume
"""

import sys
from pathlib import Path

from reso_llm import cli
from reso_llm.train_config import TrainConfig


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="train.py", description="Train a ResoLLM from scratch.")
    parser.add_argument("--config", action="config", help="YAML file of the options below")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_class_arguments(TrainConfig, None, as_group=False)
    return parser


def read_config(args: list[str]) -> tuple[TrainConfig, bool]:
    """The configuration and whether to resume; a resumed run starts from its own config.yaml."""
    parser = make_parser()
    values = parser.read(args)
    saved = Path(values.out, "config.yaml")
    if values.resume and values.config is None and saved.is_file():
        values = parser.read(["--config", str(saved), *args])
    return parser.build(TrainConfig, values, "config", "resume"), values.resume


def main() -> None:
    config, resume = read_config(sys.argv[1:])
    from reso_llm.training import train  # here, as it imports torch: mistakes are told at once

    summary = train(config, resume=resume)
    if summary.validation is not None:
        print(
            f"{config.out}: {summary.step:,} steps in {summary.seconds / 60:.1f} minutes, "
            f"validation {summary.validation.bits_per_byte:.4f} bits/byte "
            f"({summary.validation.nats_per_token:.4f} nats/token)"
        )


if __name__ == "__main__":
    cli.run(main)
