"""Makes the reactor that comes with the package, cer/shipped/, from a training run.

    python train.py --config configs/cer_guanaco.yaml
    python -m benchmarks.studies.reactor_bytes --run runs/cer_guanaco
    python -m benchmarks.making.ship_reactor --run runs/cer_guanaco

Weights are stored in half precision; the optimizer stays behind. The card's scores are those of
the study's newest rows of the run's seed.
"""

import argparse
from pathlib import Path

from benchmarks.kit.records import Row, read_rows
from benchmarks.kit.tables import table
from cer.pretrained import SHIPPED, load_reactor
from run_core.checkpoint import load_checkpoint, save_directory
from run_core.run import resolve

CARD = """# The shipped reactor

A Coherent Entropy Reactor, mode corrected, of {parameters:,} parameters, after {steps:,} steps on
guanaco's next bytes: it joins four views of each (`cer/next_byte.py`). It is there to be looked
into (`evaluate.py mirror --trained`), not to be used as a language model. Made by
`python -m benchmarks.making.ship_reactor`; load it with `cer.pretrained.load_reactor()`.

Cross-entropy of held-out bytes in nats, with 95 % intervals over {places:,} places:

{scores}
"""


def scores(seed: int) -> tuple[str, Row]:
    """Table of a run's newest rows, and the reactor's. ValueError where there is none."""
    newest = {row["arm"]: row for row in read_rows("reactor_bytes") if row["seed"] == seed}
    if "reactor" not in newest:
        raise ValueError("expected rows of benchmarks.studies.reactor_bytes: run it first")
    lines = [
        (
            arm,
            f"{row['parameters']:,}",
            interval(row["nats_per_byte"]),
            interval(row["minus_bigram"]),
        )
        for arm, row in newest.items()
    ]
    return table(("arm", "parameters", "nats per byte", "minus the bigram"), lines), newest[
        "reactor"
    ]


def interval(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="run directory of train.py")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    args = parser.parse_args()
    tensors, documents = load_checkpoint(resolve(args.run), ("model",))
    config = documents["training.json"]["config"]
    width = config["task"]["num_outcomes"]
    shape = config["reactor"] | {"input_dim": width, "output_dim": width}
    weights = {
        name.removeprefix("0."): tensor.half()
        for name, tensor in tensors["model"].items()
        if name.startswith("0.")
    }
    text, row = scores(config["seed"])
    card = CARD.format(scores=text, **{k: row[k] for k in ("parameters", "steps", "places")})
    stored = {"config.json": shape, "README.md": card}
    save_directory(args.out, tensors={"model": weights}, documents=stored)
    load_reactor(args.out)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.2f} MB\n\n{card}")


if __name__ == "__main__":
    main()
