"""Chat with a trained model: `reso chat` for a checkout."""

from reso.chat import main
from run_core import exits

if __name__ == "__main__":
    exits.run(main)
