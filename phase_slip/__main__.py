"""See slips as they happen: a prompt written greedily, then as published, then without repeats.

python -m phase_slip
python -m phase_slip --model smollm2 --prompt "Once upon a time" --loops
"""

import sys

from run_core import cli, exits

PROMPT = "The scientist opened the door to the secret lab and discovered"
LOOP_PATIENCE = 4  # tokens in a loop before a shock


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m phase_slip", description="Write a text with Phase-Slip, its slips marked."
    )
    add = parser.add_argument
    add("--checkpoint", type=str | None, help="run or checkpoint directory; default: the shipped")
    add("--model", type=str | None, help="smollm2, or a model of transformers: DIR, owner/name")
    add("--prompt", type=str, default=PROMPT, help="a text to continue")
    add("--max_length", type=int, default=100, help="new tokens")
    add("--spike_nats", type=float, default=3.5, help="entropy above which a published shock comes")
    add("--loops", type=bool, default=False, help="published shocks in loops, too")
    add("--seed", type=int, default=0, help="of what is drawn at a shock")
    add("--device", type=str, default="cpu", help="cpu or cuda")
    return parser


def main() -> None:
    options = make_parser().read(sys.argv[1:])
    from reso_llm.decoding.controllers import PhaseSlip
    from reso_llm.generation.options import options_of
    from reso_llm.inference import load_engine
    from run_core.terminal import Screen

    loop_patience = LOOP_PATIENCE if options.loops else None
    shocks = PhaseSlip.published(spike_nats=options.spike_nats, loop_patience=loop_patience)
    ways = {"greedy": (), "Phase-Slip as published": (shocks,), "Phase-Slip": (PhaseSlip(),)}
    options_of(options.max_length, {"temperature": 0.0})  # refused before the prompt is written
    engine = load_engine(options.checkpoint, options.model, options.device)
    screen = Screen.of(sys.stdout)
    screen.note(engine.description)
    for title, controllers in ways.items():
        screen.note(f"\n{title}:")
        screen.write(options.prompt)
        result = engine.generate(
            options.prompt,
            options.max_length,
            temperature=0.0,
            seed=options.seed,
            controllers=controllers,
            on_text=screen.write,
            on_event=lambda event: screen.mark(f"[{event.cause}]"),
        )
        screen.note(f"\nslips: {len(result.events)} in {result.tokens_generated} tokens")


if __name__ == "__main__":
    exits.run(main)
