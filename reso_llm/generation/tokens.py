"""What a generation asks of a tokenizer: ResoLLM's own, or one of transformers (`reso_llm.hf`)."""

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """Turns ids that arrive one by one into text, in whole characters."""

    def feed(self, token: int, /) -> str:
        """Return the text that one more id completes."""
        ...

    def flush(self) -> str:
        """Return the rest after the last id."""
        ...


class Tokens(Protocol):
    """A tokenizer. Its special tokens are no words: they have no text of their own."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """The special tokens, those that end a text among them."""
        ...

    @property
    def names(self) -> Sequence[bytes]:
        """The bytes of every token in the order of the ids, none for a special token."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal tokenizers alone."""
        ...

    @property
    def template_words(self) -> frozenset[str]:
        """Words in lower case that the chat template writes into a prompt: nobody said them."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        ...

    def stream_decoder(self) -> Decoder:
        """Make a decoder for one text."""
        ...
