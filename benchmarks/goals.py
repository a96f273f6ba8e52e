"""Do goals steer, and how sure is their achievement?

    loss        nats/token of held-out replies, each conversation's first window, with a goal, with
                none, and with another conversation's; the goal is pooled from the whole reply, from
                one half of it (scored on the other), or from the prompt
    weighting   the loss with rare tokens counted for more: ln p_id of the token's prime, or, from
                the add-one smoothed unigram u of --train, -ln u or the smooth inverse
                a / (a + u), a = 1e-3 (Arora 2017, "A simple but tough-to-beat baseline")
    achieved    goal = first half of a reply, text = second half: `agency.calibrate` on one half of
                the conversations, rates on the other, over 200 random halvings; AUC is the chance
                that a matching pair has the larger cosine; centred subtracts the mean text first
    generated   cosine with the goal of 64 tokens sampled with it and without it, the same seed

The goal of the whole reply tells the model what it is asked to predict, which is how it was
trained: only the other cases say that a goal means more than its own tokens. A seed draws whose
goal another conversation gets, the halvings, and the texts. Intervals are 95 % bootstrap
percentiles over conversations, those of `achieved` ranges over the halvings; of several seeds the
table gives the means of values and ends, as wide as one seed's.

Shapes: N conversations, T tokens of a window, D width, V vocabulary.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from benchmarks.common import Records
from benchmarks.heldout import (
    add_checkpoint_option,
    add_data_option,
    checkpoint_name,
    data_name,
    data_of,
    engine_with,
    error_bars,
    held_out,
    interval,
    mean_interval,
    shown,
)
from entropy_core.primes import first_primes
from reso_llm.data.prepare import tokenise_all
from reso_llm.data.token_cache import Split
from reso_llm.decoding.sampling import SamplingOptions, sample
from reso_llm.model import ResoLLMModel
from reso_llm.session.agency import calibrate
from reso_llm.stages.goal import pooled
from reso_llm.tokenizer import SPECIAL_TOKENS

MIN_REPLY = 16  # tokens of a reply that has halves worth comparing
MIN_ROWS = 9  # conversations: 5 in the half that calibrates, as 5 x 4 unrelated pairs suffice
BATCH_SIZE, HALVINGS = 16, 200
PROMPTS, NEW_TOKENS = 20, 64
QUICK_DOCUMENTS, QUICK_ROWS, QUICK_PROMPTS, QUICK_NEW_TOKENS = 40, 10, 2, 4
SMOOTH = 1e-3  # a of the smooth inverse frequency
SAMPLING = SamplingOptions(temperature=0.7)


class Row(NamedTuple):
    """The first window of a conversation: inputs and targets int64 (T,), masks (T,) of targets."""

    inputs: Tensor
    targets: Tensor
    reply: Tensor
    prompt: Tensor
    first: Tensor  # half of the reply's words
    second: Tensor


CASES: dict[str, tuple[str, str]] = {  # where the goal comes from, what is scored
    "whole reply": ("reply", "reply"),
    "first half, second scored": ("first", "second"),
    "second half, first scored": ("second", "first"),
    "prompt": ("prompt", "reply"),
}


# --- conversations and goals


def first_windows(split: Split, context: int) -> list[Row]:
    """One row for each document with a prompt and MIN_REPLY tokens of reply in its first window."""
    stops = [*split.doc_starts[1:], split.num_tokens]
    rows = []
    for start, stop in zip(split.doc_starts, stops, strict=True):
        span = slice(int(start), min(int(stop), int(start) + context + 1))
        ids = torch.from_numpy(np.asarray(split.tokens[span], dtype=np.int64))
        reply = torch.from_numpy(np.asarray(split.reply_mask[span], dtype=bool))[1:]
        row = make_row(ids, reply)
        if row.prompt.any() and row.first.sum() + row.second.sum() >= MIN_REPLY:
            rows.append(row)
    return rows


def make_row(ids: Tensor, reply: Tensor) -> Row:
    """ids (T+1,), reply (T,) of targets -> the row. Control tokens are in no half or prompt."""
    targets = ids[1:]
    words = targets >= len(SPECIAL_TOKENS)
    said = reply & words
    first = said & (said.cumsum(0) <= said.sum() // 2)
    prompt = words & ~reply & (reply.cumsum(0) == 0)
    return Row(ids[:-1], targets, reply, prompt, first, said & ~first)


def goal_vectors(
    table: Tensor, rows: Sequence[Row], part: str, weights: Tensor | None = None
) -> Tensor:
    """Pooled vectors (N,D) of one part of each row, from a table (V,D); weights (V,) of tokens."""
    targets = pad_sequence([row.targets for row in rows], batch_first=True)  # (N,T)
    mask = pad_sequence([getattr(row, part) for row in rows], batch_first=True)
    shares = None if weights is None else weights[targets]
    return pooled(F.embedding(targets, table), mask, shares)


def others(count: int, generator: torch.Generator) -> Tensor:
    """A random cycle through all rows, (N,): each gets the index of another one."""
    order = torch.randperm(count, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def weightings(table: Tensor, train: str | None, tokenizer) -> dict[str, Tensor | None]:
    """By name: None for equal weights, or what each token of the vocabulary counts for, (V,)."""
    count = len(table)
    made = {"equal": None, "ln prime": torch.tensor(first_primes(count)).log().to(table)}
    if train is not None:
        seen = np.bincount(tokenise_all(train, tokenizer).tokens, minlength=count) + 1
        unigram = torch.from_numpy(seen / seen.sum())
        made["-ln unigram"] = -unigram.log().to(table)
        made["smooth inverse"] = (SMOOTH / (SMOOTH + unigram)).to(table)
    return made


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
    source, part = CASES[case]
    goals = goal_vectors(model.embedding.weight.detach(), rows, source, weights)
    partner = others(len(rows), torch.Generator().manual_seed(seed))
    counts = torch.stack([getattr(row, part).sum() for row in rows]).double()
    sums = {
        "matching": scored(matching, rows, part),
        "none": scored(none, rows, part),
        "shuffled": scored(token_nats(model, rows, goals[partner]), rows, part),
    }
    found = {name: interval(nats, counts) for name, nats in sums.items()}
    for name in ("matching", "shuffled"):
        found[f"{name} - none"] = interval(sums[name] - sums["none"], counts)
    return {"rows": len(rows), "tokens": int(counts.sum()), **found}


# --- achievement


def off_diagonal(matrix: Tensor) -> Tensor:
    """The n (n - 1) entries of (n,n) that pair different rows."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def cosines(goals: Tensor, texts: Tensor, centre: Tensor | None = None) -> Tensor:
    """Cosine of every goal with every text, (N,N), after subtracting a centre (D,)."""
    if centre is not None:
        goals, texts = goals - centre, texts - centre
    return F.normalize(goals, dim=-1) @ F.normalize(texts, dim=-1).mT


def achievement(goals: Tensor, texts: Tensor, centred: bool, seed: int) -> dict[str, Any]:
    """False and true achievement rates, and the AUC, each with the 95 % range over halvings."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(HALVINGS):
        known, new = torch.randperm(len(goals), generator=generator).chunk(2)
        centre = texts[known].mean(0) if centred else None
        threshold = calibrate(off_diagonal(cosines(goals[known], texts[known], centre))).threshold
        matrix = cosines(goals[new], texts[new], centre)
        matching, unrelated = matrix.diagonal(), off_diagonal(matrix)
        wins = (matching[:, None] > unrelated).double().mean()
        rates = [(v >= threshold).double().mean() for v in (unrelated, matching)]
        found.append(torch.stack([*rates, wins]))
    values = torch.stack(found)  # (HALVINGS, 3)
    ends = torch.tensor([0.025, 0.975], dtype=values.dtype)
    low, high = values.quantile(ends, dim=0)
    summary = torch.stack((values.mean(0), low, high), dim=1).tolist()
    return dict(zip(("false", "true", "auc"), summary, strict=True)) | {"halvings": HALVINGS}


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


Asked = tuple[Row, int]  # a conversation, and how many tokens its prompt has


def asked_rows(rows: Sequence[Row], context: int, prompts: int, new_tokens: int) -> list[Asked]:
    """The first conversations that leave room for the text. ValueError for fewer than two."""
    ends = [(row, int(row.reply.int().argmax()) + 1) for row in rows]
    asked = [(row, end) for row, end in ends if end + new_tokens <= context][:prompts]
    if len(asked) < 2:
        raise ValueError(
            f"{len(asked)} prompts leave room for {new_tokens} of the {context} tokens the model "
            "reads; expected at least 2"
        )
    return asked


def generated(
    model: ResoLLMModel, asked: Sequence[Asked], seed: int, new_tokens: int
) -> dict[str, dict[str, Any]]:
    """Cosine with the row's own goal, and with another's, of texts with and without it."""
    table = model.embedding.weight.detach()
    own = goal_vectors(table, [row for row, _ in asked], "reply")
    partner = others(len(asked), torch.Generator().manual_seed(seed))

    def texts(goals: Tensor | None) -> Tensor:
        ids = [
            continuation(
                model, row.inputs[:end], None if goals is None else goals[i : i + 1],
                seed + i, new_tokens,
            )
            for i, (row, end) in enumerate(asked)
        ]  # fmt: skip
        ids = torch.stack(ids)
        return pooled(F.embedding(ids, table), torch.ones_like(ids, dtype=torch.bool))

    without, ones = texts(None), torch.ones(len(asked))
    found = {}
    for name, goals in (("own", own), ("another's", own[partner])):
        pair = [F.cosine_similarity(text, goals) for text in (texts(goals), without)]
        found[name] = {
            "rows": len(asked), "new_tokens": new_tokens, "with": interval(pair[0], ones),
            "without": interval(pair[1], ones), "rise": interval(pair[0] - pair[1], ones),
        }  # fmt: skip
    return found


# --- the task


Unit = tuple[dict[str, Any], Callable[[], Mapping[str, Any]]]  # what a row is of; its measurement


def add_options(parser: Any) -> None:
    add_checkpoint_option(parser)
    add_data_option(parser)
    parser.add_argument("--train", type=str, help="text to count unigrams in, for two weightings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def run(options: Any) -> list[dict[str, Any]]:
    """One row for each measurement. ValueError without agency, or with too little conversation."""
    engine, spec = engine_with(options.checkpoint, "agency"), data_of(options)
    split, _ = held_out(spec, engine.tokenizer, QUICK_DOCUMENTS if options.quick else None)
    rows = first_windows(split, engine.config.max_seq_len)[: QUICK_ROWS if options.quick else None]
    if len(rows) < MIN_ROWS:
        raise ValueError(
            f"{spec}: {len(rows)} conversations with a prompt and {MIN_REPLY} tokens of reply in "
            f"their first {engine.config.max_seq_len}; expected at least {MIN_ROWS}"
        )
    table = engine.model.embedding.weight.detach()
    weights = weightings(table, options.train, engine.tokenizer)
    prompts, new_tokens = (
        (QUICK_PROMPTS, QUICK_NEW_TOKENS) if options.quick else (PROMPTS, NEW_TOKENS)
    )
    asked = asked_rows(rows, engine.config.max_seq_len, prompts, new_tokens)
    seeds = options.seeds[:1] if options.quick else options.seeds
    about = {"checkpoint": checkpoint_name(options.checkpoint), "data": data_name(spec)}
    records = Records("goals", options.record)
    todo = units(engine.model, rows, weights, seeds, asked, new_tokens)
    bar = tqdm(todo, desc="measurements", leave=False)
    return [records.row({**about, **key}, measure) for key, measure in bar]


def units(
    model: ResoLLMModel, rows: Sequence[Row], weights: dict[str, Tensor | None],
    seeds: Sequence[int], asked: Sequence[Asked], new_tokens: int,
) -> list[Unit]:  # fmt: skip
    """Every measurement of every seed, in the order of the docstring; none is made yet."""
    table = model.embedding.weight.detach()
    none = functools.cache(lambda: token_nats(model, rows, None))
    texts = functools.cache(lambda seed: generated(model, asked, seed, new_tokens))

    @functools.cache
    def matching(case: str, name: str) -> list[Tensor]:
        vectors = goal_vectors(table, rows, CASES[case][0], weights[name])
        return token_nats(model, rows, vectors)

    def loss(case: str, name: str, seed: int) -> dict[str, Any]:
        return compare(model, rows, none(), matching(case, name), case, weights[name], seed)

    def achieved(name: str, centred: bool, seed: int) -> dict[str, Any]:
        halves = [goal_vectors(table, rows, part, weights[name]) for part in ("first", "second")]
        return {"rows": len(rows), **achievement(*halves, centred, seed)}

    keys: list[dict[str, Any]] = [{"measure": "loss", "case": case} for case in CASES]
    measures: list[Callable[[int], Mapping[str, Any]]] = [
        functools.partial(loss, case, "equal") for case in CASES
    ]
    for name, weight in weights.items():
        for case in list(CASES)[:2] if weight is not None else ():
            keys.append({"measure": "weighting", "weighting": name, "case": case})
            measures.append(functools.partial(loss, case, name))
        for centred in (False, True):
            keys.append({"measure": "achieved", "weighting": name, "centred": centred})
            measures.append(functools.partial(achieved, name, centred))
    for goal in ("own", "another's"):
        keys.append({"measure": "generated", "goal": goal})
        measures.append(lambda seed, goal=goal: texts(seed)[goal])
    return [
        ({"seed": seed, **key}, functools.partial(measure, seed=seed))
        for seed in seeds
        for key, measure in zip(keys, measures, strict=True)
    ]


COLUMNS = {
    "loss": ("matching", "none", "shuffled", "matching - none", "shuffled - none"),
    "achieved": ("false", "true", "auc"),
    "generated": ("with", "without", "rise"),
}
ABOUT, NAMES = ("checkpoint", "data"), ("weighting", "centred", "case", "goal")
STYLES = (("matching", "#0072B2", "o"), ("shuffled", "#D55E00", "s"))


def over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each measurement: its numbers' means over the seeds, and how many there are."""
    by_key: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault(tuple(row.get(n) for n in (*ABOUT, "measure", *NAMES)), []).append(row)
    made = []
    for some in by_key.values():
        columns = COLUMNS.get(some[0]["measure"], COLUMNS["loss"])
        means = {c: mean_interval([row[c] for row in some]) for c in columns}
        made.append({**some[0], **means, "num_seeds": len(some)})
    return made


def groups(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Rows over the seeds by checkpoint, data and measure."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in over_seeds(rows):
        found.setdefault(tuple(row[name] for name in (*ABOUT, "measure")), []).append(row)
    return found


def text(rows: Sequence[dict[str, Any]]) -> str:
    """One table for each checkpoint, data set and measure."""
    return "\n\n".join(_table(*key, some) for key, some in groups(rows).items())


def _table(checkpoint: str, data: str, measure: str, rows: Sequence[dict[str, Any]]) -> str:
    columns = COLUMNS.get(measure, COLUMNS["loss"])
    names = [name for name in NAMES if name in rows[0]]
    lines = [
        f"**{measure}**: {checkpoint}, {rows[0]['rows']} conversations of {data}, "
        f"seeds: {rows[0]['num_seeds']}", "",
        f"| {' | '.join([*names, *columns])} |", "|" + "---|" * (len(names) + len(columns)),
    ]  # fmt: skip
    for row in rows:
        cells = [str(row[name]) for name in names] + [shown(row[c], 3) for c in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Loss with a goal minus loss without, by where the goal comes from; a panel a checkpoint."""
    from matplotlib.figure import Figure

    losses = {key[:2]: some for key, some in groups(rows).items() if key[2] == "loss"}
    drawn = Figure(figsize=(7.5 * max(1, len(losses)), 4.2), layout="constrained")
    panels = drawn.subplots(1, max(1, len(losses)), squeeze=False)[0]
    for axes, ((checkpoint, data), some) in zip(panels, losses.items(), strict=False):
        for i, (name, color, marker) in enumerate(STYLES):
            middle, bars = error_bars([row[f"{name} - none"] for row in some])
            axes.errorbar(middle, np.arange(len(some)) + 0.2 * i - 0.1, xerr=bars, fmt=marker,
                          color=color, capsize=3, label=f"{name} goal")  # fmt: skip
        axes.axvline(0, color="#555555", lw=0.8)
        axes.set_yticks(range(len(some)), [f"goal from {row['case']}" for row in some])
        axes.set_ylim(len(some) - 0.5, -0.5)
        axes.set(xlabel="nats per token of the reply, minus those without a goal",
                 title=f"{checkpoint}, {some[0]['rows']} conversations of {data}")  # fmt: skip
        axes.legend()
    return drawn
