"""Text of a generation as it becomes certain: token bytes in, whole characters out.

What may still turn out to be the start of a stop string is held back, as is half a character.
"""

from collections.abc import Callable

from reso_llm.tokenizer import ResoTokenizer


class TextStream:
    """The text of one row; on_text is told every piece of it once."""

    def __init__(
        self, tokenizer: ResoTokenizer, stop: tuple[str, ...], on_text: Callable[[str], None] | None
    ) -> None:
        self.decoder = tokenizer.stream_decoder()
        self.stop = stop
        self.on_text = on_text
        self.text, self.told, self.stopped = "", 0, False

    def add(self, token: int) -> bool:
        """Take one more token; True when a stop string is complete."""
        return self._extend(self.decoder.feed(token))

    def close(self) -> str:
        """The whole text, the rest of it told."""
        if not self.stopped:
            self._extend(self.decoder.flush())
        self._tell(len(self.text))
        return self.text

    def _extend(self, piece: str) -> bool:
        start = len(self.text)
        self.text += piece
        hits = [at for x in self.stop if (at := self.text.find(x, max(0, start - len(x) + 1))) >= 0]
        if hits:
            self.text, self.stopped = self.text[: min(hits)], True
        else:
            held = max((_overlap(self.text, text) for text in self.stop), default=0)
            self._tell(len(self.text) - held)
        return self.stopped

    def _tell(self, end: int) -> None:
        if self.on_text is not None and end > self.told:
            start, self.told = self.told, end  # first, as Ctrl-C may strike while it is told
            self.on_text(self.text[start:end])


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
