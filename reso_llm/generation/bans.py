"""What a text may not write next: an end before its least length, and words that are banned.

    min_tokens   tokens that end a text are ruled out until it has so many     (as vLLM has it)
    bad_words    a token is ruled out where with it the text would contain a word

The second is exact: words are found in the bytes of the text, however they are cut into tokens, and
within longer words too. The rule looks at the next token alone, so a text may begin a word that it
cannot finish.

Shapes: V vocabulary.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from reso_llm.decoding.sampling import NO_MARKS, Marks, SamplingOptions
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.tokens import Tokens

DRY_BREAKERS = (b"\n", b":", b'"', b"*")  # those of its author


class Bans:
    """The bans of a generation's options."""

    def __init__(self, options: GenerationOptions, tokenizer: Tokens) -> None:
        self.min_tokens = options.min_tokens
        self.ends = (*tokenizer.end_ids, *options.stop_token_ids)
        self.words = [word.encode() for word in options.banned]
        self.tokenizer = tokenizer
        self.longest = max(map(len, self.words), default=0)
        self._completing: dict[bytes, list[int]] = {}

    @property
    def any(self) -> bool:
        """Whether there is a ban at all."""
        return self.min_tokens > 0 or bool(self.words)

    def allowed(self, logits: Tensor, new_ids: Sequence[int]) -> Tensor:
        """Logits (1,V) without what may not come after a text's new ids.

        Raises ValueError where nothing is left.
        """
        banned = list(self.ends) if len(new_ids) < self.min_tokens else []
        banned += self._ending_a_word(new_ids) if self.words else []
        banned = [token for token in banned if token < logits.shape[-1]]
        if not banned:
            return logits
        logits = logits.index_fill(-1, torch.tensor(banned, device=logits.device), -torch.inf)
        if bool(logits.isneginf().all()):
            raise ValueError("bad_words and min_tokens leave no token to write: ban less")
        return logits

    def _ending_a_word(self, new_ids: Sequence[int]) -> list[int]:
        """Ids with which a text of these new ids would contain a banned word."""
        last = b"".join(self._names[i] for i in new_ids[-self.longest :])
        banned = list(self._whole)
        for word in self.words:
            for size in range(1, min(len(word), len(last) + 1)):
                if last.endswith(word[:size]):
                    banned += self._beginning(word[size:])
        return banned

    @cached_property
    def _names(self) -> Sequence[bytes]:
        return self.tokenizer.names

    @cached_property
    def _whole(self) -> list[int]:
        """Ids of the tokens that contain a banned word."""
        names = enumerate(self._names)
        return [i for i, name in names if any(word in name for word in self.words)]

    def _beginning(self, rest: bytes) -> list[int]:
        """Ids of the tokens that begin with the rest of a word."""
        if rest not in self._completing:
            names = enumerate(self._names)
            self._completing[rest] = [i for i, name in names if name.startswith(rest)]
        return self._completing[rest]


def marks_of(options: SamplingOptions, tokenizer: Tokens) -> Marks:
    """The tokens that DRY and XTC treat apart; none where neither is on."""
    if not options.dry_multiplier and not options.xtc_probability:
        return NO_MARKS
    names = tokenizer.names
    breakers = [i for i, name in enumerate(names) if any(b in name for b in DRY_BREAKERS)]
    lines = [i for i, name in enumerate(names) if b"\n" in name]
    ends = tokenizer.end_ids
    return Marks(frozenset((*breakers, *ends)), frozenset((*lines, *ends)))
