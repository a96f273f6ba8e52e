"""python -m benchmarks.making.dialogues: writes the dialogues as JSON lines."""

import argparse
import itertools
import json
from pathlib import Path

from benchmarks.making.dialogues import make
from benchmarks.making.dialogues.sample import passages


def main() -> None:
    parser = argparse.ArgumentParser(description="Write templated dialogues and tidy small talk.")
    parser.add_argument("--count", type=int, default=20_000, help="templated dialogues")
    parser.add_argument("--passages", type=int, default=0, help="tidy passages of sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    spoken = itertools.islice(passages(), args.passages) if args.passages else ()
    with args.out.open("w", encoding="utf-8") as file:
        for messages in itertools.chain(make(args.count, args.seed), spoken):
            print(json.dumps({"messages": messages}, ensure_ascii=False), file=file)


if __name__ == "__main__":
    main()
