"""Chat with a trained model.

reso chat
reso chat --checkpoint runs/first --phase-slip
reso chat --model smollm2
reso chat --session talk.session
echo "How are you?" | reso chat
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from run_core import cli
from run_core.files import require_writable
from run_core.loading import loading
from run_core.terminal import is_interactive

COMMON = (
    "checkpoint", "model", "system", "session", "temperature", "max_length", "seed", "metrics",
    "srb", "phase_slip",
)  # fmt: skip
"""What --help describes; --help-all describes all."""
SAMPLERS: tuple[tuple[str, type, float, str], ...] = (
    ("top_k", int, 0, "most probable tokens that are kept; 0 is off"),
    ("min_p", float, 0.0, "least probability, times that of the best; 0 is off"),
    ("typical_p", float, 1.0, "typical sampling; 1 is off"),
    ("top_n_sigma", float, 0.0, "deviations below the best logit that are kept; 0 is off"),
    ("xtc_probability", float, 0.0, "of excluding the top choices; 0 is off"),
    ("xtc_threshold", float, 0.1, "probability of a top choice"),
    ("mirostat_tau", float, 0.0, "mirostat 2, its target in bits; 0 is off"),
    ("mirostat_eta", float, 0.1, "how fast mirostat follows"),
    ("presence_penalty", float, 0.0, "for tokens that the reply has, -2 to 2"),
    ("frequency_penalty", float, 0.0, "the same, times their count"),
    ("dry_multiplier", float, 0.0, "against repeats of several tokens; 0 is off, 0.8 usual"),
    ("dry_base", float, 1.75, "how that grows with a repeat's length"),
    ("dry_allowed_length", int, 2, "tokens of a repeat that is free of it"),
    ("min_tokens", int, 0, "new tokens before the model may end its reply"),
)
"""Name, type, default and help of further options of `GenerationOptions`."""


def make_parser(prog: str = "chat.py") -> cli.Parser:
    parser = cli.Parser(prog=prog, description="Chat with a trained model.", common=COMMON)
    add = parser.add_argument
    add("--checkpoint", type=str | None, help="run or checkpoint directory; default: the shipped")
    add(
        "--model",
        type=str | None,
        help="smollm2, or a model of transformers: DIR, owner/name",
    )
    add("--temperature", type=float, default=0.7, help="0 is greedy")
    add("--top_p", type=float, default=0.9, help="nucleus sampling; 1 is off")
    add("--repetition_penalty", type=float, default=1.1, help="1 is off")
    for name, kind, default, text in SAMPLERS:
        add(f"--{name}", type=kind, default=default, help=text)
    add("--bad_words", type=str, nargs="+", default=[], help="what no reply may contain")
    add("--max_length", type=int, default=128, help="tokens of a reply")
    add("--system", type=str | None, help="system message; it stays when the context is full")
    add("--session", type=str | None, help="file to go on from and to save to after each line")
    add("--seed", type=int | None, help="repeat the same replies")
    add("--device", type=str, default="cpu", help="cpu or cuda")
    add("--metrics", type=bool | None, help="what was measured; default: at a terminal")
    add("--srb", type=bool, default=False, help="stop when the text has settled")
    add("--phase_slip", type=bool, default=False, help="take repeats back; text waits 16 tokens")
    add("--stochastic_resonance", type=bool, default=False, help="noise on the logits in loops")
    add("--stability_temperature", type=bool, default=False, help="as the monitor suggests")
    add("--auto_temperature", type=bool, default=True, help="that, if the monitor is calibrated")
    return parser


def main(args: Sequence[str] | None = None, prog: str = "chat.py") -> None:
    """Chat as the arguments say, by default those of this process; prog names the command."""
    options = vars(make_parser(prog).read(sys.argv[1:] if args is None else args))
    with loading():
        from reso_llm.chat.commands import run_in_terminal
        from reso_llm.chat.session import ChatSession
        from reso_llm.decoding.controllers import controllers_by_name
        from reso_llm.inference import load_engine

        engine = load_engine(*(options.pop(name) for name in ("checkpoint", "model", "device")))
    known = controllers_by_name(engine.srb).items()
    controllers = tuple(controller for name, controller in known if options.pop(name))
    metrics, file = options.pop("metrics"), options.pop("session")
    if file is not None:
        file = Path(file).expanduser()
        require_writable(file, "session")
    session = ChatSession(engine, controllers=controllers, **options)
    run_in_terminal(session, is_interactive() if metrics is None else metrics, file)
