"""Train a model: `reso train` for a checkout."""

from reso.train import main
from run_core import cli

if __name__ == "__main__":
    cli.run(main)
