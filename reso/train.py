"""Train a ResoLLM, or a Coherent Entropy Reactor where the configuration says `kind: reactor`.

reso train --config small --data guanaco --out runs/first
reso train --config small --data rows.jsonl --minutes 8 model.num_layers=6
reso train --out runs/first --resume
reso train --init_from runs/first --data rows.jsonl --replies_only --out runs/second
reso train --data rows.jsonl --inspect
reso train --config cer --steps 100
reso train --config cer_guanaco
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from reso_llm.training.config import TrainConfig
from run_core import cli
from run_core.config_file import as_arguments
from run_core.wandb_log import chosen_mode

LANGUAGE_MODEL, REACTOR = "language_model", "reactor"
CONFIG = "config.yaml"
CONFIGS = Path(__file__).parent / "configs"
"""The configurations that come with the package."""
COMMON = {
    LANGUAGE_MODEL: (
        "config", "data", "minutes", "out", "resume", "init_from", "replies_only", "columns",
        "inspect", "device",
    ),
    REACTOR: ("config", "steps", "out", "resume", "seed", "device"),
}  # fmt: skip
"""What --help describes of each kind; --help-all describes all."""


def make_parser(kind: str = LANGUAGE_MODEL, prog: str = "train.py") -> cli.Parser:
    """The options of a kind of run; an unknown kind ends the command."""
    what = "Coherent Entropy Reactor" if kind == REACTOR else "ResoLLM"
    parser = cli.Parser(
        prog=prog,
        description=f"Train a {what} from scratch.",
        common=COMMON.get(kind, ()),
        configs=CONFIGS,
    )
    if kind not in (LANGUAGE_MODEL, REACTOR):
        parser.error(f"kind = {kind}: expected {LANGUAGE_MODEL} or {REACTOR}")
    names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
    parser.add_argument("--config", action="config", help=f"YAML file of options, or: {names}")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    if kind == LANGUAGE_MODEL:
        parser.add_argument(
            "--inspect", nargs="?", const="text", type=Literal["text", "json"] | None,
            help="print what --data holds, as text or json, and train nothing",
        )  # fmt: skip
    parser.add_class_arguments(config_class(kind), None, as_group=False)
    return parser


def config_class(kind: str) -> type:
    if kind == REACTOR:
        from cer.training import CERTrainConfig

        return CERTrainConfig
    return TrainConfig


def read_options(args: Sequence[str], prog: str = "train.py") -> tuple[cli.Parser, Any]:
    """The parser of the kind of run that the arguments ask for, and their values.

    A resumed run starts from its own config.yaml, a run with init_from from that model's shape.
    """
    parser = make_parser(prog=prog)
    given = parser.first_look(args, "config", "out", "kind", "wandb")
    own = Path(given.out or TrainConfig.out, CONFIG)
    resumes = "--resume" in args and given.config is None
    if resumes and not own.is_file():
        parser.error(f"--resume: there is no run in {own.parent} ({CONFIG} is missing)")
    file = own if resumes else given.config
    content = parser.file_arguments(str(file)) if file else []
    parser = make_parser(given.kind or kind_of(content), prog)
    earlier = content if resumes else []
    values = parser.read(args, *earlier)
    if values.get("init_from") and not resumes:
        from reso_llm.training.initial import model_options

        values = parser.read(args, *as_arguments(model_options(values.init_from)))
    values.wandb = chosen_mode(os.environ, values.wandb, is_flag=given.wandb is not None)
    return parser, values


def read_config(args: Sequence[str]) -> tuple[Any, bool]:
    """The configuration and whether to resume."""
    return build(*read_options(args))


def build(parser: cli.Parser, values: Any) -> tuple[Any, bool]:
    """The configuration of parsed options, and whether to resume."""
    config = parser.build(config_class(values.kind), values, "config", "resume", "inspect")
    return config, values.resume


def kind_of(arguments: Sequence[str]) -> str:
    """The kind a file's arguments name; before there was the key, a reactor's had a section."""
    for argument in arguments:
        if argument.startswith("--kind="):
            return argument.removeprefix("--kind=")
    is_reactor = any(argument.startswith("--reactor.") for argument in arguments)
    return REACTOR if is_reactor else LANGUAGE_MODEL


def inspect(values: Any) -> str:
    """What --inspect prints of the data that the options name."""
    from reso_llm.data.inspection import inspect_data

    return inspect_data(
        values.data,
        values.inspect,
        columns=values.columns,
        val_spec=values.val_data,
        on_bad_row=values.on_bad_row,
    )


def main(args: Sequence[str] | None = None, prog: str = "train.py") -> None:
    """Train as the arguments say, by default those of this process; prog names the command."""
    parser, values = read_options(sys.argv[1:] if args is None else args, prog)
    if values.get("inspect"):
        print(inspect(values))
        return
    config, resume = build(parser, values)
    (main_reactor if config.kind == REACTOR else main_language_model)(config, resume)


def main_language_model(config: TrainConfig, resume: bool) -> None:
    from reso_llm.training.run import train
    from run_core.world import is_first_process

    summary = train(config, resume=resume)
    if summary.validation is not None and is_first_process():
        print(summary.told(config.out))


def main_reactor(config: Any, resume: bool) -> None:
    from cer.run import train

    config, texts = read_texts(config)
    result = train(config, resume=resume, texts=texts)
    if result.validation is None:
        return
    kl = ", ".join(f"{value:.4f}" for value in result.validation.kl_nats)
    converged = result.validation.convergence
    score = "" if converged is None else f", convergence {converged:.4f}"
    print(f"{config.out}: {result.step:,} steps, validation KL {kl} nats{score}")


def read_texts(config: Any) -> tuple[Any, list[str] | None]:
    """A reactor's configuration, its data's paths absolute, and the texts of task next_byte."""
    if config.task.task != "next_byte" or config.task.data is None:
        return config, None
    from reso_llm.data.sources import absolute, read_documents

    spec = absolute(config.task.data)
    documents = read_documents(spec)
    texts = [d.text or "\n".join(m.content for m in d.messages) for d in documents]
    return replace(config, task=replace(config.task, data=spec)), texts
