"""Train a model: `reso train` for a checkout."""

from reso.train import main
from run_core import exits

if __name__ == "__main__":
    exits.run(main)
