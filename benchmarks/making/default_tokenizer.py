"""Writes reso_llm/default_tokenizer.json again, byte for byte.

    python -m benchmarks.making.default_tokenizer --guanaco data/guanaco_900.jsonl

4096 tokens learned from the `sample` dialogue (chitchat-dataset 0.9.0, 12.5 MB of English) and
the guanaco rows (1.5 MB in many languages), the latter counted four times. That weight, measured
with 100 guanaco rows and 500 sample conversations held out, in UTF-8 bytes per token:

    guanaco counted   1x     2x     4x     8x     guanaco alone
    on guanaco        2.746  2.865  2.947  3.010  3.078
    on sample         3.714  3.684  3.635  3.562
"""

from __future__ import annotations

import argparse
from pathlib import Path

import reso_llm
from reso_llm.data.sources import read_documents
from reso_llm.tokenizer import ResoTokenizer

VOCAB_SIZE = 4096
GUANACO_WEIGHT = 4


def main() -> None:
    """Train and write; the result depends on the two data files alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guanaco", required=True, help="path to guanaco_900.jsonl")
    parser.add_argument("--talk", default="sample", help="the data read beside guanaco")
    default = Path(reso_llm.__file__).parent / "default_tokenizer.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    specs = [args.talk, *[args.guanaco] * GUANACO_WEIGHT]
    texts = (
        message.content
        for spec in specs
        for document in read_documents(spec)
        for message in document.messages
    )
    tokenizer = ResoTokenizer.train(texts, VOCAB_SIZE)
    tokenizer.save(args.out)
    print(f"{args.out}: {tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint}")


if __name__ == "__main__":
    main()
