"""python -m reso_llm.server --checkpoint RUN --port 8000"""

import sys

from run_core import cli


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="-m reso_llm.server", description="Serve a model: a page, and OpenAI's API."
    )
    add = parser.add_argument
    add("--checkpoint", type=str | None, help="run or checkpoint directory; default: the shipped")
    add("--model", type=str | None, help="instead: smollm2, or a model of transformers")
    add("--name", type=str, default="reso", help="the model's name in the API")
    add("--host", type=str, default="127.0.0.1", help="another address needs a token")
    add("--port", type=int, default=8000, help="0 takes a free one")
    add("--token", type=str | None, help="what clients send as their API key")
    add("--device", type=str, default="cpu", help="cpu or cuda")
    return parser


def main() -> None:
    parser = make_parser()
    options = vars(parser.read(sys.argv[1:]))
    checkpoint, model = options.pop("checkpoint"), options.pop("model")
    if checkpoint and model:
        parser.error("checkpoint and model are two models: give one of them")
    from reso_llm.hf.engine import HFEngine
    from reso_llm.inference import ResoLLMInference
    from reso_llm.server.guard import check_address
    from reso_llm.server.serve import serve

    check_address(options["host"], options["token"])
    loads, what = (HFEngine, model) if model else (ResoLLMInference, checkpoint)
    serve(loads.from_pretrained(what, options.pop("device")), **options)


if __name__ == "__main__":
    cli.run(main)
