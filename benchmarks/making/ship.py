"""Makes the checkpoint that comes with the package, reso_llm/shipped/, from a training run.

    python -m benchmarks.making.data --out runs
    python -m benchmarks.making.dialogues --count 30000 --passages 3000 \\
        --out runs/dialogues.jsonl
    python -m benchmarks.making.default_tokenizer --guanaco runs/train.jsonl \\
        --talk runs/dialogues.jsonl --out runs/tokenizer.json
    python train.py --config configs/shipped.yaml --out runs/shipped
    python -m benchmarks.making.ship --run runs/shipped --heldout runs/heldout.jsonl
    python evaluate.py srb --replay --record
    python evaluate.py talk --data runs/heldout.jsonl \\
        --train runs/dialogues.jsonl+runs/train.jsonl --record
    python -m benchmarks.making.ship --run runs/shipped --heldout runs/heldout.jsonl \\
        --srb benchmarks/results/srb.jsonl --talk benchmarks/results/talk.jsonl \\
        --clean runs/clean.jsonl

A text that was trained on is no measure of a clean one: a monitor calibrated on it warns in seven
of ten windows of unseen text. So half of the held-out rows is given, and the study of stability
reads the other half.

A study of an earlier model with the same name is in the way of a new one: first move its directory
results/srb/shipped and its rows of results/srb.jsonl away.

Weights and tables are stored in half precision, and scored as stored; the optimizer stays behind.
The model card is made here too, so that its numbers are those of this very file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.kit.first_questions import FIRST
from benchmarks.kit.records import num_parameters, weights_hash
from benchmarks.kit.tables import table
from benchmarks.tasks import talk
from reso_llm.data.prepare import tokenise_all
from reso_llm.inference import SHIPPED, ResoLLMInference
from reso_llm.training.calibration import stability_calibration
from reso_llm.training.evaluation import LanguageModelScore, score_split
from run_core.checkpoint import load_checkpoint, save_directory
from run_core.run import resolve

SHOWN_REPLIES = 20  # every third first question, whatever the reply
UNSCORED = dict.fromkeys(("verdict", "scores", "replies"), "Not scored yet.")
STABILITY_TEXTS = 100  # that the stability monitor is calibrated on
CARD = Path(__file__).with_name("model_card.md")


def main() -> None:
    """Write, load, score, and write again with the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="run directory of train.py")
    parser.add_argument("--heldout", required=True, help="conversations that were not trained on")
    parser.add_argument("--clean", help="texts that the stability monitor is to find clean")
    parser.add_argument("--srb", type=Path, help="rows of evaluate.py srb: keep its rule")
    parser.add_argument("--talk", type=Path, help="rows of evaluate.py talk: for the card")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    args = parser.parse_args()
    tensors, documents = load_checkpoint(resolve(args.run))
    training = documents["training.json"]
    counters = training["counters"]
    stored = {
        "config.json": documents["config.json"],
        "tokenizer.json": documents["tokenizer.json"],
        "training.json": {
            "tokenizer_fingerprint": training["tokenizer_fingerprint"],
            "system_messages": training["system_messages"],
            "srb": rule_of(args.srb, args.out.name) if args.srb else {},
        },
    }
    half = {name: t.half() if t.is_floating_point() else t for name, t in tensors["model"].items()}
    save_directory(args.out, tensors={"model": half}, documents=stored)
    engine = ResoLLMInference.from_pretrained(args.out)
    texts = tokenise_all(args.clean or training["config"]["data"], engine.tokenizer)
    calibration = stability_calibration(texts, engine.model, STABILITY_TEXTS)
    stored["training.json"]["stability_calibration"] = calibration._asdict()
    c = engine.config
    card = CARD.read_text(encoding="utf-8").format(
        parameters=num_parameters(engine.model),
        layers=c.num_layers,
        dim=c.dim,
        context=c.max_seq_len,
        vocabulary=c.vocab_size,
        pairs=len(engine.model.prsc.entry_ids) - 1,
        steps=counters["step"],
        tokens=counters["tokens"],
        minutes=counters["seconds"] / 60,
        seed=training["config"]["seed"],
        half=score(engine, args.heldout).bits_per_byte,
        full=score(ResoLLMInference.from_pretrained(args.run), args.heldout).bits_per_byte,
        validation=counters["best_bits_per_byte"],
        **(talk_of(args.talk, args.out) if args.talk else UNSCORED),
    )
    save_directory(args.out, tensors={"model": half}, documents=stored | {"README.md": card})
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.2f} MB\n\n{card}")


def rule_of(path: Path, model: str) -> dict[str, Any]:
    """Options of SRB in the newest replay of a model. ValueError where there is none."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rules = [r["rule"] for r in rows if r.get("kind") == "replay" and r["model"] == model]
    if not rules:
        raise ValueError(
            f"{path}: expected a replay of {model}: run evaluate.py srb --replay --record"
        )
    return {name: value for name, value in rules[-1].items() if value is not None}


def talk_of(path: Path, checkpoint: Path) -> dict[str, str]:
    """The card's parts from the rows of these very weights. ValueError where there is none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    weights = weights_hash(checkpoint)
    rows = [row for row in map(json.loads, lines) if row["weights"] == weights]
    if not rows:
        raise ValueError(f"{path}: expected rows of {checkpoint}: run evaluate.py talk --record")
    missed = ", ".join(talk.missed(rows))
    places = range(0, len(FIRST), len(FIRST) // SHOWN_REPLIES)
    replies = [(FIRST[i], rows[0]["replies"][i].replace("\n", " ")) for i in places]
    return {
        "verdict": f"It misses its bars for {missed}." if missed else "It meets all its bars.",
        "scores": talk.text(rows),
        "replies": table(("said to it", f"its reply, seed {rows[0]['seed']}"), replies),
    }


def score(engine: ResoLLMInference, path: str) -> LanguageModelScore:
    with torch.inference_mode():
        return score_split(engine.model, tokenise_all(path, engine.tokenizer))


if __name__ == "__main__":
    main()
