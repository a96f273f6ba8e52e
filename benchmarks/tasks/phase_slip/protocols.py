"""The protocols: each makes rows, one for an arm, of a writer's texts.

    published  the README's: one prompt, rounds of 50 tokens, unique / all words
    strict     prompts x seeds of 100 tokens, all measures, nats per byte without any control
    breaker    the README's loop-breaker prompt: the text, its entropies and its slips
    loops      greedy texts of more prompts: how readily they loop, and how sure the loops are
    rivals     the measures of strict, of the samplers that people use, on more prompts; and
    facts      what is left of greedy answers (both `rivals.py`)

A unit is (key, measure): the fields that name its row, and what makes the others.

Shapes: P prompts, S seeds.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.kit.pretrained import Writer
from benchmarks.kit.writers import Text, spoken
from benchmarks.tasks.phase_slip import arms, measures, rivals
from reso_llm.generation.engine import Prompt

Texts = Sequence[Sequence[Text]]  # (P,S)
Unit = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
PROTOCOLS = ("published", "breaker", "loops", "strict", "rivals", "facts")
WITH_PAIRS = ("rep-4", "distinct-2", "own", "outside")  # of which each text is kept, for intervals


class Plan(NamedTuple):
    """How much is measured; `seeds` of the strict protocol, of which the scorer reads the first."""

    arms: Sequence[str]
    seeds: Sequence[int]
    scored_seeds: int
    tokens: int = 100
    rounds: int = 5
    round_tokens: int = 50
    loop_tokens: int = 200
    prompts: Sequence[Prompt] = arms.PROMPTS
    loop_prompts: Sequence[Prompt] = arms.PROMPTS + arms.MORE_PROMPTS
    rival_arms: Sequence[str] = tuple(rivals.RIVALS)
    fact_arms: Sequence[str] = (rivals.REWIND, arms.PUBLISHED)


def units(writer: Writer, scorer: Writer | None, plan: Plan) -> Iterator[Unit]:
    """The key and the measurement of every row, in the order of the tables."""
    of = {"model": writer.name, "weights": writer.weights}
    for arm in arms.PUBLISHED_ARMS:
        key = {"protocol": "published", "arm": arm, "tokens": plan.round_tokens}
        key["seeds"] = [*range(plan.rounds)]
        yield of | key, partial(published, writer, arm, plan)
    for arm in (arms.GREEDY, arms.PUBLISHED, arms.AT_LOOPS):
        key = {"protocol": "breaker", "arm": arm, "tokens": plan.tokens, "seeds": [0]}
        yield of | key, partial(breaker, writer, arm, plan)
    key = {"protocol": "loops", "arm": arms.GREEDY, "tokens": plan.loop_tokens}
    yield of | key | {"prompts": len(plan.loop_prompts)}, partial(loops, writer, plan)
    yield from _measured(of, "strict", writer, scorer, plan)
    many = plan._replace(arms=plan.rival_arms, prompts=plan.loop_prompts)
    yield from _measured(of, "rivals", writer, scorer, many)
    for arm in plan.fact_arms:
        key = {"protocol": "facts", "arm": arm, "tokens": rivals.FACT_TOKENS}
        yield of | key, partial(rivals.facts, writer, arm)


def _measured(
    of: dict[str, Any], protocol: str, writer: Writer, scorer: Writer | None, plan: Plan
) -> Iterator[Unit]:
    greedy = cache(partial(arm_texts, writer, arms.GREEDY, plan))
    for arm in plan.arms:
        key = {"protocol": protocol, "arm": arm, "tokens": plan.tokens, "seeds": [*plan.seeds]}
        key |= {"scorer": scorer and scorer.name, "scored_seeds": scorer and plan.scored_seeds}
        yield of | key, partial(strict, writer, scorer, arm, plan, greedy)


# --- published, breaker, loops


def published(writer: Writer, arm: str, plan: Plan) -> dict[str, Any]:
    """Diversity of each round."""
    seeds = range(plan.rounds)
    texts = writer.write([arms.METHOD] * len(seeds), seeds, arms.ARMS[arm], plan.round_tokens)
    causes = [cause for text in texts for _, cause in text.slips]
    return {
        "prompt": arms.METHOD,
        "diversity": [
            round(measures.published_diversity(arms.METHOD + text.text), 4) for text in texts
        ],
        **{f"{cause}s": causes.count(cause) for cause in arms.CAUSES},
    }


def breaker(writer: Writer, arm: str, plan: Plan) -> dict[str, Any]:
    """The text after the loop-breaker prompt, and what happened in it."""
    (text,) = writer.write([arms.SECRET_LAB], [0], arms.ARMS[arm], plan.tokens)
    inside, (again, grams) = measures.looping(text.ids), measures.repeated_grams(text.ids, 4)
    return {
        "prompt": arms.SECRET_LAB,
        "text": text.text,
        "looping": sum(inside) / len(inside),
        "ends": inside[-1],
        "rep-4": again / max(1, grams),
        "entropies_nats": [round(entropy, 3) for entropy in text.entropies],
        "slips": [list(slip) for slip in text.slips],
    }


def loops(writer: Writer, plan: Plan) -> dict[str, Any]:
    """Entropies inside and outside the loops of greedy texts, and when each text begins to loop."""
    prompts = plan.loop_prompts
    texts = writer.write(prompts, range(len(prompts)), arms.ARMS[arms.GREEDY], plan.loop_tokens)
    flags = [measures.looping(text.ids) for text in texts]
    repeats = [measures.repeated_grams(text.ids, 4) for text in texts]
    return {
        **measures.loop_entropies(texts),
        "first": [row.index(True) if any(row) else None for row in flags],
        "ends": [row[-1] for row in flags],
        "rep-4": [round(again / grams, 4) for again, grams in repeats],
    }


# --- strict


def arm_texts(writer: Writer, arm: str, plan: Plan) -> Texts:
    """Texts (P,S) of an arm; those that no seed changes are written once for each prompt.

    Prompt p of seed s draws from s P + p, so that all of an arm are rows of a few batches.
    """
    prompts, num, how = plan.prompts, len(plan.prompts), (arms.ARMS | rivals.RIVALS)[arm]
    if not arms.is_drawn(how):
        once = writer.write(prompts, range(num), how, plan.tokens)
        return [[text] * len(plan.seeds) for text in once]
    draws = [seed * num + p for seed in plan.seeds for p in range(num)]
    texts = writer.write([*prompts] * len(plan.seeds), draws, how, plan.tokens)
    return [texts[p::num] for p in range(num)]


def strict(
    writer: Writer, scorer: Writer | None, arm: str, plan: Plan, greedy: Callable[[], Texts]
) -> dict[str, Any]:
    """All measures of an arm: their values, and for those with intervals the pairs (2,P,S)."""
    texts = greedy() if arm == arms.GREEDY else arm_texts(writer, arm, plan)
    measured = [
        [measures.measures_of(t, spoken(p), g) for t, g in zip(row, base, strict=True)]
        for p, row, base in zip(plan.prompts, texts, greedy(), strict=True)
    ]
    pairs = {
        name: np.array([[cell[name] for cell in row] for row in measured], float).transpose(2, 0, 1)
        for name in measured[0][0]
    }
    heads = [writer.prompt_ids(p) for p in plan.prompts]
    own = [(head, text.ids) for head, row in zip(heads, texts, strict=True) for text in row]
    pairs["own"] = scored(texts, own, writer)
    if scorer is not None:
        first = [row[: plan.scored_seeds] for row in texts]
        contexts = [scorer.encode(spoken(prompt)) for prompt in plan.prompts]
        out = [
            (context, scorer.encode(text.text))
            for context, row in zip(contexts, first, strict=True)
            for text in row
        ]
        pairs["outside"] = np.zeros_like(pairs["own"])
        pairs["outside"][:, :, : plan.scored_seeds] = scored(first, out, scorer)
    sums = {name: p.sum((1, 2)).tolist() for name, p in pairs.items()}
    return {
        "values": {name: round(a / b, 5) if b else None for name, (a, b) in sums.items()},
        "pairs": {name: pairs[name].round(3).tolist() for name in WITH_PAIRS if name in pairs},
    }


def scored(texts: Texts, pairs: Sequence[Any], scorer: Writer) -> np.ndarray:
    """(nats, UTF-8 bytes) of texts (P,S): (2,P,S); `pairs` are their contexts and ids, in a row."""
    nats = measures.continuation_nats(scorer.logits, pairs, scorer.score_rows)
    sizes = [[len(text.text.encode()) for text in row] for row in texts]
    return np.stack((np.reshape(nats, np.shape(sizes)), np.array(sizes, float)))
