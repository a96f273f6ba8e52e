"""Demonstration: what a trained model says, how sure it is, and how fast.

python demo.py --checkpoint runs/quickstart
"""

import math
import statistics
import sys

from reso_llm import cli
from reso_llm.terminal import printable
from reso_llm.conversation import Message
from reso_llm.inference import GenerationResult, ResoLLMInference

PROMPTS = (
    "Hi! How was your weekend?",
    "What kind of music do you like?",
    "Do you have any plans for tomorrow?",
)
BARS = " ▁▂▃▄▅▆▇█"


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="demo.py", description="Show a trained model at work.")
    parser.add_argument("--checkpoint", required=True, type=str, help="run or checkpoint directory")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    return parser


def sparkline(values: tuple[float, ...], top: float, width: int = 60) -> str:
    """Values from 0 to `top` as one line of bars, at most `width` of them (means of groups)."""
    size = -(-len(values) // width)
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    levels = (statistics.fmean(group) / top * (len(BARS) - 1) for group in groups)
    return "".join(BARS[round(min(max(level, 0), len(BARS) - 1))] for level in levels)


def describe(engine: ResoLLMInference) -> str:
    """One line about the model."""
    config = engine.config
    parameters = sum(p.numel() for p in engine.model.parameters())
    return (
        f"{parameters / 1e6:.1f}M parameters: {config.num_layers} layers, {config.dim} wide, "
        f"context {config.max_seq_len}, vocabulary {config.vocab_size}"
    )


def metrics(result: GenerationResult, vocab_size: int) -> str:
    """Two lines about a reply: its entropy over time, and counts."""
    top = math.log(vocab_size)
    trace = result.entropy_trace
    speed = result.tokens_generated / result.generation_time_ms * 1000
    return (
        f"  entropy |{sparkline(trace, top)}| 0 to ln V = {top:.1f} nats, "
        f"mean {statistics.fmean(trace):.2f}\n"
        f"  {result.tokens_generated} tokens, {speed:.0f} tokens/s, ended by: {result.stop_reason}"
    )


def main() -> None:
    options = make_parser().read(sys.argv[1:])
    engine = ResoLLMInference.from_pretrained(options.checkpoint, options.device)
    print(describe(engine))
    for prompt in PROMPTS:
        print(f"\n> {prompt}\n  ", end="")
        result = engine.generate(
            [Message("user", prompt)],
            max_length=80,
            temperature=0.7,
            top_p=0.9,
            repetition_penalty=1.1,
            seed=options.seed,
            on_text=lambda text: print(printable(text), end="", flush=True),
        )
        print(f"\n{metrics(result, engine.config.vocab_size)}")
    print(f"\nTalk to it: python chat.py --checkpoint {options.checkpoint}")


if __name__ == "__main__":
    cli.run(main)
