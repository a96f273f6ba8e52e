"""The three measurements: loss with a goal, achievement of goals, and text generated with them.

Shapes: N conversations, T tokens of a window, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.kit.statistics import mean_of, ratio_interval
from benchmarks.tasks.goals.conversations import Row, goal_vectors, others
from reso_llm.decoding.sampling import SamplingOptions, sample
from reso_llm.model import ResoLLMModel
from reso_llm.session.agency import ENOUGH
from reso_llm.session.resonance import share_said
from reso_llm.stages.goal import TRUST, pooled
from reso_llm.tokenizer import SPECIAL_TOKENS

BATCH_SIZE = 16
SAMPLING = SamplingOptions(temperature=0.7)
CASES: dict[str, tuple[str, str, float]] = {  # where the goal comes from, what is scored, trust
    "whole reply": ("reply", "reply", TRUST),
    "first half, second scored": ("first", "second", TRUST),
    "second half, first scored": ("second", "first", TRUST),
    "prompt": ("prompt", "reply", TRUST),
    "whole reply, full trust": ("reply", "reply", 1.0),
    "prompt, full trust": ("prompt", "reply", 1.0),
}

ACHIEVED = {"prompt": ("prompt", "reply"), "first half": ("first", "second")}  # goal, text

Asked = tuple[Row, int]  # a conversation, and how many tokens its prompt has


# --- loss


@torch.inference_mode()
def token_nats(model: ResoLLMModel, rows: Sequence[Row], goals: Tensor | None) -> list[Tensor]:
    """Nats of every target of every row, each (T,), with a goal (N,D) or none."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].inputs))
    nats: dict[int, Tensor] = {}
    for first in range(0, len(order), BATCH_SIZE):
        some = order[first : first + BATCH_SIZE]
        ids, targets = (
            pad_sequence([getattr(rows[i], name) for i in some], batch_first=True)
            for name in ("inputs", "targets")
        )
        logits = model(ids, goal=None if goals is None else goals[some]).logits
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        nats |= {i: losses[k, : len(rows[i].inputs)] for k, i in enumerate(some)}
    return [nats[i] for i in range(len(rows))]


def scored(nats: Sequence[Tensor], rows: Sequence[Row], part: str) -> Tensor:
    """Sum of the nats of one part of each row, (N,) float64."""
    return torch.stack(
        [(n.double() * getattr(row, part)).sum() for n, row in zip(nats, rows, strict=True)]
    )


def compare(
    model: ResoLLMModel, rows: Sequence[Row], none: Sequence[Tensor], matching: Sequence[Tensor],
    case: str, weights: Tensor | None, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Nats per token of a case with the matching goal, none, and another row's; differences.

    `none` and `matching` are their `token_nats`, which are the same for every seed.
    """
    source, part, trust = CASES[case]
    goals = trust * goal_vectors(model.embedding.weight.detach(), rows, source, weights)
    partner = others(len(rows), torch.Generator().manual_seed(seed))
    counts = torch.stack([getattr(row, part).sum() for row in rows]).double()
    sums = {
        "matching": scored(matching, rows, part),
        "none": scored(none, rows, part),
        "shuffled": scored(token_nats(model, rows, goals[partner]), rows, part),
    }
    intervals = {name: ratio_interval(nats, counts) for name, nats in sums.items()}
    for name in ("matching", "shuffled"):
        intervals[f"{name} - none"] = ratio_interval(sums[name] - sums["none"], counts)
    return {"rows": len(rows), "tokens": int(counts.sum()), **intervals}


# --- achievement


def cosines(goals: Tensor, texts: Tensor, centre: Tensor | None = None) -> Tensor:
    """Cosine of every goal with every text, (N,N), after subtracting a centre (D,)."""
    if centre is not None:
        goals, texts = goals - centre, texts - centre
    return F.normalize(goals, dim=-1) @ F.normalize(texts, dim=-1).mT


def achievement(goals: Sequence[str], texts: Sequence[str], cosines: Tensor) -> dict[str, Any]:
    """Rates at which texts achieve other texts' goals and their own, and AUC, of N goals and texts.

    Intervals are over the texts. cosines (N,N) of goals and texts are what the AUC of words is
    compared with.
    """
    share = torch.tensor([[share_said(goal, text) for text in texts] for goal in goals])
    reached, other = (share >= ENOUGH).double(), ~torch.eye(len(texts), dtype=torch.bool)
    false = (reached * other).sum(0) / (len(texts) - 1)
    auc = {"auc": wins(share), "auc of vectors": wins(cosines)}
    return {
        "false": mean_of(false),
        "true": mean_of(reached.diagonal()),
        **{name: mean_of(values) for name, values in auc.items()},
        "auc, words - vectors": mean_of(auc["auc"] - auc["auc of vectors"]),
    }


def wins(scores: Tensor) -> Tensor:
    """Share of the other goals (N,) that suit each text less than its own, of scores (N,N)."""
    own, n = scores.diagonal(), len(scores)
    less = (scores < own).double() + 0.5 * (scores == own).double()
    return (less.sum(0) - 0.5) / (n - 1)  # its own goal is equal to itself


# --- generation


@torch.inference_mode()
def continuation(
    model: ResoLLMModel, prompt: Tensor, goal: Tensor | None, seed: int, count: int
) -> Tensor:
    """`count` sampled ids after a prompt (T,), never a control token: (count,)."""
    generator = torch.Generator().manual_seed(seed)
    output = model(prompt[None], model.init_state(), goal)
    unseen = torch.empty(1, 0, dtype=torch.int64)
    ids = []
    while True:
        logits = output.logits[:, -1].float()
        logits[:, : len(SPECIAL_TOKENS)] = -torch.inf
        ids.append(sample(logits, unseen, SAMPLING, generator))
        if len(ids) == count:
            return torch.cat(ids, dim=1)[0]
        output = model(ids[-1], output.state, goal)


def asked_rows(rows: Sequence[Row], context: int, prompts: int, new_tokens: int) -> list[Asked]:
    """The first conversations that leave room for the text. ValueError for fewer than two."""
    ends = [(row, int(row.reply.int().argmax()) + 1) for row in rows]
    prompted = [(row, end) for row, end in ends if end + new_tokens <= context][:prompts]
    if len(prompted) < 2:
        raise ValueError(
            f"{len(prompted)} prompts leave room for {new_tokens} of the {context} tokens that the "
            "model reads; expected at least 2"
        )
    return prompted


def generated(
    model: ResoLLMModel, prompted: Sequence[Asked], seed: int, new_tokens: int
) -> dict[str, dict[str, Any]]:
    """Cosine with the row's own goal, and with another's, of texts with and without it."""
    table = model.embedding.weight.detach()
    own = goal_vectors(table, [row for row, _ in prompted], "reply")
    partner = others(len(prompted), torch.Generator().manual_seed(seed))

    def texts(goals: Sequence[Tensor | None]) -> Tensor:
        ids = torch.stack([
            continuation(model, row.inputs[:end], goal, seed + i, new_tokens)
            for i, ((row, end), goal) in enumerate(zip(prompted, goals, strict=True))
        ])  # fmt: skip
        return pooled(F.embedding(ids, table), torch.ones_like(ids, dtype=torch.bool))

    without = texts([None] * len(prompted))
    results = {}
    for name, goals in (("own", own), ("another's", own[partner])):
        steered = texts((TRUST * goals).split(1))
        pair = [F.cosine_similarity(text, goals) for text in (steered, without)]
        results[name] = {
            "rows": len(prompted), "new_tokens": new_tokens, "with": mean_of(pair[0]),
            "without": mean_of(pair[1]), "rise": mean_of(pair[0] - pair[1]),
        }  # fmt: skip
    return results
