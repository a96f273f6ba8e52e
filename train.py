"""Train a ResoLLM, or a Coherent Entropy Reactor where the configuration has a `reactor`.

python train.py --config configs/small.yaml --data guanaco --out runs/first
python train.py --config configs/small.yaml --data rows.jsonl --minutes 8 model.num_layers=6
python train.py --out runs/first --resume
python train.py --config configs/cer.yaml --steps 100
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from reso_llm import cli
from reso_llm.train_config import TrainConfig, changed_keys


def make_parser(config_class: type = TrainConfig) -> cli.Parser:
    what = "ResoLLM" if config_class is TrainConfig else "Coherent Entropy Reactor"
    parser = cli.Parser(prog="train.py", description=f"Train a {what} from scratch.")
    parser.add_argument("--config", action="config", help="YAML file of the options below")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
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
    """The configuration and whether to resume; a resumed run starts from its own config.yaml."""
    parser = make_parser(config_class)
    values = parser.read(args)
    saved = Path(values.out, "config.yaml")
    if values.resume and values.config is None and saved.is_file():
        values = parser.read(["--config", str(saved), *args])
    return parser.build(config_class, values, "config", "resume"), values.resume


def main() -> None:
    if names_reactor(sys.argv[1:]):
        return main_reactor()
    config, resume = read_config(sys.argv[1:])
    from reso_llm.training import train  # here, as it imports torch: mistakes are told at once

    summary = train(config, resume=resume)
    if summary.validation is not None:
        print(
            f"{config.out}: {summary.step:,} steps in {summary.seconds / 60:.1f} minutes, "
            f"validation {summary.validation.bits_per_byte:.4f} bits/byte "
            f"({summary.validation.nats_per_token:.4f} nats/token)"
        )


# --- the reactor ----------------------------------------------------------------------------------


def main_reactor() -> None:
    from cer.training import CERTrainConfig

    config, resume = read_config(sys.argv[1:], CERTrainConfig)
    result = train_reactor(config, resume=resume)
    kl = ", ".join(f"{value:.4f}" for value in result.validation.kl_nats)
    converged = result.validation.convergence
    score = "" if converged is None else f", convergence {converged:.4f}"
    print(f"{config.out}: {result.step:,} steps, validation KL {kl} nats{score}")


def train_reactor(config: Any, *, resume: bool = False) -> Any:
    """Train reactors into config.out: `cer` keeps its sums, this script its checkpoints and log.

    The run directory is locked, written and resumed by the rules of a language model's.
    """
    import torch
    from tqdm import tqdm

    from cer import training
    from reso_llm import checkpoint
    from reso_llm.runlog import RunLog
    from reso_llm.training import catch_signals, write_records

    run_dir = Path(config.out)
    run_dir.mkdir(parents=True, exist_ok=True)
    with checkpoint.lock_run(run_dir):
        checkpoint.clean_leftovers(run_dir)
        start = _reactor_start(config, resume, tqdm.write)
        write_records(run_dir, config, torch.device("cpu"))
        with (
            catch_signals(tqdm.write) as caught,
            RunLog(
                run_dir,
                resume_step=start[1].step if start else None,
                wandb=config.wandb,
                config=config.to_dict(),
                report=tqdm.write,
            ) as log,
        ):
            return training.train(
                config,
                start=start,
                save=lambda *parts: _save_reactors(config, *parts),
                log=log.log,
                stop=lambda: bool(caught),
            )


def _reactor_start(config: Any, resume: bool, report: Any) -> Any:
    """(weights, progress) to go on from, or None; an error where --resume and --out disagree."""
    from cer.training import Progress
    from reso_llm import checkpoint
    from reso_llm.saved_state import unflatten_state
    from reso_llm.training import TrainingError, find_start

    newest = find_start(Path(config.out), resume, report)
    if newest is None:
        return None
    tensors, documents = checkpoint.load_checkpoint(newest, ("model", "optimizer"))
    if "reactor" not in documents["training.json"]["config"]:
        raise TrainingError(f"{newest} is no reactor's checkpoint; choose another --out")
    changed = changed_keys(documents["training.json"]["config"], config.to_dict())
    if changed:
        raise TrainingError(
            f"{newest} was trained with another configuration: {', '.join(changed)}"
        )
    saved = documents["training.json"]
    optimizer = unflatten_state(tensors["optimizer"], saved["state"])
    return tensors["model"], Progress(saved["step"], saved["seconds"], optimizer)


def _save_reactors(config: Any, step: int, weights: Any, progress: Any) -> None:
    from reso_llm import checkpoint
    from reso_llm.saved_state import flatten_state

    optimizer, state = flatten_state(progress.optimizer)
    record = {"step": step, "seconds": progress.seconds, "config": config.to_dict(), "state": state}
    checkpoint.save_checkpoint(
        config.out,
        step,
        tensors={"model": weights, "optimizer": optimizer},
        documents={"training.json": record},
    )
    checkpoint.prune(config.out, config.keep_last, keep_best=False)


if __name__ == "__main__":
    cli.run(main)
