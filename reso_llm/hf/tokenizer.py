"""A tokenizer of transformers as generation asks for one (`reso_llm.generation.tokens`).

A conversation goes through the model's chat template. A model without one, such as GPT-2, reads

    You are a pirate.

    User: Hi!
    Assistant: Ahoy!
    User: And you?
    Assistant:

and its reply ends where it writes the next line that begins with "User:".
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from reso_llm.data.conversation import Message
from reso_llm.session.words import words
from reso_llm.tokenizer import byte_alphabet

_LONE_BYTE = re.compile("<0x[0-9A-F]{2}>")
ROLES = ("system", "user", "assistant")
NAMES = {"user": "User:", "assistant": "Assistant:"}
PLAIN_STOP = f"\n{NAMES['user']}"
"""The string that ends a reply of a model without a chat template."""


class HFTokenizer:
    """Encodes prompts and decodes texts; `end_ids` end a text.

    Raises ValueError for a tokenizer without a token.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int]) -> None:
        if not len(tokenizer):
            raise ValueError(
                "the tokenizer has no tokens: expected tokenizer.json beside the model"
            )
        self.tokenizer, self.end_ids = tokenizer, tuple(end_ids)
        self.special_ids = frozenset((*tokenizer.all_special_ids, *end_ids))

    @property
    def has_template(self) -> bool:
        """Whether conversations go through the model's own template."""
        return self.tokenizer.chat_template is not None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary."""
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(vocabulary.encode()).hexdigest()

    @cached_property
    def names(self) -> list[bytes]:
        """The bytes of every token in the order of the ids, none for a special token."""
        tokens = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        words = [
            "" if token is None or i in self.special_ids else token
            for i, token in enumerate(tokens)
        ]
        alphabet = byte_alphabet()
        if all(alphabet.keys() >= set(word) for word in words):
            return [bytes(alphabet[letter] for letter in word) for word in words]
        return [_sentence_piece_bytes(word) for word in words]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text to continue, with the special tokens that the model expects around it.

        An empty text is the model's own first token, or one that ends a text. Raises ValueError
        where there is neither.
        """
        ids = self.tokenizer(text).input_ids
        while len(ids) > 1 and ids[-1] in self.end_ids:  # the text is to go on
            ids.pop()
        first = [self.tokenizer.bos_token_id, *self.end_ids]
        ids = ids or [token for token in first if token is not None][:1]
        if not ids:
            raise ValueError("prompt is empty, and this model has no first token: give a text")
        return ids

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation and of what begins the reply; a last assistant message begins it.

        Raises ValueError where the model's template refuses the messages, such as a system message.
        """
        if not self.has_template:
            return self.encode_text(_plain(messages))
        from jinja2 import TemplateError

        turns = [{"role": role, "content": content} for role, content in messages]
        begun = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses the messages: {error}") from None
        return self.encode(text + begun)

    def opening_size(self, messages: Sequence[Message]) -> int:
        """Ids before the first word of the first question: a system message and what is around."""
        system = [message for message in messages[:1] if message.role == "system"]
        asked = [self.encode_prompt([*system, Message("user", word)]) for word in ("a", "1")]
        return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(*asked, strict=False))))

    @cached_property
    def reply_opening(self) -> tuple[int, ...]:
        """The ids behind a last question, up to the first word of its reply."""
        asked = (self.encode_prompt([Message("user", word)])[::-1] for word in ("a", "1"))
        same = takewhile(lambda pair: pair[0] == pair[1], zip(*asked, strict=False))
        return tuple(token for token, _ in same)[::-1]

    @cached_property
    def template_words(self) -> frozenset[str]:
        """Those of roles and of a system message that the template has by itself."""
        empty = [Message("user", ""), Message("assistant", ""), Message("user", "")]
        return frozenset((*ROLES, *words(self.decode(self.encode_prompt(empty)))))

    def stream_decoder(self) -> "HFDecoder":
        """Make a decoder for one text."""
        return HFDecoder(self)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self.tokenizer.decode(
            [i for i in ids if i not in self.special_ids], clean_up_tokenization_spaces=False
        )


class HFDecoder:
    """Turns ids that arrive one by one into text, in whole characters.

    The text of a token depends on the one before it (SentencePiece writes no first space), so each
    piece is what the newest ids add to the text of those read before.
    """

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start, self.read = 0, 0  # ids from `start` are decoded again; those to `read` are out

    def feed(self, token: int) -> str:
        """Return the text that one more id completes; "" within a character."""
        self.ids.append(token)
        piece = self._piece()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self.start, self.read = self.read, len(self.ids)
        return piece

    def flush(self) -> str:
        """Return the rest, with U+FFFD for bytes that form no character."""
        piece = self._piece()
        self.start = self.read = len(self.ids)
        return piece

    def _piece(self) -> str:
        decode = self.tokenizer.decode
        return decode(self.ids[self.start :])[len(decode(self.ids[self.start : self.read])) :]


def _sentence_piece_bytes(token: str) -> bytes:
    """The bytes of a token of SentencePiece, whose spaces are U+2581 and lone bytes <0xNN>."""
    if _LONE_BYTE.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _plain(messages: Sequence[Message]) -> str:
    """A conversation for a model without a template; see the module's docstring."""
    lines = [
        f"{NAMES[role]} {text}\n" if role in NAMES else f"{text}\n\n" for role, text in messages
    ]
    if messages and messages[-1].role == "assistant":
        return "".join(lines).removesuffix("\n")
    return "".join((*lines, NAMES["assistant"]))
