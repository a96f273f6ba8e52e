"""Byte-level BPE tokenizer with a chat layout and prime numbers as token names.

Text -> UTF-8 bytes -> tokens (Sennrich et al. 2016 on bytes, as GPT-2 does). Every Unicode string
has an encoding and decodes back to itself.

    ids 0..4      <|bos|> <|system|> <|user|> <|assistant|> <|end|>      control tokens
    ids 5..260    the 256 bytes
    ids 261..     merges, in the order they were learned

Only this module inserts control tokens. Content always goes through `encode`, which produces none,
whatever the text says. Layout of a conversation:

    <|bos|> <|user|> content <|end|> <|assistant|> content <|end|> ...

Token id i has the i-th prime p_i (id 0 -> 2, id 1 -> 3, ...). A bag of tokens is the product of its
primes, and unique factorisation gives the bag back.

The shipped `default_tokenizer.json` has 4096 tokens, learned from real dialogue. It is reproduced
byte for byte by `python benchmarks/making/default_tokenizer.py --guanaco data/guanaco_900.jsonl`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

from entropy_core.primes import first_primes

__all__ = ["ResoTokenizer", "StreamDecoder", "create_default_tokenizer", "first_primes"]

SPECIAL_TOKENS = ("<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
ROLE_IDS = {"system": 1, "user": 2, "assistant": 3}

# GPT-4's split with two changes: combining marks stay with their letters (Thai, Hindi), and
# numbers go in pairs of digits. Any split by letters against punctuation also keeps the pieces
# of "<|user|>" apart, so that no merge can spell a control token.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"
    r"|[^\r\n\p{L}\p{N}\p{M}]?[\p{L}\p{M}]+"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}\p{M}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

# Texts longer than this are cut before encoding, because in one endless "word" the merge loop would
# need far more memory than the text.
CHUNK_CHARS = 1 << 16
BATCH_CHARS = 1 << 18

logger = logging.getLogger(__name__)


def byte_alphabet() -> dict[str, int]:
    """The byte of each character of a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted({*range(256)} - {*printable})
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


class StreamDecoder:
    """Turns ids that arrive one by one into text, in whole characters.

    `feed` returns the characters that have become complete. `flush` returns the rest, with U+FFFD
    for bytes that form no character. All pieces joined equal `tokenizer.decode(ids)`.
    """

    def __init__(self, tokenizer: ResoTokenizer, *, keep_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._keep_special = keep_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: int | Iterable[int]) -> str:
        """Return the text completed by `ids`, one or several; ValueError for an id out of range."""
        ids = [ids] if isinstance(ids, int | np.integer) else ids
        return self._decoder.decode(self._tokenizer.decode_bytes(ids, self._keep_special))

    def flush(self) -> str:
        """Return the rest after the last id; the decoder can then be used again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class ResoTokenizer:
    """Byte-level BPE with five control tokens, 256 bytes and learned merges.

    Make one with `train`, `load` or `create_default_tokenizer`. A tokenizer is immutable.
    """

    bos_id, system_id, user_id, assistant_id, end_id = range(5)
    special_tokens = SPECIAL_TOKENS
    special_ids = frozenset(range(len(SPECIAL_TOKENS)))
    end_ids = end_id, bos_id
    """Tokens that end a text: its own end, and the beginning of another."""
    template_words: frozenset[str] = frozenset()
    """The chat template has control tokens alone."""

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
        """Build from `vocab`, byte-level strings to ids, and `merges`, its pairs in order of rank.

        Raises ValueError when they do not form a complete Reso vocabulary.
        """
        _check_vocabulary(vocab, merges)
        self._backend = _build_backend(dict(vocab), [tuple(pair) for pair in merges])
        tokens = sorted(vocab, key=vocab.__getitem__)
        to_byte = byte_alphabet()
        self._bytes = tuple(
            token.encode() if index < len(SPECIAL_TOKENS) else bytes(to_byte[c] for c in token)
            for index, token in enumerate(tokens)
        )
        canonical = {"split": SPLIT_PATTERN, "tokens": tokens, "merges": [list(p) for p in merges]}
        text = json.dumps(canonical, ensure_ascii=True, separators=(",", ":"))
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()

    # -- making, saving, loading

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> ResoTokenizer:
        """Learn merges from `texts`, read once; the same texts give the same tokenizer.

        `vocab_size` includes the 5 control tokens and the 256 bytes: 261 means bytes alone, which
        is character level on ASCII. Texts too small to fill it give a smaller vocabulary, with a
        warning in the log. Raises ValueError below 261 and for a lone surrogate.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(
                f"vocab_size is {vocab_size}, but {len(SPECIAL_TOKENS)} control tokens and 256 "
                f"bytes need at least {MIN_VOCAB_SIZE}"
            )
        backend = _empty_backend()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        pieces = (chunk for text in texts for chunk in _chunks(text))
        backend.train_from_iterator(pieces, trainer)
        model = json.loads(backend.to_str())["model"]
        tokenizer = cls(model["vocab"], [tuple(pair) for pair in model["merges"]])
        if tokenizer.vocab_size < vocab_size:
            logger.warning(
                "the texts fill only %d of the %d tokens asked for: the tokenizer has vocab_size "
                "%d (give more text, or ask for fewer tokens)",
                tokenizer.vocab_size, vocab_size, tokenizer.vocab_size,
            )  # fmt: skip
        return tokenizer

    def to_json(self) -> str:
        """The tokenizer as text in the format of the `tokenizers` library."""
        return self._backend.to_str(pretty=True) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json()` to `path`, all or nothing."""
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        partial.write_text(self.to_json(), encoding="utf-8", newline="\n")
        os.replace(partial, path)

    @classmethod
    def from_json(cls, text: str, name: str = "tokenizer") -> ResoTokenizer:
        """Inverse of `to_json`; ValueError that begins with `name` for any other text."""
        try:
            model = json.loads(text)["model"]
            tokenizer = cls(model["vocab"], [tuple(pair) for pair in model["merges"]])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{name}: not a Reso tokenizer ({error!r})") from error
        written = tokenizer.to_json()
        if written == text:
            return tokenizer
        ours, theirs = json.loads(written), json.loads(text)
        differing = [
            key for key in ours if key not in theirs or not _agrees(theirs[key], ours[key])
        ]
        if differing:
            raise ValueError(
                f"{name}: not a Reso tokenizer, its {', '.join(differing)} differ from what this "
                "package writes; train one with ResoTokenizer.train"
            )
        return tokenizer

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ResoTokenizer:
        """Read a saved tokenizer; ValueError naming a file that is broken, foreign or absent."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot read this tokenizer ({error})") from error
        return cls.from_json(text, str(path))

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return ResoTokenizer.from_json, (self.to_json(),)

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""
        return len(self._bytes)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of split pattern, tokens and merges: equal where equal ids mean the same."""
        return self._fingerprint

    # -- text and ids

    def encode(self, text: str) -> list[int]:
        """Encode `text`, without control tokens; ValueError for a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode every text, in parallel."""
        ids: list[list[int]] = [[] for _ in texts]
        for owner, piece in self.encode_pieces(texts):
            ids[owner] += piece.tolist()
        return ids

    def encode_pieces(self, texts: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield pieces (k, int32 ids) of texts[k], in order, of bounded size, one or more per text.

        The token cache is written from these, so that the ids of a huge text are never all in
        memory.
        """
        for owners, chunks in _batches_of_chunks(texts):
            for owner, encoding in zip(
                owners, self._backend.encode_batch_fast(chunks), strict=True
            ):
                yield owner, np.array(encoding.ids, dtype=np.int32)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token; for a control token, its name. ValueError for an unknown id."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is not in 0..{self.vocab_size - 1}")
        return self._bytes[token_id]

    @property
    def names(self) -> list[bytes]:
        """The bytes of every token in the order of the ids, none for a control token."""
        return [b""] * len(SPECIAL_TOKENS) + list(self._bytes[len(SPECIAL_TOKENS) :])

    def decode_bytes(self, ids: Iterable[int], keep_special: bool = False) -> bytes:
        """Join the bytes of `ids`; control tokens only with `keep_special`."""
        first = 0 if keep_special else len(SPECIAL_TOKENS)
        return b"".join([self.token_bytes(i) for i in map(int, ids) if i >= first or i < 0])

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Decode `ids`: `decode(encode(x)) == x`. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, keep_special).decode("utf-8", errors="replace")

    def stream_decoder(self, *, keep_special: bool = False) -> StreamDecoder:
        """Make a `StreamDecoder` for this vocabulary."""
        return StreamDecoder(self, keep_special=keep_special)

    # -- conversations

    def encode_conversation(
        self, messages: Iterable[tuple[str, str]]
    ) -> tuple[list[int], list[int]]:
        """Encode (role, content) pairs as ids and a reply mask of the same length.

        The mask is 1 on the tokens that an assistant produces: its content and the `<|end|>` after
        it. Raises ValueError for an unknown role.
        """
        ids, reply_mask = [self.bos_id], [0]
        for role, content in messages:
            role_id, turn = self.role_id(role), self.encode(content)
            ids += [role_id, *turn, self.end_id]
            reply_mask += [0] + [int(role_id == self.assistant_id)] * (len(turn) + 1)
        return ids, reply_mask

    def encode_prompt(self, messages: Iterable[tuple[str, str]]) -> list[int]:
        """Encode the conversation so far and `<|assistant|>`, after which the model replies.

        A last message by an assistant begins the reply: no `<|end|>` follows it.
        """
        messages = list(messages)
        ids = self.encode_conversation(messages)[0]
        if messages and messages[-1][0] == "assistant":
            return ids[:-1]
        return [*ids, self.assistant_id]

    def role_id(self, role: str) -> int:
        """Control token id of "system", "user" or "assistant"; ValueError for other roles."""
        if role not in ROLE_IDS:
            raise ValueError(f"unknown role {role!r}: use one of {', '.join(ROLE_IDS)}")
        return ROLE_IDS[role]

    # -- primes

    def encode_primes(self, text: str) -> list[int]:
        """Primes of the tokens of `text`, in order."""
        primes = first_primes(self.vocab_size)
        return [primes[i] for i in self.encode(text)]

    def decode_primes(self, primes: Iterable[int]) -> str:
        """Inverse of `encode_primes`; ValueError naming a number that is no token's prime."""
        index = {prime: i for i, prime in enumerate(first_primes(self.vocab_size))}
        ids = []
        for number in primes:
            if number not in index:
                raise ValueError(
                    f"{number} is no token's prime: expected one of the first {self.vocab_size}, "
                    f"2 to {first_primes(self.vocab_size)[-1]}"
                )
            ids.append(index[number])
        return self.decode(ids)

    def bag(self, ids: Iterable[int]) -> int:
        """Product of the primes of `ids`: the tokens without their order (no tokens -> 1)."""
        factors = [first_primes(self.vocab_size)[self._checked(i)] for i in ids] or [1]
        while len(factors) > 1:  # in pairs, so that factors of a product have similar sizes
            factors = [
                left * right for left, right in zip(factors[::2], [*factors[1::2], 1], strict=False)
            ]
        return factors[0]

    def factorise(self, product: int) -> list[int]:
        """Token ids of a bag, sorted, with repeats; ValueError for a number that is no bag."""
        if product < 1:
            raise ValueError(f"{product} is not a product of primes: expected an integer >= 1")
        ids = []
        for index, prime in enumerate(first_primes(self.vocab_size)):
            while product % prime == 0:
                product //= prime
                ids.append(index)
            if product == 1:
                return ids
        raise ValueError(
            f"the product has a factor of {product.bit_length()} bits without primes of this "
            f"vocabulary, the largest of which is {first_primes(self.vocab_size)[-1]}"
        )

    def _checked(self, token_id: int) -> int:
        self.token_bytes(token_id)
        return token_id


def create_default_tokenizer() -> ResoTokenizer:
    """Read the shipped tokenizer: 4096 tokens, learned from real dialogue."""
    source = resources.files("reso_llm").joinpath("default_tokenizer.json")
    return ResoTokenizer.from_json(source.read_text(encoding="utf-8"), "default_tokenizer.json")


def _empty_backend(model: models.BPE | None = None) -> Tokenizer:
    backend = Tokenizer(model or models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # The saved file does not contain this setting, so that every backend needs it set.
    backend.encode_special_tokens = True
    return backend


def _build_backend(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    backend = _empty_backend(models.BPE(vocab=vocab, merges=merges))
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return backend


def _check_vocabulary(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
    """Raise ValueError unless ids are 0..n-1: control tokens, the 256 bytes, one id per merge."""
    tokens = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("token ids are not 0..n-1 without gaps")
    if tuple(tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
        raise ValueError(f"ids 0..4 are not {' '.join(SPECIAL_TOKENS)}")
    if set(tokens[len(SPECIAL_TOKENS) : MIN_VOCAB_SIZE]) != set(byte_alphabet()):
        raise ValueError("ids 5..260 are not the 256 bytes")
    made = {left + right for left, right in merges}
    if made != set(tokens[MIN_VOCAB_SIZE:]):
        raise ValueError("merges and tokens do not belong together")
    if any(part not in vocab for pair in merges for part in pair):
        raise ValueError("a merge uses an unknown token")


def _agrees(theirs: Any, ours: Any) -> bool:
    """Whether JSON values are equal, but for fields that only ours, of a newer library, has."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return all(key in ours and _agrees(theirs[key], ours[key]) for key in theirs)
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours) and all(map(_agrees, theirs, ours))
    return theirs == ours


def _chunks(text: str) -> Iterator[str]:
    """Cut `text` into pieces of at most CHUNK_CHARS, where possible after a line or a word."""
    _check_characters(text)
    start = 0
    while len(text) - start > CHUNK_CHARS:
        stop = start + CHUNK_CHARS
        line = text.rfind("\n", start, stop) + 1
        word = text.rfind(" ", start, stop)
        stop = line if line > start else word if word > start else stop
        yield text[start:stop]
        start = stop
    yield text[start:] if start else text


def _check_characters(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"position {error.start}: U+{ord(text[error.start]):04X} is a lone surrogate, "
            "which is not a character and cannot be encoded"
        ) from None


def _batches_of_chunks(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Yield (owners, chunks) of bounded size: chunk k belongs to texts[owners[k]]."""
    owners: list[int] = []
    chunks: list[str] = []
    size = 0
    for owner, text in enumerate(texts):
        for chunk in _chunks(text):
            owners.append(owner)
            chunks.append(chunk)
            size += len(chunk)
            if size >= BATCH_CHARS:
                yield owners, chunks
                owners, chunks, size = [], [], 0
    if chunks:
        yield owners, chunks


def check_tokenizer(tokenizer: ResoTokenizer, fingerprint: str, path: str | Path) -> None:
    """Raise ValueError for a tokenizer with another fingerprint than the training recorded."""
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(
            f"{path}: tokenizer.json is not the tokenizer this model was trained with; "
            "restore the checkpoint from a copy"
        )
