"""Chat with a trained model: `reso chat` for a checkout."""

from reso.chat import main
from run_core import cli

if __name__ == "__main__":
    cli.run(main)
