"""Probes: the effect of a stage of a trained model on texts, measured with and without it.

    bits per byte = sum_t -ln p(id_t | ids before) / (ln 2 * bytes of the tokens scored)

"Without" is a copy of the model in which the stage's own output weights are zero, so that it adds
exactly nothing; the gate's copy skips no layer. All other weights are those trained beside the
stage. `evaluate.py ablation` measures what a stage is worth to a model trained without it.

Shapes: T tokens, D width, V vocabulary.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_core.information import entropy_nats
from reso_llm.decoding.stability import readings
from reso_llm.generation.engine import Engine
from reso_llm.generation.remembered import memories_of
from reso_llm.model import ResoLLMModel
from reso_llm.network import ResoState
from reso_llm.stages.goal import TRUST, text_vector
from reso_llm.tokenizer import SPECIAL_TOKENS, ResoTokenizer


class Dialogue(NamedTuple):
    """A question, a reply, and what the reply is about."""

    question: str
    reply: str
    topic: str


DIALOGUES = (
    Dialogue(
        "Hi! How was your weekend?",
        "It was great. We went for a long walk in the mountains and saw a lot of snow.",
        "mountains, snow and walks",
    ),
    Dialogue(
        "What kind of music do you like?",
        "I like rock music and old songs. My favorite band plays the guitar really well.",
        "a rock band and its songs",
    ),
    Dialogue(
        "What should I cook for dinner?",
        "You can make pasta with tomatoes and cheese. It is easy to cook and very good.",
        "food, pasta and cheese",
    ),
    Dialogue(
        "Do you have any pets?",
        "Yes, I have a dog and two cats. The dog likes to sleep on my bed.",
        "a dog and two cats",
    ),
    Dialogue(
        "What do you do for work?",
        "I am a teacher at a small school. The children are nice, but the days are long.",
        "school, teacher and children",
    ),
)
"""Written for this file. No model of this repository was trained on them."""


class TokenValues(NamedTuple):
    """Values of tokens 1 to T-1 of a text, each predicted from the tokens before it."""

    surprise_nats: list[float]
    entropy_nats: list[float]
    coherence: list[float] | None
    layers_used: list[int] | None  # of tokens 0 to T-1, the whole text
    hidden: np.ndarray  # (T-1,D)


@torch.inference_mode()
def read(
    model: ResoLLMModel, ids: Sequence[int], goal: Tensor | None = None, query: str | None = None
) -> TokenValues:
    """One pass over ids (at most max_seq_len of them) towards a goal (D,).

    query: start from what the model's session remembers of it.
    """
    device = model.head_weight.device
    inputs = torch.tensor([list(ids)], device=device)
    state = None if query is None else recollected(model, query)
    output = model(inputs, state, None if goal is None else goal.view(1, -1))
    logits, known = output.logits[0, :-1].float(), output.diagnostics
    surprise = -logits.log_softmax(-1).gather(1, inputs[0, 1:, None])[:, 0]
    layers = None
    if "deep" in known:
        layers = torch.where(known["deep"][0], model.config.num_layers, 1).tolist()
    return TokenValues(
        surprise.tolist(),
        entropy_nats(logits).tolist(),
        known["coherence"][0, :-1].tolist() if "coherence" in known else None,
        layers,
        known["hidden"][0, :-1].float().cpu().numpy(),
    )


def recollected(model: ResoLLMModel, query: str) -> ResoState:
    """The state that a plain text starts from which asks for `query`; without a system message."""
    encode, times = model.tokenizer.encode, Engine.echo_times
    return model.recollected_state(memories_of(model.session, query, encode, times).echo)


@torch.inference_mode()
def next_tokens(model: ResoLLMModel, ids: Sequence[int], count: int) -> list[tuple[int, float]]:
    """The most probable next tokens and their probabilities."""
    inputs = torch.tensor([list(ids)], device=model.head_weight.device)
    best = model(inputs).logits[0, -1].float().softmax(-1).topk(count)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def without(model: ResoLLMModel, *names: str) -> ResoLLMModel:
    """A copy in which these stages are silent; ValueError for one that the model does not have."""
    model = copy.deepcopy(model)
    stages = model.stages()
    for name in names:
        if name not in stages:
            raise ValueError(f"stage = {name!r}: expected one of {', '.join(stages)}")
        stages[name].silence()
    return model


def dialogue_ids(tokenizer: ResoTokenizer, dialogue: Dialogue) -> tuple[list[int], list[int]]:
    """Ids of a dialogue in the chat layout, and a mask that is 1 on its reply."""
    return tokenizer.encode_conversation(
        [("user", dialogue.question), ("assistant", dialogue.reply)]
    )


def bits_per_byte(
    model: ResoLLMModel,
    tokenizer: ResoTokenizer,
    goals: Sequence[Tensor] | None = None,
    *,
    replies_only: bool = False,
    recollect: bool = False,
) -> float:
    """Bits per byte of DIALOGUES, control tokens left out; goals: one vector (D,) a dialogue."""
    nats = num_bytes = 0.0
    for i, dialogue in enumerate(DIALOGUES):
        ids, reply = (x[: model.config.max_seq_len] for x in dialogue_ids(tokenizer, dialogue))
        goal, query = goals[i] if goals else None, dialogue.question if recollect else None
        surprises = read(model, ids, goal, query).surprise_nats
        for token, is_reply, surprise in zip(ids[1:], reply[1:], surprises, strict=True):
            if token >= len(SPECIAL_TOKENS) and (is_reply or not replies_only):
                nats += surprise
                num_bytes += len(tokenizer.token_bytes(token))
    return nats / math.log(2) / num_bytes if num_bytes else math.nan


@torch.no_grad()
def goal_vector(model: ResoLLMModel, tokenizer: ResoTokenizer, text: str) -> Tensor:
    """The vector (D,) that a goal of this description steers towards."""
    return TRUST * text_vector(model.embedding.weight, tokenizer.encode(text))


def probability(
    model: ResoLLMModel, tokenizer: ResoTokenizer, cue: str, answer: str, recollect: bool = True
) -> float:
    """Probability that all tokens of `answer` follow `cue`, given what the session remembers."""
    before = [tokenizer.bos_id, *tokenizer.encode(cue)]
    answer_ids = tokenizer.encode(answer)
    ids = [*before, *answer_ids][-model.config.max_seq_len :]
    surprises = read(model, ids, query=cue if recollect else None).surprise_nats
    return math.exp(-sum(surprises[-len(answer_ids) :]))


def warning_trace(model: ResoLLMModel, ids: Sequence[int]) -> tuple[list[float], str]:
    """The stability monitor's warning at each token, 0 to 1, and its class at the end."""
    values = read(model, ids)
    monitored = readings(
        model.config.stability,
        values.entropy_nats,
        list(ids[1:]),
        surprise_nats=values.surprise_nats,
        coherence=values.coherence,
    )
    return [reading.warning for reading in monitored], monitored[-1].stability_class


def repeated_share(ids: Sequence[int], size: int = 3) -> float:
    """Share of the runs of `size` tokens that occurred before; NaN for a shorter text."""
    runs = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else math.nan
