"""reso serve --checkpoint RUN --port 8000"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from run_core import cli, exits
from run_core.loading import loading


def make_parser(prog: str = "python -m reso_llm.server") -> cli.Parser:
    parser = cli.Parser(prog=prog, description="Serve a model: a page, and OpenAI's API.")
    add = parser.add_argument
    add("--checkpoint", type=str | None, help="run or checkpoint directory; default: the shipped")
    add("--model", type=str | None, help="instead: smollm2, or a model of transformers")
    add("--name", type=str, default="reso", help="the model's name in the API")
    add("--host", type=str, default="127.0.0.1", help="another address needs a token")
    add("--port", type=int, default=8000, help="0 takes a free one")
    add("--token", type=str | None, help="what clients send as their API key")
    add("--device", type=str, default="cpu", help="cpu or cuda")
    return parser


def main(args: Sequence[str] | None = None, prog: str = "python -m reso_llm.server") -> None:
    """Serve as the arguments say, by default those of this process, until Ctrl-C."""
    options = vars(make_parser(prog).read(sys.argv[1:] if args is None else args))
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise ValueError(f'a server needs {" and ".join(missing)}: pip install "reso-llm[web]"')
    with loading():
        from reso_llm.inference import load_engine
        from reso_llm.server.guard import check_address
        from reso_llm.server.serve import serve

        check_address(options["host"], options["token"])
        engine = load_engine(*(options.pop(name) for name in ("checkpoint", "model", "device")))
    serve(engine, **options)


if __name__ == "__main__":
    exits.run(main)
