"""Show each stage of a trained model at work: `reso demo` for a checkout."""

from reso.demo import main
from run_core import exits

if __name__ == "__main__":
    exits.run(main)
