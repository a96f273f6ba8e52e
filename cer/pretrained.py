"""The trained reactor that comes with the package, cer/shipped/, and its loading.

It joined four views of guanaco's next byte (`cer.next_byte`); its card, shipped/README.md, has the
scores. Weights are stored in half precision and read as float32.
"""

from pathlib import Path

from cer.reactor import CoherentEntropyReactor
from run_core.checkpoint import build_from, get_document, load_checkpoint

SHIPPED = Path(__file__).with_name("shipped")


def load_reactor(path: str | Path = SHIPPED) -> CoherentEntropyReactor:
    """The reactor of a directory of `benchmarks.making.ship_reactor`, in eval mode.

    Raises CheckpointError, in one line, where the directory is missing, damaged or another's.
    """
    tensors, documents = load_checkpoint(Path(path), ("model",))
    options = get_document(documents, path, "config.json")
    reactor = build_from(CoherentEntropyReactor, options, f"{path}/config.json")
    reactor.load_state_dict(tensors["model"])
    return reactor.eval()
