"""Do goals steer, and how sure is their achievement?

python -m benchmarks.goals --checkpoint RUN --data HELDOUT.jsonl [--train TRAIN.jsonl] [--json OUT]

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
trained: only the other cases say that a goal means more than its own tokens. Intervals are 95 %
bootstrap percentiles over conversations. Rows go to results/goals.jsonl.

Shapes: N conversations, T tokens of a window, D width, V vocabulary.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.heldout import held_out, interval, save, shown
from reso_llm.agency import calibrate, pooled
from reso_llm.data import Split, tokenise_all
from reso_llm.decoding.sampling import SamplingOptions, sample
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.primes import first_primes
from reso_llm.tokenizer import SPECIAL_TOKENS

MIN_REPLY = 16  # tokens of a reply that has halves worth comparing
BATCH_SIZE, HALVINGS = 16, 200
PROMPTS, NEW_TOKENS = 20, 64
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
    model: ResoLLMModel, rows: Sequence[Row], none: Sequence[Tensor], case: str,
    weights: Tensor | None, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Nats per token of a case with the matching goal, none, and another row's; differences."""
    source, part = CASES[case]
    goals = goal_vectors(model.embedding.weight.detach(), rows, source, weights)
    partner = others(len(rows), torch.Generator().manual_seed(seed))
    counts = torch.stack([getattr(row, part).sum() for row in rows]).double()
    sums = {
        "matching": scored(token_nats(model, rows, goals), rows, part),
        "none": scored(none, rows, part),
        "shuffled": scored(token_nats(model, rows, goals[partner]), rows, part),
    }
    found = {name: interval(nats, counts) for name, nats in sums.items()}
    for name in ("matching", "shuffled"):
        found[f"{name} - none"] = interval(sums[name] - sums["none"], counts)
    return {"case": case, "rows": len(rows), "tokens": int(counts.sum()), "seed": seed, **found}


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


def generated(model: ResoLLMModel, rows: Sequence[Row], seed: int) -> list[dict[str, Any]]:
    """Cosine with the row's own goal, and with another's, of texts with and without it."""
    room = model.config.max_seq_len - NEW_TOKENS
    table = model.embedding.weight.detach()
    asked = [(row, int(row.reply.int().argmax()) + 1) for row in rows]
    asked = [(row, end) for row, end in asked if end <= room][:PROMPTS]
    own = goal_vectors(table, [row for row, _ in asked], "reply")
    partner = others(len(asked), torch.Generator().manual_seed(seed))

    def texts(goals: Tensor | None) -> Tensor:
        ids = [
            continuation(
                model, row.inputs[:end], None if goals is None else goals[i : i + 1],
                seed + i, NEW_TOKENS,
            )
            for i, (row, end) in enumerate(asked)
        ]  # fmt: skip
        ids = torch.stack(ids)
        return pooled(F.embedding(ids, table), torch.ones_like(ids, dtype=torch.bool))

    without, ones = texts(None), torch.ones(len(asked))
    found = []
    for name, goals in (("own", own), ("another's", own[partner])):
        pair = [F.cosine_similarity(text, goals) for text in (texts(goals), without)]
        found.append({
            "goal": name, "rows": len(asked), "new_tokens": NEW_TOKENS, "seed": seed,
            "with": interval(pair[0], ones), "without": interval(pair[1], ones),
            "rise": interval(pair[0] - pair[1], ones),
        })  # fmt: skip
    return found


# --- all of it


def measure(
    model: ResoLLMModel, rows: Sequence[Row], weights: dict[str, Tensor | None], seed: int
) -> list[dict[str, Any]]:
    """Every row of the record, in the order of the module's docstring."""
    none = token_nats(model, rows, None)
    found = []
    for case in CASES:
        found.append({"measure": "loss", **compare(model, rows, none, case, None, seed)})
    table = model.embedding.weight.detach()
    for name, weight in weights.items():
        if weight is not None:
            for case in list(CASES)[:2]:
                row = compare(model, rows, none, case, weight, seed)
                found.append({"measure": "weighting", "weighting": name, **row})
        halves = [goal_vectors(table, rows, part, weight) for part in ("first", "second")]
        for centred in (False, True):
            rates = achievement(*halves, centred, seed)
            row = {"weighting": name, "centred": centred, "rows": len(rows), "seed": seed, **rates}
            found.append({"measure": "achieved", **row})
    return found + [{"measure": "generated", **row} for row in generated(model, rows, seed)]


COLUMNS = {
    "loss": ("matching", "none", "shuffled", "matching - none", "shuffled - none"),
    "achieved": ("false", "true", "auc"),
    "generated": ("with", "without", "rise"),
}
NAMES = ("weighting", "centred", "case", "goal")


def table_of(measure_name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The rows of one measure in markdown."""
    columns = COLUMNS.get(measure_name, COLUMNS["loss"])
    names = [name for name in NAMES if name in rows[0]]
    lines = [f"**{measure_name}**", "", f"| {' | '.join([*names, *columns])} |",
             "|" + "---|" * (len(names) + len(columns))]  # fmt: skip
    for row in rows:
        cells = [str(row[name]) for name in names] + [shown(row[c], 3) for c in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="run directory")
    parser.add_argument("--data", required=True, help="held-out conversations")
    parser.add_argument("--train", help="text to count unigrams in, for -ln unigram")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    engine = ResoLLMInference.from_pretrained(options.checkpoint)
    if not engine.config.agency.enabled:
        parser.error(f"{options.checkpoint} has no agency layer")
    split, _ = held_out(options.data, engine.tokenizer)
    rows = first_windows(split, engine.config.max_seq_len)
    weights = weightings(engine.model.embedding.weight.detach(), options.train, engine.tokenizer)
    run = Path(options.checkpoint).name
    found = [{"run": run, **row} for row in measure(engine.model, rows, weights, options.seed)]
    for name in dict.fromkeys(row["measure"] for row in found):
        print(table_of(name, [row for row in found if row["measure"] == name]), "\n", flush=True)
    save("goals", found, options.json)


if __name__ == "__main__":
    main()
