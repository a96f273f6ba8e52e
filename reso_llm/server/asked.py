"""What a request asks for: the JSON of a body, checked in full before anything is written.

A parameter that is not built is refused by name, unless its value asks for nothing. `Asked` is the
same for both forms, a conversation to answer and texts to continue.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entropy_core.checks import is_number, is_whole, nearest
from reso_llm.chat.session import SAMPLING
from reso_llm.data.conversation import Message
from reso_llm.decoding.controllers import Controller
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.prompt import Prompt
from reso_llm.server.errors import ApiError, refuse
from run_core.terminal import encodable

MAX_TOKENS, DEFAULT_TOKENS = 2048, 256
MAX_TEXTS = 8
"""Texts that one request may ask for: its prompts times n."""
MAX_MESSAGES = 1000
MAX_ALTERNATIVES = {"top_logprobs": 20, "logprobs": 5}
MAX_SEED = 2**63 - 1 - MAX_TEXTS
ROLES = ("system", "developer", "user", "assistant")

SHARED = {
    "model", "stream", "stream_options", "seed", "stop", "n", "temperature", "top_p", "max_tokens",
    "logprobs", "reso",
}  # fmt: skip
CHAT = SHARED | {"messages", "max_completion_tokens", "top_logprobs"}
COMPLETION = SHARED | {"prompt"}
RESO = {
    "goal", "controllers", "without", "top_k", "min_p", "repetition_penalty", "alternatives",
}  # fmt: skip
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "tools": [],
    "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"],
    "store": False, "best_of": 1, "echo": False, "suffix": "",
}  # fmt: skip
"""Parameters that are not built, and the value with which each asks for nothing."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request's texts: each prompt `num_each` times, with the seeds `seed`, `seed` + 1, ...

    num_alternatives: of each token's best alternatives to send; None: no log probabilities.
    goal: "" for none. without: stages that are silent.
    """

    prompts: Sequence[Prompt]
    num_each: int
    seed: int | None
    options: GenerationOptions
    model: str | None
    stream: bool
    with_usage: bool
    num_alternatives: int | None
    goal: str
    without: frozenset[str]


def read_body(body: bytes) -> dict[str, Any]:
    """The object of a body. ApiError 400 for what is no JSON object in UTF-8."""
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also an integer of too many digits
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is no JSON object: expected {...}")
    return value


def chat_asked(body: Mapping[str, Any], controllers: Mapping[str, Controller]) -> Asked:
    """What the body of a chat completion asks for. ApiError 400 naming the parameter."""
    given = _known(body, CHAT)
    lengths = [given[name] for name in ("max_tokens", "max_completion_tokens") if name in given]
    refuse(len(lengths) < 2, "max_tokens", "one of max_tokens and max_completion_tokens")
    refuse("messages" in given, "messages", "a list of messages")
    wanted = _value(given, "logprobs", False, _is_bool, "true or false")
    top = _count(given, "top_logprobs", 0, 0, MAX_ALTERNATIVES["top_logprobs"])
    refuse(wanted or not top, "top_logprobs", "logprobs true beside it")
    asked = [_messages(given["messages"])]
    return _asked(given, asked, lengths, top if wanted else None, controllers)


def completion_asked(body: Mapping[str, Any], controllers: Mapping[str, Controller]) -> Asked:
    """What the body of a completion asks for. ApiError 400 naming the parameter."""
    given = _known(body, COMPLETION)
    prompt = given.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    listed = isinstance(prompts, list) and prompts and all(isinstance(p, str) for p in prompts)
    refuse(bool(listed), "prompt", "a string, or a list of strings")
    top = None
    if "logprobs" in given:
        top = _count(given, "logprobs", 0, 0, MAX_ALTERNATIVES["logprobs"])
    lengths = [given["max_tokens"]] if "max_tokens" in given else []
    return _asked(given, [encodable(p) for p in prompts], lengths, top, controllers)


def _asked(
    given: Mapping[str, Any],
    prompts: Sequence[Prompt],
    lengths: Sequence[Any],
    top: int | None,
    controllers: Mapping[str, Controller],
) -> Asked:
    reso = _known(_value(given, "reso", {}, _is_object, "an object"), RESO, "reso.")
    stream = _value(given, "stream", False, _is_bool, "true or false")
    streaming = _known(
        _value(given, "stream_options", {}, _is_object, "an object"),
        {"include_usage"},
        "stream_options.",
    )
    refuse(stream or not streaming, "stream_options", "stream true beside it")
    num_each = _count(given, "n", 1, 1, MAX_TEXTS)
    fits = len(prompts) * num_each <= MAX_TEXTS
    refuse(fits, "n", f"at most {MAX_TEXTS} texts, prompts times n")
    shown = _count(reso, "alternatives", 0, 0, MAX_ALTERNATIVES["top_logprobs"], "reso.")
    return Asked(
        prompts=prompts,
        num_each=num_each,
        seed=_count(given, "seed", None, -MAX_SEED, MAX_SEED),
        options=_options(given, reso, lengths, max(top or 0, shown), controllers),
        model=_value(given, "model", None, _is_text, "the name of a model"),
        stream=stream,
        with_usage=_value(streaming, "include_usage", False, _is_bool, "true or false"),
        num_alternatives=top,
        goal=encodable(_value(reso, "goal", "", _is_text, "a text")).strip(),
        without=frozenset(_value(reso, "without", [], _is_names, "a list of stages")),
    )


def _options(
    given: Mapping[str, Any],
    reso: Mapping[str, Any],
    lengths: Sequence[Any],
    alternatives: int,
    controllers: Mapping[str, Controller],
) -> GenerationOptions:
    """The options of every text; ApiError naming the parameter of a wrong value."""
    length = lengths[0] if lengths else DEFAULT_TOKENS
    refuse(_within(length, 1, MAX_TOKENS), "max_tokens", f"a whole number from 1 to {MAX_TOKENS}")
    stop = given.get("stop", ())
    stops = [stop] if isinstance(stop, str) else stop
    few = isinstance(stops, list | tuple) and len(stops) <= 4
    refuse(few, "stop", "a string, or a list of at most 4")
    names = _value(reso, "controllers", [], _is_names, "a list of controllers")
    for name in names:
        known = f"of {', '.join(controllers)}{nearest(name, list(controllers))}"
        refuse(name in controllers, "reso.controllers", known)
    sampling = {k: given[k] for k in ("temperature", "top_p") if k in given}
    sampling |= {k: reso[k] for k in ("top_k", "min_p", "repetition_penalty") if k in reso}
    for name, value in sampling.items():
        refuse(is_number(value), name, "a number")
    try:
        return GenerationOptions(
            max_length=length,
            stop=[encodable(s) if isinstance(s, str) else s for s in stops],
            controllers=tuple(controllers[name] for name in dict.fromkeys(names)),
            alternatives=alternatives,
            **SAMPLING | sampling,
        )
    except ValueError as error:
        param = str(error).partition(" ")[0]
        raise ApiError(400, str(error), param if param in given or param in reso else None) from None


def _messages(value: Any) -> list[Message]:
    """The messages of a conversation."""
    listed = isinstance(value, list) and value
    refuse(bool(listed), "messages", "a list of at least one message")
    refuse(len(value) <= MAX_MESSAGES, "messages", f"at most {MAX_MESSAGES} of them")
    return [_message(item, f"messages[{i}]") for i, item in enumerate(value)]


def _message(item: Any, place: str) -> Message:
    refuse(isinstance(item, dict), place, 'an object {"role": ..., "content": ...}')
    given = _known(item, {"role", "content"}, f"{place}.")
    role = given.get("role")
    known = isinstance(role, str) and role in ROLES
    refuse(known, f"{place}.role", f"one of {', '.join(ROLES)}")
    content = given.get("content")
    if isinstance(content, list):
        texts = [_part(part, f"{place}.content[{i}]") for i, part in enumerate(content)]
        content = "".join(texts)
    refuse(isinstance(content, str), f"{place}.content", "a text")
    return Message("system" if role == "developer" else role, encodable(content))


def _part(part: Any, place: str) -> str:
    written = isinstance(part, dict) and part.get("type") == "text" and part.keys() <= PART
    refuse(written and isinstance(part.get("text"), str), place, 'a part {"type": "text", ...}')
    return part["text"]


PART = {"type", "text"}


def _known(body: Mapping[str, Any], known: set[str], prefix: str = "") -> dict[str, Any]:
    """The parameters given, null ones left out; ApiError for one that is not built."""
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in known or (not prefix and _asks_for_nothing(name, value)):
            continue
        shown = f"{prefix}{name[:40]}"
        hint = nearest(name[:40], sorted(known))
        raise ApiError(400, f"{shown} is not built: leave it out{hint}", shown)
    return {name: value for name, value in given.items() if name in known}


def _asks_for_nothing(name: str, value: Any) -> bool:
    if name not in NEUTRAL or isinstance(value, bool) != isinstance(NEUTRAL[name], bool):
        return False
    return value == NEUTRAL[name]


def _value(
    given: Mapping[str, Any], name: str, default: Any, check: Callable[[Any], bool], expected: str
) -> Any:
    if name not in given:
        return default
    refuse(check(given[name]), name, expected)
    return given[name]


def _count(
    given: Mapping[str, Any],
    name: str,
    default: int | None,
    low: int,
    high: int,
    prefix: str = "",
) -> Any:
    if name not in given:
        return default
    refuse(_within(given[name], low, high), prefix + name, f"a whole number from {low} to {high}")
    return given[name]


def _within(value: Any, low: int, high: int) -> bool:
    return is_whole(value) and low <= value <= high


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
