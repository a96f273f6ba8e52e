"""The stages of the network, one file each: equation, state, both forms, and how to silence it.

A stage file reads in one order: the equation and its source, the state, pure functions, the torch
module (the parallel form: all tokens of a batch) and the numpy step (the one-token form: one more
token of each of R rows on a CPU). The two forms are tested to be equal.

A buffer that is no part of a checkpoint is made by `constants` of its module, from the module's
shape alone: who builds a network without memory for its tensors calls it again afterwards.

`ResoNetwork.stages()` names the stages of a network by their switch in the configuration. The rest
of the package takes its lists from there or from `reso_llm.config.STAGES`.
"""

from typing import Any, Protocol

from torch import Tensor, nn


def register_constants(module: nn.Module) -> None:
    """Make the tensors of `module.constants()` buffers of the module that no checkpoint holds."""
    for name, tensor in module.constants().items():
        module.register_buffer(name, tensor, persistent=False)


class Stage(Protocol):
    """The methods that the network, the stepper and the ablations call on a stage."""

    def init_state(self, batch: int, like: Tensor) -> tuple | None:
        """The state before the first token of `batch` rows; None for a stage without one.

        `like` gives dtype and device.
        """

    def stepper(self, state: Any) -> Any:
        """The one-token form, going on from a state; its `.state` gives the state back.

        None for a stage that does nothing for each token.
        """

    def silence(self) -> None:
        """Change the stage in place so that it adds exactly nothing.

        The coherence gate adds nothing, it takes away: silent, it lets every token go deep.
        """
