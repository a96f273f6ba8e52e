"""Text of a generation as it becomes certain: token bytes in, whole characters out.

The stream holds back half a character, an end that may be the start of a stop string
(`stop_strings.py`), and the last tokens where they may be taken back.
"""

from collections import deque
from collections.abc import Callable, Sequence

from reso_llm.generation.stop_strings import first_stop, overlap
from reso_llm.generation.tokens import Tokens


class TextStream:
    """The text of one row. It passes every piece of the text to on_text once."""

    def __init__(
        self,
        tokenizer: Tokens,
        stop: tuple[str, ...],
        on_text: Callable[[str], None] | None,
        reach: int = 0,
    ) -> None:
        """reach: tokens that may be taken back."""
        self.tokenizer, self.decoder = tokenizer, tokenizer.stream_decoder()
        self.stop, self.reach = stop, reach
        self._lengths: deque[int] = deque([0] * reach, maxlen=reach + 1)  # after the last tokens
        self.on_text = on_text
        self.text, self.num_passed, self.stopped = "", 0, False

    def add(self, token: int) -> bool:
        """Take one more token; True when a stop string is complete."""
        return self._extend(self.decoder.feed(token), is_token=True)

    def after(self, tokens: Sequence[int]) -> "TextStream":
        """The stream after only these of the tokens that it has taken, the first ones."""
        stream = TextStream(self.tokenizer, self.stop, None, self.reach)
        for token in tokens:
            stream.add(token)
        stream.num_passed, stream.on_text = self.num_passed, self.on_text
        return stream

    def close(self) -> str:
        """Pass the rest of the text to on_text; return the whole text."""
        if not self.stopped:
            self._extend(self.decoder.flush())
        self._pass_on(len(self.text))
        return self.text

    def _extend(self, piece: str, is_token: bool = False) -> bool:
        start = len(self.text)
        self.text += piece
        end = first_stop(self.text, self.stop, start)
        if end is not None:
            self.text, self.stopped = self.text[:end], True
        elif is_token:
            self._lengths.append(len(self.text) - overlap(self.text, self.stop))
            self._pass_on(self._lengths[0])
        return self.stopped

    def _pass_on(self, end: int) -> None:
        if self.on_text is not None and end > self.num_passed:
            # Counted first, as Ctrl-C may interrupt on_text.
            start, self.num_passed = self.num_passed, end
            self.on_text(self.text[start:end])
