"""Say what a run, a checkpoint or a data file is.

reso inspect runs/first
reso inspect rows.jsonl --columns prompt=question,reply=answer
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from run_core import cli
from run_core.files import expanded
from run_core.terminal import Screen


def make_parser(prog: str) -> cli.Parser:
    parser = cli.Parser(
        prog=prog,
        usage="%(prog)s WHAT [options]",
        description="Say what a run, a checkpoint or a data file is.",
    )
    add = parser.add_argument
    add("what", type=str, help="a directory of a run or checkpoint, or data as train takes it")
    add("--form", type=Literal["text", "json"], default="text", help="of what is said of data")
    add("--columns", type=str | None, help="what the data's columns hold; see train")
    add("--on_bad_row", type=Literal["error", "skip"], default="error", help="of data")
    return parser


def main(args: Sequence[str] | None = None, prog: str = "reso inspect") -> None:
    """Print what the argument names; ValueError or CheckpointError where that cannot be read."""
    options = make_parser(prog).read(sys.argv[1:] if args is None else args)
    directory = Path(expanded(options.what))
    if any((directory / name).exists() for name in ("MANIFEST.json", "checkpoints", "config.yaml")):
        screen = Screen(sys.stdout)
        for name, value in described(directory):
            screen.note(f"{name:<12} {value}")
        return
    from reso_llm.data.inspection import inspect_data

    columns, on_bad_row = options.columns, options.on_bad_row
    print(inspect_data(options.what, options.form, columns=columns, on_bad_row=on_bad_row))


def described(directory: Path) -> Iterator[tuple[str, str]]:
    """Name and value of each line about a run or checkpoint; its best one is read and verified.

    Raises CheckpointError for one that is missing or damaged.
    """
    from run_core.checkpoint import load_checkpoint
    from run_core.run import resolve

    path = resolve(directory)
    tensors, documents = load_checkpoint(path)
    model, training = documents.get("config.json"), documents.get("training.json", {})
    size = sum(tensor.numel() for tensor in tensors["model"].values())
    yield "what", "a ResoLLM" if model else "Coherent Entropy Reactors"
    yield "checkpoint", f"{path}, every byte as its manifest says"
    yield "size", f"{size:,} numbers (weights and counts)" + (f": {_shape(model)}" if model else "")
    if model:
        yield from _stages(model)
    if "step" in training:
        yield "steps", f"{training['step']:,}"
    yield from _run_lines(directory)


def _shape(model: dict[str, Any]) -> str:
    return (
        f"{model['num_layers']} layers, {model['dim']} wide, {model['num_heads']} heads, "
        f"context {model['max_seq_len']}, vocabulary {model['vocab_size']:,}"
    )


def _stages(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The stages of the resonance stack, those that are on and those that are off."""
    switches = {name: part["enabled"] for name, part in model.items() if isinstance(part, dict)}
    for is_on, title in ((True, "stages"), (False, "switched off")):
        yield title, ", ".join(n for n, on in switches.items() if on == is_on) or "none"


def _run_lines(directory: Path) -> Iterator[tuple[str, str]]:
    """What the run's own files say: its data, how far it came, its score."""
    from run_core.config_file import read_mapping
    from run_core.runlog import read_metrics

    if (directory / "config.yaml").is_file():
        config = read_mapping(str(directory / "config.yaml"))
        if "data" in config:
            yield "data", config["data"]
    if not (directory / "metrics.jsonl").is_file():
        return
    rows = read_metrics(directory / "metrics.jsonl")
    timed = [row for row in rows if "seconds" in row]
    if timed:
        last = timed[-1]
        yield "trained", f"{last['step']:,} steps in {last['seconds'] / 60:.1f} minutes"
    for name, unit in (
        ("validation_bits_per_byte", "bits/byte"), ("validation_kl_nats", "nats"),
    ):  # fmt: skip
        scored = [row for row in rows if name in row]
        if scored:
            best = min(scored, key=lambda row: row[name])
            yield "score", f"{best[name]:.4f} {unit} on validation data, step {best['step']:,}"
