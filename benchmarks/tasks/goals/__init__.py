"""Do goals steer, and how sure is their achievement?

    loss        nats/token of held-out replies, each conversation's first window, with a goal, with
                none, and with another conversation's; the goal is pooled from the whole reply, from
                one half of it (scored on the other), or from the prompt; it counts TRUST of a goal
                of training (`stages/goal.py`), in two cases all of it
    weighting   the loss with rare tokens counted for more: ln p_id of the token's prime, or, from
                the add-one smoothed unigram u of --train, -ln u or the smooth inverse
                a / (a + u), a = 1e-3 (Arora 2017, "A simple but tough-to-beat baseline")
    achieved    goal = prompt or first half of a reply, text = reply or its second half: how often a
                text achieves its own goal and another's (`session/agency.py`); AUC is the chance
                that its own goal suits it better, by the share of words and by cosines of vectors
                in which rare tokens count for more, without the mean text
    generated   cosine with the goal of 64 tokens sampled with it and without it, the same seed
    guided      replies to 60 questions guided to a goal, by the strength of the guidance: how many
                speak of it, and how near they are to it (`guided.py`); with --guided only this, as
                with --model, a model of transformers that is told the goal in its system message

The goal of the whole reply tells the model what it is asked to predict, which is how it was
trained: only the other cases say that a goal means more than its own tokens. A seed draws whose
goal another conversation gets, and the texts. Intervals are 95 % bootstrap
percentiles over conversations; of several seeds the table gives the means of values and ends, as
wide as one seed's.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor
from tqdm import tqdm

from benchmarks.kit import heldout
from benchmarks.kit.records import Records
from benchmarks.tasks.goals import guided
from benchmarks.tasks.goals.conversations import (
    MIN_REPLY,
    Row,
    first_windows,
    goal_vectors,
    part_texts,
    weightings,
)
from benchmarks.tasks.goals.measures import (
    ACHIEVED,
    CASES,
    Asked,
    achievement,
    asked_rows,
    compare,
    cosines,
    generated,
    token_nats,
)
from benchmarks.tasks.goals.tables import figure, text
from benchmarks.tasks.talk import known_words
from reso_llm.generation.text_engine import TextEngine
from reso_llm.model import ResoLLMModel

__all__ = ["add_options", "figure", "run", "text"]

MIN_ROWS = 9  # conversations
PROMPTS, NEW_TOKENS = 20, 64
QUICK_DOCUMENTS, QUICK_ROWS, QUICK_PROMPTS, QUICK_NEW_TOKENS = 40, 10, 2, 4
QUICK_GOALS = 2

Unit = tuple[dict[str, Any], Callable[[], Mapping[str, Any]]]  # fields of a row; its measurement


def add_options(parser: Any) -> None:
    heldout.add_checkpoint_option(parser)
    heldout.add_data_option(parser)
    parser.add_argument("--train", type=str, help="text that the model was trained on")
    parser.add_argument(
        "--model", type=str, help="a model of transformers in place of the checkpoint"
    )
    parser.add_argument("--guided", action="store_true", help="measure guided replies alone")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def run(options: Any) -> list[dict[str, Any]]:
    """One row for each measurement. ValueError without agency, or with too little conversation."""
    seeds = options.seeds[:1] if options.quick else options.seeds
    records = Records("goals", options.record)
    if options.model or options.guided:
        engine, name = _engine(options)
        names = {"checkpoint": name, "data": "questions"}
        todo = guided_units(engine, seeds, options)
        return [records.row({**names, **key}, measure) for key, measure in shown(todo)]
    engine, spec = heldout.engine_with(options.checkpoint, "agency"), heldout.data_of(options)
    split, _ = heldout.held_out(spec, engine.tokenizer, QUICK_DOCUMENTS if options.quick else None)
    rows = first_windows(split, engine.config.max_seq_len)[: QUICK_ROWS if options.quick else None]
    if len(rows) < MIN_ROWS:
        raise ValueError(
            f"{spec}: {len(rows)} conversations with a prompt and {MIN_REPLY} tokens of reply in "
            f"their first {engine.config.max_seq_len}; expected at least {MIN_ROWS}"
        )
    table = engine.model.embedding.weight.detach()
    weights = weightings(table, options.train, engine.tokenizer)
    new_tokens = QUICK_NEW_TOKENS if options.quick else NEW_TOKENS
    prompts = QUICK_PROMPTS if options.quick else PROMPTS
    prompted = asked_rows(rows, engine.config.max_seq_len, prompts, new_tokens)
    names = heldout.names_of(options.checkpoint, spec)
    todo = units(engine.model, rows, weights, seeds, prompted, new_tokens)
    todo += guided_units(engine, seeds, options)
    return [records.row({**names, **key}, measure) for key, measure in shown(todo)]


def shown(todo: Sequence[Unit]) -> Iterable[Unit]:
    """The measurements with a bar of progress."""
    return tqdm(todo, desc="measurements", leave=False, disable=None)


def _engine(options: Any) -> tuple[TextEngine, str]:
    """The engine whose replies are guided, and its name."""
    if options.model:
        from reso_llm.hf.engine import HFEngine

        engine = HFEngine.from_pretrained(options.model)
        return engine, engine.name
    engine = heldout.engine_with(options.checkpoint, "agency")
    return engine, heldout.checkpoint_name(options.checkpoint)


def guided_units(engine: TextEngine, seeds: Sequence[int], options: Any) -> list[Unit]:
    """The measurements of guided replies; none is made yet."""
    goals = guided.GOALS[: QUICK_GOALS if options.quick else None]
    new_tokens = QUICK_NEW_TOKENS if options.quick else guided.NEW_TOKENS
    replies = functools.cache(
        lambda strength, seed: guided.replies(engine, goals, strength, seed, new_tokens)
    )

    @functools.cache
    def known() -> Set[str]:
        return known_words(options.train) if options.train else guided.NO_WORDS

    def measure(strength: float, seed: int) -> dict[str, Any]:
        at, none = replies(strength, seed), replies(0.0, seed)
        return guided.measures(engine, goals, at, none, known())

    return [
        ({"seed": seed, "measure": "guided", "strength": strength},
         functools.partial(measure, strength, seed))
        for seed in seeds
        for strength in options.strengths
    ]  # fmt: skip


def units(
    model: ResoLLMModel, rows: Sequence[Row], weights: dict[str, Tensor | None],
    seeds: Sequence[int], prompted: Sequence[Asked], new_tokens: int,
) -> list[Unit]:  # fmt: skip
    """Every measurement of every seed, in the order of the docstring; none is made yet."""
    table = model.embedding.weight.detach()
    none = functools.cache(lambda: token_nats(model, rows, None))
    texts = functools.cache(lambda seed: generated(model, prompted, seed, new_tokens))

    @functools.cache
    def matching(case: str, name: str) -> list[Tensor]:
        source, _, trust = CASES[case]
        vectors = trust * goal_vectors(table, rows, source, weights[name])
        return token_nats(model, rows, vectors)

    def measure(key: dict[str, Any], seed: int) -> dict[str, Any]:
        name = key.get("weighting", "equal")
        if key["measure"] == "generated":
            return texts(seed)[key["goal"]]
        if key["measure"] == "achieved":
            parts = ACHIEVED[key["case"]]
            goals, said = (goal_vectors(table, rows, part, weights["rarity"]) for part in parts)
            read = [part_texts(rows, part, model.tokenizer) for part in parts]
            return {"rows": len(rows), **achievement(*read, cosines(goals, said, said.mean(0)))}
        case = key["case"]
        return compare(model, rows, none(), matching(case, name), case, weights[name], seed)

    return [
        ({"seed": seed, **key}, functools.partial(measure, key, seed))
        for seed in seeds
        for key in keys(weights)
    ]


def keys(weights: dict[str, Tensor | None]) -> list[dict[str, Any]]:
    """The fields that name each measurement of a seed."""
    fields: list[dict[str, Any]] = [{"measure": "loss", "case": case} for case in CASES]
    for name, weight in weights.items():
        for case in list(CASES)[:2] if weight is not None else ():
            fields.append({"measure": "weighting", "weighting": name, "case": case})
    fields += [{"measure": "achieved", "case": case} for case in ACHIEVED]
    return fields + [{"measure": "generated", "goal": goal} for goal in ("own", "another's")]
