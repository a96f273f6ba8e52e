"""Write a run in the format of other tools: reso export hf RUN OUT."""

from collections.abc import Sequence

from run_core import cli


def main(args: Sequence[str], prog: str) -> None:
    """Export as the arguments say, and print the directory."""
    parser = cli.Parser(
        prog=prog,
        usage="%(prog)s hf RUN OUT",
        description="Write a run in the format of other tools.",
    )
    parser.add_argument("format", choices=["hf"], help="hf: a model of Hugging Face transformers")
    parser.add_argument("run", type=str, help="directory of a run or checkpoint")
    parser.add_argument("out", type=str, help="new directory")
    options = parser.read(args)
    from reso_llm.hf.export import export
    from run_core.files import expanded

    print(export(expanded(options.run), expanded(options.out)))
