"""Does deepening pay for itself: SRB with it, without it, and whole replies at equal total tokens.

python -m benchmarks.studies.deepening --model SmolLM2-135M-Instruct --prompts 5

SRB stops replies early; here it spends what it saves on deepening, where the averaged entropy is
high and the coherence rising (`SRB.deepen_nats`, `deepen_coherence_rise`), and the tokens of all
candidates count. Designs of a deepening, K candidates each:

    likely     the K most probable tokens, each with its HORIZON most probable successors: one is
               drawn by ln p of all (what SRB does)
    best       the same candidates, the best of them by mean ln p - REPEATS x the share of its
               3-grams that the text has already
    stretch    K stretches drawn by the sampler, the best of them by the same score, kept whole

Against them the recorded replies of `evaluate.py srb --replay`: `static`, until the model ends, and
`srb`, the rule without deepening. Written in batches, layers in bfloat16, and kept in
results/srb/MODEL/deepened.jsonl.gz; a reply that is there is not written again. One row a design:
means, and differences with intervals over prompts.

Shapes: B rows, m candidates of all rows that deepen, V vocabulary.
"""

import argparse
import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit import records
from benchmarks.kit.batched import LIKELY, TracedReply
from benchmarks.kit.pretrained import PretrainedWriter, padded
from benchmarks.kit.statistics import mean_of
from benchmarks.kit.writers import SAMPLER, ResoWriter, asked
from benchmarks.tasks.srb import analysis, finishing, replay, study
from benchmarks.tasks.srb.prompts import Prompt, prompts
from entropy_core.information import entropy_nats
from entropy_core.signals import SignalTracker
from reso_llm.decoding.controllers import SRB, Deepen, RowView
from reso_llm.decoding.draft import Written
from reso_llm.decoding.row import SignalOptions

K, CAP, BATCH, REPEATS, GRAM = 4, 512, 30, 2.0, 3
DESIGNS = {
    "likely": SRB(candidates=K, horizon=4, deepen_nats=2.4),
    "best": SRB(candidates=K, horizon=4, deepen_nats=2.4),
    "stretch": SRB(candidates=K, horizon=8, deepen_nats=2.2),
}
"""Rules whose deepening costs about what their stops save, by traces of the calibration half."""


class Row:
    """One reply that is being written, with SRB's decisions about it."""

    def __init__(self, question: str, seed: int, before: int, rule: SRB) -> None:
        options = SignalOptions()
        self.question, self.before, self.rule = question, before, rule.start()
        self.generator = torch.Generator().manual_seed(seed)
        self.tracker = SignalTracker(options.window, options.ema_weight)
        self.ids: list[int] = []
        self.planned: list[int] = []  # tokens of a stretch that is kept
        self.trace: list[Any] = []
        self.surprise_nats: list[float] = []
        self.end_nats: list[float] = []
        self.stop_reason, self.num_tried, self.seconds = "", 0, 0.0

    def decide(self, writer: PretrainedWriter, z: Tensor, vector: np.ndarray, stop: int) -> Any:
        """What SRB decides before the next token, of logits z (V,)."""
        signals = self.tracker.update(float(entropy_nats(z)), math.nan, vector)
        self.end_nats.append(-float(z.log_softmax(-1)[stop]))
        if self.ids[-1:] == [stop] or len(self.ids) >= CAP:
            self.stop_reason = "end" if self.ids[-1:] == [stop] else "length"
            return None
        written = Written(self.question, writer.spell(self.ids), self.ids, self.end_nats[-1])
        decision = self.rule.decide(
            RowView(signals, 0.0, SAMPLER["temperature"], None, self.ids, self.trace, written)
        )
        if decision is not None and (decision.end or decision.stop):
            self.stop_reason = f"srb_{decision.cause}"
            return None
        self.trace.append(signals)
        if decision is None:
            return None
        if self.planned:  # a stretch is being written: nothing is tried, and nothing is spent
            tried, state = decision.deepen, self.rule.state
            spent = state.num_spent - tried.candidates * tried.horizon
            self.rule.state = state._replace(num_spent=spent)
            return None
        return decision.deepen

    def take(self, token: int, log_p: Tensor) -> None:
        self.ids.append(token)
        self.surprise_nats.append(-float(log_p[token]))


def drawn(generator: torch.Generator, z: Tensor) -> int:
    """A token from logits (V,), with the temperature and top_p of SAMPLER."""
    p = (z / SAMPLER["temperature"]).softmax(-1)
    best = p.topk(min(LIKELY, len(p)))
    sums = best.values.cumsum(-1)
    size = max(1, int((sums - best.values < SAMPLER["top_p"]).sum()))
    point = torch.rand((), generator=generator) * sums[size - 1]
    return int(best.indices[min(int(torch.searchsorted(sums, point, right=True)), size - 1)])


class Batch:
    """A model of transformers after some rows, layers in bfloat16 and the head in float32."""

    def __init__(self, writer: PretrainedWriter) -> None:
        self.body = copy.deepcopy(writer.model.base_model).to(torch.bfloat16)
        self.head = writer.model.get_output_embeddings()

    def start(self, heads: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B,V) after prompts."""
        ids, self.mask = padded(heads)
        self.cache, self.places = None, (self.mask.cumsum(1) - 1).clamp(min=0)
        return self._read(ids)

    def _read(self, ids: Tensor) -> Tensor:
        output = self.body(
            ids, attention_mask=self.mask, position_ids=self.places, past_key_values=self.cache,
            use_cache=True,
        )  # fmt: skip
        self.cache = output.past_key_values
        return self.head(output.last_hidden_state[:, -1].float())

    def step(self, kept: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Logits after one more token of each row that is kept."""
        if len(kept) < len(self.mask):
            self.cache.batch_select_indices(torch.tensor(kept))
        self.places = self.places[kept, -1:] + 1
        ones = torch.ones(len(kept), 1, dtype=torch.long)
        self.mask = torch.cat((self.mask[kept], ones), 1)
        return self._read(torch.tensor(tokens)[:, None])

    def fork(self, places: Sequence[int]) -> "Batch":
        """A batch of these rows, each as often as it is named, that goes on by itself."""
        other = copy.copy(self)
        other.cache = copy.copy(self.cache)
        other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        other.cache.batch_select_indices(torch.tensor(places))
        other.mask, other.places = self.mask[places], self.places[places]
        return other


def choose(
    batch: Batch, rows: Sequence[Row], which: Sequence[int], z: Tensor, design: str, deepen: Deepen,
    stop: int,
) -> None:  # fmt: skip
    """Plan the next tokens of the rows `which`: one candidate, or a whole stretch."""
    log_p = z.log_softmax(-1)
    stretch = design == "stretch"
    first = [
        [drawn(rows[b].generator, z[b]) for _ in range(K)] if stretch else log_p[b].topk(K).indices
        for b in which
    ]
    owners = [b for b in which for _ in range(K)]
    texts = [[int(token)] for some in first for token in some]
    nats = [[-float(log_p[b][text[0]])] for b, text in zip(owners, texts, strict=True)]
    ahead = batch.fork(owners)
    for _ in range(deepen.horizon - stretch):
        after = ahead.step(range(len(owners)), [text[-1] for text in texts])
        log_q = after.log_softmax(-1)
        for i, (b, text) in enumerate(zip(owners, texts, strict=True)):
            ended = text[-1] == stop
            likely = drawn(rows[b].generator, after[i]) if stretch else int(log_q[i].argmax())
            token = stop if ended else likely
            text.append(token)
            if not ended:
                nats[i].append(-float(log_q[i][token]))
    for j, b in enumerate(which):
        row, some = rows[b], range(j * K, (j + 1) * K)
        row.num_tried += K * deepen.horizon
        if design == "likely":
            scores = torch.full_like(z[b], -torch.inf)
            for i in some:
                scores[texts[i][0]] = -sum(nats[i])
            row.planned = [drawn(row.generator, scores)]
            continue
        best = max(some, key=lambda i: -np.mean(nats[i]) - REPEATS * again(row.ids, texts[i]))
        row.planned = texts[best][: len(nats[best])] if stretch else texts[best][:1]


def again(ids: Sequence[int], text: Sequence[int]) -> float:
    """Share of a continuation's 3-grams that the ids, or it before them, have."""
    whole = [*ids, *text]
    grams = [tuple(whole[i : i + GRAM]) for i in range(len(whole) - GRAM + 1)]
    new = grams[max(0, len(ids) - GRAM + 1) :]
    seen, count = set(grams[: len(grams) - len(new)]), 0
    for gram in new:
        count += gram in seen
        seen.add(gram)
    return count / max(1, len(new))


@torch.inference_mode()
def replies(
    writer: PretrainedWriter, chosen: Sequence[Prompt], seed: int, design: str
) -> list[tuple[TracedReply, int]]:
    """Replies to questions, and the tokens of the candidates of each."""
    rule, stop = DESIGNS[design], writer.tokenizer.eos_token_id
    heads = [writer.prompt_ids(asked(prompt.text)) for prompt in chosen]
    rows = [
        Row(prompt.text, study.draws(prompt, seed), head[-1], rule)
        for prompt, head in zip(chosen, heads, strict=True)
    ]
    table, batch, start = writer.model.get_input_embeddings().weight, Batch(writer), time.time()
    going, z = rows, batch.start(heads)
    while True:
        newest = [(row.ids or [row.before])[-1] for row in going]
        vectors = table[torch.tensor(newest)].float().numpy()
        wanted = [row.decide(writer, z[b], vectors[b], stop) for b, row in enumerate(going)]
        deep = [b for b, some in enumerate(wanted) if some is not None]
        if deep:
            choose(batch, going, deep, z, design, wanted[deep[0]], stop)
        kept = [b for b, row in enumerate(going) if not row.stop_reason]
        for row in going:
            row.seconds = time.time() - start
        for b in kept:
            row = going[b]
            token = row.planned.pop(0) if row.planned else drawn(row.generator, z[b])
            row.take(token, z[b].log_softmax(-1))
        going = [going[b] for b in kept]
        if not going:
            return [(traced(writer, row), row.num_tried) for row in rows]
        z = batch.step(kept, [row.ids[-1] for row in going])


def traced(writer: PretrainedWriter, row: Row) -> TracedReply:
    names = ("entropy_nats", "ema_nats", "coherence")
    columns = (np.array([getattr(s, name) for s in row.trace]) for name in names)
    return TracedReply(
        row.ids, writer.spell(row.ids), row.stop_reason, row.seconds, *columns,
        np.array(row.surprise_nats), np.array(row.end_nats),
    )  # fmt: skip


# --- what it brought


def write_missing(
    writer: PretrainedWriter, kept: study.Replies, chosen: Sequence[Prompt], seed: int, design: str
) -> None:
    missing = [p for p in chosen if kept.find(1, p, seed, design) is None]
    for first in range(0, len(missing), BATCH):
        some = missing[first : first + BATCH]
        for prompt, (reply, tried) in zip(some, replies(writer, some, seed, design), strict=True):
            columns = {name: getattr(reply, name) for name in replay.COLUMNS}
            kept.add(study.record(1, prompt, seed, design, reply, columns) | {"tried": tried})


def compared(
    writer: PretrainedWriter, judge: Any, static: Sequence[Any], deep: Sequence[Any]
) -> dict[str, Any]:
    """Means of static replies, SRB's and deepened ones, and the differences of the last."""
    names = np.array([row["name"] for row in static])
    lengths = np.array([row["tokens"] for row in static])
    traces, tables = replay.read(writer, judge, static)
    stops = np.array([finishing.stop_of(trace, SRB()) for trace in traces])
    _, deepened = replay.read(writer, judge, deep)
    written = np.array([row["tokens"] for row in deep])
    arms = {
        "static": replay.measured(tables, lengths, lengths),
        "srb": replay.measured(tables, stops, lengths),
        "deepened": replay.measured(deepened, written, written),
    }
    tokens = {"static": lengths, "srb": stops,
              "deepened": written + [row["tried"] for row in deep]}  # fmt: skip
    return {
        "replies": len(static),
        "total_tokens": {arm: mean_of(some) for arm, some in tokens.items()},
        "more_tokens": mean_of(tokens["deepened"] - lengths),
        "arms": {arm: analysis.summary(found, names) for arm, found in arms.items()},
        "deepened_minus": {
            arm: analysis.summary(arms["deepened"], names, arms[arm]) for arm in ("static", "srb")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Deepen replies with the tokens that SRB saves.")
    parser.add_argument("--model", required=True, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--prompts", type=int, default=5, help="of each of five buckets, at most 12"
    )
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=[*DESIGNS])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    writer, judge = PretrainedWriter(options.model), ResoWriter(None)
    folder = records.RESULTS / "srb" / writer.name
    whole = study.Replies(folder / "replies.jsonl.gz")
    kept = study.Replies(folder / "deepened.jsonl.gz")
    chosen = prompts(1, options.prompts)
    static = [whole.find(1, prompt, options.seed, "static") for prompt in chosen]
    for design in options.designs:
        write_missing(writer, kept, chosen, options.seed, design)
        deep = [kept.find(1, prompt, options.seed, design) for prompt in chosen]
        row = {"model": writer.name, "design": design, "seed": options.seed}
        records.write_row("deepening", row | compared(writer, judge, static, deep))
        print(design, row, flush=True)


if __name__ == "__main__":
    main()
