"""Chat with a trained model.

python chat.py --checkpoint runs/first
echo "How are you?" | python chat.py --checkpoint runs/first
"""

import contextlib
import sys
from collections.abc import Iterator

from reso_llm import cli
from reso_llm.chat import ChatSession, run_chat
from reso_llm.inference import ResoLLMInference


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="chat.py", description="Chat with a trained model.")
    parser.add_argument("--checkpoint", required=True, type=str, help="run or checkpoint directory")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--top_p", type=float, default=0.9, help="nucleus sampling; 1 is off")
    parser.add_argument("--repetition_penalty", type=float, default=1.1, help="1 is off")
    parser.add_argument("--max_length", type=int, default=128, help="tokens of a reply")
    parser.add_argument("--seed", type=int, default=None, help="repeat the same replies")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    return parser


def terminal_lines() -> Iterator[str]:
    """Lines typed at a prompt with editing and history; Ctrl-C or Ctrl-D ends them."""
    with contextlib.suppress(ImportError):  # some builds of Python have none
        import readline  # noqa: F401  (importing it is what gives input() its line editing)

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def main() -> None:
    options = vars(make_parser().read(sys.argv[1:]))
    directory, device = options.pop("checkpoint"), options.pop("device")
    session = ChatSession(ResoLLMInference.from_pretrained(directory, device), **options)
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{directory}: type to talk; exit, Ctrl-D or Ctrl-C at the prompt leaves")
    sys.stdin.reconfigure(errors="surrogateescape")
    lines = terminal_lines() if interactive else sys.stdin
    run_chat(session, lines, lambda text: print(text, end="", flush=True))


if __name__ == "__main__":
    cli.run(main)
