"""The cache of `ResoForCausalLM`: one `ResoState`, in the clothes of a transformers cache.

Only a module that needs transformers anyway may import this one.
"""

from torch import Tensor
from transformers.cache_utils import Cache

from reso_llm.generation.states import selected
from reso_llm.network import ResoState


class ResoCache(Cache):
    """What the network remembers of the tokens of some rows; `state` is None before the first."""

    is_compileable = False
    is_croppable = False  # the field and the phases cannot be taken back

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: ResoState | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read, padding on the left among them."""
        return 0 if self.state is None else self.state.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on from the rows numbered beam_idx (B,)."""
        self.state = selected(self.state, beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows numbered by indices."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let each row stand `repeats` times in a row."""
        rows = range(len(self.state.tail))
        self.state = selected(self.state, [row for row in rows for _ in range(repeats)])

    def reset(self) -> None:
        """Forget everything."""
        self.state = None

    def crop(self, max_length: int) -> None:
        """Refuse with ValueError: a state holds no earlier one."""
        raise ValueError("a ResoCache cannot be cropped: read the shorter text into a new one")
