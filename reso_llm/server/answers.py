"""Answers in the form of OpenAI's API: objects for JSON, whole and as chunks of a stream.

Every choice of a chunk stands beside a `reso` object: the facts of its token (`facts.py`), and with
the last one those of the whole text. Clients that do not know it pass over it.
"""

import math
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from reso_llm.server.asked import Asked
from reso_llm.server.desk import Ended
from reso_llm.server.facts import Token

LENGTHS = {"length", "srb_budget"}
"""Stop reasons for which OpenAI's word is "length"; for the others it is "stop"."""
SUMMED_UP = (
    "stability", "lyapunov", "goals_achieved", "goal_progress", "attention_summary", "stop_reason",
    "seed", "generation_time_ms", "axes",
)  # fmt: skip
"""Fields of a result that stand in the last `reso` object, as they are."""


class Written:
    """One text as it arrives: its tokens, and its end."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.ended: Ended | None = None

    def add(self, event: Token | Ended) -> None:
        if isinstance(event, Token):
            self.tokens.append(event)
        else:
            self.ended = event

    @property
    def rest(self) -> str:
        """The end of the text that no token has completed, such as half a character."""
        return self.ended.result.text[sum(len(token.text) for token in self.tokens) :]


class ChatForm:
    """The objects of /v1/chat/completions."""

    kind, prefix, chunk_kind = "chat.completion", "chatcmpl-", "chat.completion.chunk"

    @staticmethod
    def opening(index: int) -> dict[str, Any] | None:
        """The choice before the first token."""
        return _choice(index, delta={"role": "assistant", "content": ""})

    @staticmethod
    def piece(index: int, text: str, tokens: Sequence[Token], asked: Asked) -> dict[str, Any]:
        """A choice with the next piece of a text, and its tokens."""
        delta = {"content": text} if text else {}
        return _choice(index, delta=delta, logprobs=_chat_logprobs(tokens, asked))

    @staticmethod
    def closing(index: int, reason: str) -> dict[str, Any]:
        """The last choice of a text."""
        return _choice(index, delta={}, finish_reason=reason)

    @staticmethod
    def whole(index: int, written: Written, asked: Asked, reason: str) -> dict[str, Any]:
        """The choice of a whole text."""
        message = {"role": "assistant", "content": written.ended.result.text, "refusal": None}
        logprobs = _chat_logprobs(written.tokens, asked)
        return _choice(index, message=message, logprobs=logprobs, finish_reason=reason)


class CompletionForm:
    """The objects of /v1/completions."""

    kind, prefix, chunk_kind = "text_completion", "cmpl-", "text_completion"

    @staticmethod
    def opening(index: int) -> dict[str, Any] | None:
        """A completion has no choice before its first token."""
        return None

    @staticmethod
    def piece(index: int, text: str, tokens: Sequence[Token], asked: Asked) -> dict[str, Any]:
        """A choice with the next piece of a text, and its tokens."""
        return _choice(index, text=text, logprobs=_text_logprobs(tokens, asked))

    @staticmethod
    def closing(index: int, reason: str) -> dict[str, Any]:
        """The last choice of a text."""
        return _choice(index, text="", finish_reason=reason)

    @staticmethod
    def whole(index: int, written: Written, asked: Asked, reason: str) -> dict[str, Any]:
        """The choice of a whole text."""
        logprobs = _text_logprobs(written.tokens, asked)
        text = written.ended.result.text
        return _choice(index, text=text, logprobs=logprobs, finish_reason=reason)


Form = type[ChatForm] | type[CompletionForm]


class Answer:
    """The answer to one request, in one of the two forms."""

    def __init__(self, form: Form, asked: Asked, model: str) -> None:
        self.form, self.asked = form, asked
        self.texts = [Written() for _ in range(len(asked.prompts) * asked.num_each)]
        self.about = {
            "id": form.prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }

    def chunks(self, index: int, event: Token | Ended) -> Iterator[dict[str, Any]]:
        """The chunks of a stream that an event of text `index` brings."""
        form, written = self.form, self.texts[index]
        if not written.tokens and (opening := form.opening(index)):
            yield self._chunk(opening)
        written.add(event)
        if isinstance(event, Token):
            piece = form.piece(index, event.text, [event], self.asked)
            yield self._chunk(piece, event.facts | self._alternatives(event))
            return
        if written.rest:
            yield self._chunk(form.piece(index, written.rest, [], self.asked))
        yield self._chunk(form.closing(index, finish_reason(event)), summary(event))

    def usage_chunk(self) -> dict[str, Any]:
        """The chunk after all others, for a client that asks for the usage."""
        return {**self._object(self.form.chunk_kind, []), "usage": self.usage}

    def whole(self) -> dict[str, Any]:
        """The answer when all texts have ended, not as a stream."""
        choices = []
        for index, written in enumerate(self.texts):
            reason = finish_reason(written.ended)
            choice = self.form.whole(index, written, self.asked, reason)
            tokens = [token.facts | self._alternatives(token) for token in written.tokens]
            choices.append(choice | {"reso": summary(written.ended) | {"tokens": tokens}})
        return {**self._object(self.form.kind, choices), "usage": self.usage}

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read, each prompt counted once, and tokens written."""
        results = [written.ended.result for written in self.texts]
        prompt = sum(result.prompt_tokens for result in results[:: self.asked.num_each])
        written = sum(result.tokens_generated for result in results)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
        }

    def _chunk(self, choice: dict[str, Any], reso: dict[str, Any] | None = None) -> dict[str, Any]:
        chunk = self._object(self.form.chunk_kind, [choice])
        if self.asked.with_usage:
            chunk["usage"] = None
        return chunk if reso is None else chunk | {"reso": reso}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.about, "object": kind, "choices": choices}

    def _alternatives(self, token: Token) -> dict[str, Any]:
        if not token.alternatives:
            return {}
        pairs = [{"token": text, "p": math.exp(log_p)} for text, log_p in token.alternatives]
        return {"alternatives": pairs}


def finish_reason(ended: Ended) -> str:
    """OpenAI's word for the end of a text."""
    return "length" if ended.result.stop_reason in LENGTHS else "stop"


def summary(ended: Ended) -> dict[str, Any]:
    """What was measured of a whole text."""
    known = ended.result.to_dict()
    return {name: known[name] for name in SUMMED_UP} | {
        "memories_used": known["memories_used"],
        "notes": list(ended.notes),
    }


def _choice(index: int, **parts: Any) -> dict[str, Any]:
    return {"index": index, "logprobs": None, "finish_reason": None} | parts


def _chat_logprobs(tokens: Sequence[Token], asked: Asked) -> dict[str, Any] | None:
    if asked.num_alternatives is None:
        return None
    return {
        "content": [
            _log_prob(token.own, token.log_prob)
            | {"top_logprobs": [_log_prob(*pair) for pair in _best(token, asked)]}
            for token in tokens
            if token.own is not None
        ],
        "refusal": None,
    }


def _log_prob(text: str, log_prob: float) -> dict[str, Any]:
    """bytes is null for a part of a character."""
    whole = "\N{REPLACEMENT CHARACTER}" not in text
    return {"token": text, "logprob": log_prob, "bytes": list(text.encode()) if whole else None}


def _text_logprobs(tokens: Sequence[Token], asked: Asked) -> dict[str, Any] | None:
    if asked.num_alternatives is None:
        return None
    shown = [token for token in tokens if token.own is not None]
    return {
        "tokens": [token.own for token in shown],
        "token_logprobs": [token.log_prob for token in shown],
        "top_logprobs": [dict(_best(token, asked)) for token in shown],
    }


def _best(token: Token, asked: Asked) -> list[tuple[str, float]]:
    return token.alternatives[: asked.num_alternatives]
