"""What a request asks for: the JSON of a body, checked in full before anything is written.

A parameter that is not built is refused by name, unless its value asks for nothing. `Asked` is the
same for both forms, a conversation to answer and texts to continue.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entropy_core.checks import nearest
from reso_llm.chat.session import SAMPLING
from reso_llm.data.conversation import Message
from reso_llm.decoding.controllers import Controller
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.prompt import Prompt
from reso_llm.server.errors import ApiError, refuse
from reso_llm.server.given import Given
from run_core.terminal import encodable

MAX_TOKENS, DEFAULT_TOKENS = 2048, 256
MAX_TEXTS = 8
"""Texts that one request may ask for: its prompts times n."""
MAX_MESSAGES = 1000
MAX_ALTERNATIVES = {"top_logprobs": 20, "logprobs": 5}
MAX_SEED = 2**63 - 1 - MAX_TEXTS
MAX_BIASES = 300
_ID = re.compile("[0-9]{1,9}")
ROLES = ("system", "developer", "user", "assistant")

SHARED = {
    "model", "stream", "stream_options", "seed", "stop", "n", "temperature", "top_p", "max_tokens",
    "logprobs", "reso", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens",
    "stop_token_ids",
}  # fmt: skip
SAMPLED = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "min_tokens", "stop_token_ids",
)  # fmt: skip
CHAT = SHARED | {"messages", "max_completion_tokens", "top_logprobs"}
COMPLETION = SHARED | {"prompt"}
EXTENSIONS = {
    "guidance", "top_k", "min_p", "repetition_penalty", "dry_multiplier", "dry_base",
    "dry_allowed_length", "top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold",
    "mirostat_tau", "mirostat_eta", "bad_words",
}  # fmt: skip
"""Options of a generation that OpenAI has no parameter for."""
RESO = EXTENSIONS | {"goal", "controllers", "auto_temperature", "without", "alternatives"}


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
    given = Given(body, CHAT)
    lengths = [name for name in ("max_tokens", "max_completion_tokens") if name in given]
    refuse(len(lengths) < 2, "max_tokens", "one of max_tokens and max_completion_tokens")
    wanted = given.flag("logprobs")
    top = given.whole("top_logprobs", 0, 0, MAX_ALTERNATIVES["top_logprobs"])
    refuse(wanted or not top, "top_logprobs", "logprobs true beside it")
    prompts = [_messages(given.get("messages"))]
    length = lengths[0] if lengths else "max_tokens"
    return _asked(given, prompts, length, top if wanted else None, controllers)


def completion_asked(body: Mapping[str, Any], controllers: Mapping[str, Controller]) -> Asked:
    """What the body of a completion asks for. ApiError 400 naming the parameter."""
    given = Given(body, COMPLETION)
    prompt = given.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    listed = isinstance(prompts, list) and prompts and all(isinstance(p, str) for p in prompts)
    refuse(bool(listed), "prompt", "a string, or a list of strings")
    top = given.whole("logprobs", None, 0, MAX_ALTERNATIVES["logprobs"])
    return _asked(given, [encodable(p) for p in prompts], "max_tokens", top, controllers)


def _asked(
    given: Given,
    prompts: Sequence[Prompt],
    length: str,
    top: int | None,
    controllers: Mapping[str, Controller],
) -> Asked:
    """length: the parameter that holds the number of tokens."""
    reso = given.object("reso", RESO)
    stream, streaming = given.flag("stream"), given.object("stream_options", {"include_usage"})
    refuse(stream or not streaming, "stream_options", "stream true beside it")
    num_each = given.whole("n", 1, 1, MAX_TEXTS)
    fits = len(prompts) * num_each <= MAX_TEXTS
    refuse(fits, "n", f"at most {MAX_TEXTS} texts, prompts times n")
    shown = reso.whole("alternatives", 0, 0, MAX_ALTERNATIVES["top_logprobs"])
    return Asked(
        prompts=prompts,
        num_each=num_each,
        seed=given.whole("seed", None, -MAX_SEED, MAX_SEED),
        options=_options(given, reso, length, max(top or 0, shown), controllers),
        model=given.text("model"),
        stream=stream,
        with_usage=streaming.flag("include_usage"),
        num_alternatives=top,
        goal=encodable(reso.text("goal") or "").strip(),
        without=frozenset(reso.names("without")),
    )


def _options(
    given: Given,
    reso: Given,
    length: str,
    alternatives: int,
    controllers: Mapping[str, Controller],
) -> GenerationOptions:
    """The options of every text."""
    stop = given.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    few = isinstance(stops, list) and len(stops) <= 4 and all(isinstance(s, str) for s in stops)
    refuse(few, "stop", "a string, or a list of at most 4")
    names = reso.names("controllers")
    for name in names:
        hint = nearest(name, list(controllers))
        refuse(name in controllers, "reso.controllers", f"some of {', '.join(controllers)}{hint}")
    sampling = {name: given[name] for name in SAMPLED if name in given}
    sampling |= {n: reso[n] for n in EXTENSIONS if n in reso}
    if "logit_bias" in given:
        sampling["logit_bias"] = _bias(given["logit_bias"])
    try:
        return GenerationOptions(
            max_length=given.whole(length, DEFAULT_TOKENS, 1, MAX_TOKENS),
            stop=[encodable(s) for s in stops],
            controllers=tuple(controllers[name] for name in dict.fromkeys(names)),
            auto_temperature=reso.flag("auto_temperature", True),
            alternatives=alternatives,
            **SAMPLING | sampling,
        )
    except ValueError as error:
        name = str(error).partition(" ")[0]
        param = name if name in given or name in reso else None
        raise ApiError(400, str(error), param) from None


def _bias(value: Any) -> dict[int, Any]:
    """The bias of a body, whose ids are strings as all keys of JSON are."""
    spelt = isinstance(value, dict) and all(_ID.fullmatch(key) for key in value)
    refuse(spelt, "logit_bias", 'an object of token ids and numbers, {"42": -1.5}')
    refuse(len(value) <= MAX_BIASES, "logit_bias", f"at most {MAX_BIASES} ids")
    return {int(key): number for key, number in value.items()}


def _messages(value: Any) -> list[Message]:
    """The messages of a conversation."""
    listed = isinstance(value, list) and 1 <= len(value) <= MAX_MESSAGES
    refuse(listed, "messages", f"a list of 1 to {MAX_MESSAGES} messages")
    return [_message(item, f"messages[{i}]") for i, item in enumerate(value)]


def _message(item: Any, place: str) -> Message:
    refuse(isinstance(item, dict), place, 'an object {"role": ..., "content": ...}')
    given = Given(item, {"role", "content"}, f"{place}.")
    role, content = given.get("role"), given.get("content")
    refuse(isinstance(role, str) and role in ROLES, f"{place}.role", f"one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "".join(_part(part, f"{place}.content[{i}]") for i, part in enumerate(content))
    refuse(isinstance(content, str), f"{place}.content", "a text")
    return Message("system" if role == "developer" else role, encodable(content))


def _part(part: Any, place: str) -> str:
    """The text of a part of a message."""
    written = isinstance(part, dict) and part.get("type") == "text"
    refuse(written and isinstance(part.get("text"), str), place, 'a part {"type": "text", ...}')
    return Given(part, {"type", "text"}, f"{place}.")["text"]
