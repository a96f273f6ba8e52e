"""Text of a generation as it becomes certain: token bytes in, whole characters out.

The stream holds back half a character, and an end that may be the start of a stop string
(`stop_strings.py`).
"""

from collections.abc import Callable

from reso_llm.generation.stop_strings import first_stop, overlap
from reso_llm.generation.tokens import Tokens


class TextStream:
    """The text of one row. It passes every piece of the text to on_text once."""

    def __init__(
        self, tokenizer: Tokens, stop: tuple[str, ...], on_text: Callable[[str], None] | None
    ) -> None:
        self.decoder = tokenizer.stream_decoder()
        self.stop = stop
        self.on_text = on_text
        self.text, self.num_passed, self.stopped = "", 0, False

    def add(self, token: int) -> bool:
        """Take one more token; True when a stop string is complete."""
        return self._extend(self.decoder.feed(token))

    def close(self) -> str:
        """Pass the rest of the text to on_text; return the whole text."""
        if not self.stopped:
            self._extend(self.decoder.flush())
        self._pass_on(len(self.text))
        return self.text

    def _extend(self, piece: str) -> bool:
        start = len(self.text)
        self.text += piece
        end = first_stop(self.text, self.stop, start)
        if end is not None:
            self.text, self.stopped = self.text[:end], True
        else:
            self._pass_on(len(self.text) - overlap(self.text, self.stop))
        return self.stopped

    def _pass_on(self, end: int) -> None:
        if self.on_text is not None and end > self.num_passed:
            # Counted first, as Ctrl-C may interrupt on_text.
            start, self.num_passed = self.num_passed, end
            self.on_text(self.text[start:end])
