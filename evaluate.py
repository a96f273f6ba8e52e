"""Evaluate a trained model.

python evaluate.py lm --checkpoint runs/first --data heldout.jsonl
python evaluate.py lm --checkpoint runs/first --data heldout.jsonl --json -
"""

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reso_llm import cli
from reso_llm.data import BadRows, tokenise_all
from reso_llm.evaluation import score_split
from reso_llm.inference import ResoLLMInference


def make_parser() -> cli.Parser:
    lm = cli.Parser(prog="evaluate.py lm", description="Bits per byte of a text under a model.")
    lm.add_argument("--checkpoint", required=True, type=str, help="run or checkpoint directory")
    lm.add_argument("--data", required=True, type=str, help="file, hub id, guanaco or sample")
    lm.add_argument("--on_bad_row", choices=["error", "skip"], default="error")
    lm.add_argument("--stride", type=int, help="new tokens per window; default: half the context")
    lm.add_argument("--json", type=str, help="write the result to this file, - for stdout")
    lm.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    parser = cli.Parser(prog="evaluate.py", description="Evaluate a trained model.")
    parser.add_subcommands().add_subcommand("lm", lm, help=lm.description)
    return parser


def evaluate_lm(options: Any) -> dict[str, Any]:
    """Score every byte of the data once; the result as plain values."""
    engine = ResoLLMInference.from_pretrained(options.checkpoint, options.device)
    bad_rows = BadRows()
    split = tokenise_all(
        options.data, engine.tokenizer, on_bad_row=options.on_bad_row, report=bad_rows
    )
    if bad_rows.count:
        print(bad_rows.summary(), file=sys.stderr)
    targets = split.num_tokens - split.num_documents
    with tqdm(total=targets, desc="scoring", unit="token", leave=False) as bar:
        score = score_split(engine.model, split, stride=options.stride, progress=bar.update)
    return {
        "checkpoint": options.checkpoint,
        "data": options.data,
        "context": engine.config.max_seq_len,
        "stride": options.stride or engine.config.max_seq_len // 2,
        "skipped_rows": bad_rows.count,
        **score.to_dict(),
    }


def main() -> None:
    options = make_parser().read(sys.argv[1:]).lm
    result = evaluate_lm(options)
    text = json.dumps(result, indent=2)
    if options.json == "-":
        print(text)
        return
    print(
        f"{result['bits_per_byte']:.4f} bits/byte, {result['nats_per_token']:.4f} nats/token, "
        f"perplexity {result['perplexity']:.2f} per token and {result['byte_perplexity']:.3f} per "
        f"byte\n{result['bytes']:,} bytes, {result['tokens']:,} tokens, "
        f"{result['documents']:,} documents, each byte scored once"
    )
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    cli.run(main)
