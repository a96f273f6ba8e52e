"""Loading a command's modules and model without looking for garbage among them.

Importing torch and this project leaves some 300,000 objects, none of them garbage. Python walks
through all of them while they grow, and again whenever it looks for old garbage later on.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """What is loaded meanwhile counts as permanent: no later search for garbage walks through it.

    For the main function of a command; a library leaves this to its caller. Does nothing where the
    collector is off.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
