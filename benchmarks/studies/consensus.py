"""Do several agents predict text better than one?

python -m benchmarks.studies.consensus --checkpoints RUN RUN ... --data HELDOUT.jsonl

Teacher-forced on held-out documents, every token once, in windows half a context apart (bits per
byte as `reso_llm.training.evaluation` defines them), of every pair of agents, and of all of them:

    single          each agent a by itself, p_a
    consensus       log p = sum_a w_a log p_a - log Z, w_a = r_a / sum_b r_b, with the order
                    parameters r_a at the token, as `generate_multi_agent` has it
    equal weights   the same with w_a = 1 / A
    mean            p = 1/A sum_a p_a at every token: each token drawn by an agent picked at random
    relay           the first part of a document by the first agent, the next by the second ...:
                    sequential agents
    one text        p(document) = 1/A sum_a p_a(document): parallel agents, of whose texts one is
                    picked at random

The best single agent is known only after the fact: a difference to it is a strict one. Intervals
are 95 % bootstrap percentiles over documents. Rows go to results/consensus.jsonl. Sources: Hinton
2002 (products of experts); Jacobs 1991 (mixtures).

Shapes: A agents, B windows, T tokens, V vocabulary, N documents.
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.heldout import document_ids, held_out, padded, window_batches
from benchmarks.kit.records import write_row
from benchmarks.kit.statistics import ratio_interval
from benchmarks.kit.tables import shown, table
from reso_llm.data.token_cache import Split
from reso_llm.data.windows import EvalWindow
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from run_core.hardware import keep_freed_memory

BATCH_SIZE = 8
WAYS = ("consensus", "equal weights", "mean", "relay", "one text")


def teams(count: int) -> list[tuple[int, ...]]:
    """Every pair of agents, and all of them."""
    pairs = list(itertools.combinations(range(count), 2))
    return pairs if count == 2 else [*pairs, tuple(range(count))]


def product_nats(log_p: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
    """Nats (B,T) of targets under the normalised product: (A,B,T,V), (A,B,T) or (A,1,1), (B,T).

    `consensus_logits` for many tokens, each of weights of its own.
    """
    weights = weights / weights.sum(0)
    mixed = (weights.unsqueeze(-1) * log_p).sum(0).log_softmax(-1)
    return -mixed.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def mean_nats(log_p_target: Tensor) -> Tensor:
    """Nats under the arithmetic mean, from the agents' log-probabilities: (A,...) -> (...)."""
    return math.log(len(log_p_target)) - log_p_target.logsumexp(0)


def relay_nats(nats: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Nats (B,T) of agents in turns, from each one's (A,B,T).

    starts (B,) are the windows' places in their documents, of `lengths` (B,) targets.
    """
    places = starts.unsqueeze(1) + torch.arange(nats.shape[-1])
    turns = (places * len(nats) // lengths.unsqueeze(1)).clamp_max(len(nats) - 1)  # in padding
    return nats.gather(0, turns.unsqueeze(0)).squeeze(0)


@torch.inference_mode()
def window_nats(
    models: Sequence[ResoLLMModel], windows: Sequence[EvalWindow], lengths: Tensor
) -> dict[tuple[int, ...], Tensor]:
    """Nats of each window's scored tokens: (1,B) of each agent (i,), (4,B) of each team's ways.

    lengths (B,) are the targets of the windows' documents.
    """
    starts = torch.tensor([window.start for window in windows])
    ids, targets, counted = padded(windows)
    outputs = [model(ids) for model in models]
    log_p = torch.stack([output.logits.log_softmax(-1) for output in outputs])  # (A,B,T,V)
    everywhere = torch.ones(ids.shape)
    order = torch.stack([o.diagnostics.get("coherence", everywhere) for o in outputs])  # (A,B,T)
    chosen_log_p = log_p.gather(
        -1, targets.expand(len(models), *targets.shape).unsqueeze(-1)
    ).squeeze(-1)
    nats_of = {(a,): -chosen_log_p[a].unsqueeze(0) for a in range(len(models))}
    for team in teams(len(models)):
        chosen, members = list(team), log_p[list(team)]
        nats_of[team] = torch.stack((
            product_nats(members, order[chosen], targets),
            product_nats(members, torch.ones(len(team), 1, 1), targets),
            mean_nats(chosen_log_p[chosen]),
            relay_nats(-chosen_log_p[chosen], starts, lengths),
        ))  # fmt: skip
    return {team: (nats.double() * counted).sum(-1) for team, nats in nats_of.items()}


def document_nats(models: Sequence[ResoLLMModel], split: Split) -> dict[tuple[int, ...], Tensor]:
    """Nats of each document (N,): of each agent, (1,N), and of each team's WAYS, (5,N)."""
    context = min(model.config.max_seq_len for model in models)
    lengths = torch.tensor([len(ids) - 1 for ids in document_ids(split)])
    sums: dict[tuple[int, ...], Tensor] = {}
    for indices, windows in window_batches(split, context, BATCH_SIZE):
        for team, nats in window_nats(models, windows, lengths[indices]).items():
            empty = nats.new_zeros(len(nats), split.num_documents)
            sums.setdefault(team, empty).index_add_(1, indices, nats)
    for team in teams(len(models)):
        alone = torch.stack([sums[(a,)][0] for a in team])
        sums[team] = torch.cat((sums[team], mean_nats(-alone)[None]))
    return sums


def compare(
    sums: dict[tuple[int, ...], Tensor], sizes: Tensor, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Bits per byte of every agent, and of every team beside its best agent and the mean."""
    bits = {team: nats / math.log(2) for team, nats in sums.items()}
    rows = []
    for team, by_way in bits.items():
        row: dict[str, Any] = {"agents": [names[a] for a in team], "documents": len(sizes)}
        if len(team) == 1:
            rows.append(row | {"way": "single", "bits_per_byte": ratio_interval(by_way[0], sizes)})
            continue
        best = min((bits[(a,)][0] for a in team), key=lambda b: b.sum().item())
        for way, values in zip(WAYS, by_way, strict=True):
            rows.append(row | {
                "way": way, "bits_per_byte": ratio_interval(values, sizes),
                "minus_best_single": ratio_interval(values - best, sizes),
                "minus_one_text": ratio_interval(values - by_way[WAYS.index("one text")], sizes),
            })  # fmt: skip
    return rows


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Bits per byte in markdown."""
    names = "bits_per_byte", "minus_best_single", "minus_one_text"
    lines = [
        [", ".join(row["agents"]), row["way"], *(shown(row.get(name)) for name in names)]
        for row in rows
    ]
    return table(("agents", "way", "bits/byte", "- best single", "- one text"), lines)


def check(engines: Sequence[ResoLLMInference]) -> None:
    """ValueError unless the agents share a tokenizer and a vocabulary."""
    kinds = {(e.tokenizer.fingerprint, e.config.vocab_size) for e in engines}
    if len(engines) < 2 or len(kinds) > 1:
        raise ValueError("expected at least two agents, of one tokenizer and vocabulary size")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", nargs="+", required=True, help="run directories")
    parser.add_argument("--data", required=True, help="held-out rows")
    options = parser.parse_args()
    keep_freed_memory()
    engines = [ResoLLMInference.from_pretrained(path) for path in options.checkpoints]
    try:
        check(engines)
    except ValueError as error:
        parser.error(str(error))
    models, names = [e.model for e in engines], [Path(path).name for path in options.checkpoints]
    split, sizes = held_out(options.data, engines[0].tokenizer)
    rows = compare(document_nats(models, split), sizes, names)
    print(text(rows), flush=True)
    for row in rows:
        write_row("consensus", row)


if __name__ == "__main__":
    main()
