"""Does the stability monitor's warning tell a model's right answers from its wrong ones?

    python -m benchmarks.studies.answers --model DIR [--questions 200] [--record]

A model of transformers answers the questions of `benchmarks/kit/short_answers.py` greedily, in at
most 16 tokens: 200 about facts that stand in the prompt, and 200 about the world. Every score is a
doubt, higher where a wrong answer is expected, with its sign fixed beforehand:

    warning      the monitor's highest warning, as it comes: calibrated on clean and damaged text
    excess       mean of surprise - entropy, nats
    repetition   the highest loop score
    exponent     growth of a nudged copy of the cache over the answer, nats a token
    log p        minus the mean ln p of the tokens       )
    sum log p    minus the sum of them                   )
    entropy      the mean entropy of the distributions   ) what anybody would try first
    max p        1 - the mean largest probability        )
    tokens       how many there are                      )

    AUROC = P(doubt of a wrong answer > of a right one) + P(equal) / 2        0.5 is chance

`minus` is a score's AUROC less that of the best of the last five. `kept right` is the accuracy
among the least doubtful share of the answers (selective answering). Intervals are 95 % bootstrap
percentiles over facts or questions. Rows go to results/answers.jsonl.

Shapes: B answers of a batch, T tokens of a prompt, k <= 16 of an answer, D width, N answers.
"""

import argparse
import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.kit.pretrained import PretrainedWriter, padded
from benchmarks.kit.records import write_row
from benchmarks.kit.short_answers import Asked, known, told
from benchmarks.kit.statistics import DRAWS, auroc, bootstrap_groups, groups_of
from benchmarks.kit.tables import shown, table
from benchmarks.kit.writers import asked
from entropy_core.information import entropy_nats
from reso_llm.config import StabilityConfig
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.decoding.text_class import StabilityCalibration
from reso_llm.generation.nudge import NUDGE, growth
from reso_llm.hf.clean_texts import stability_calibration

TOKENS, BATCH, LEAST_FOLLOWED = 16, 20, 3
OWN = ("warning", "excess", "repetition", "exponent")
PLAIN = ("log p", "sum log p", "entropy", "max p", "tokens")
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


class Answer(NamedTuple):
    """An answer, and what the model's distributions said of each of its k tokens."""

    text: str
    ids: list[int]
    surprise_nats: list[float]
    entropy_nats: list[float]
    exponent: float  # nats a token; 0 for an answer of under LEAST_FOLLOWED tokens


@torch.inference_mode()
def answers(writer: PretrainedWriter, questions: Sequence[str]) -> list[Answer]:
    """Greedy answers to the questions of one batch."""
    ids, mask = padded([writer.prompt_ids(asked(question)) for question in questions])
    mask = torch.cat((mask, torch.ones(len(ids), TOKENS, dtype=torch.long)), 1)
    output = _read(writer, ids, mask, None)
    cache = output.past_key_values
    other = _nudged(cache)
    tokens, surprises, entropies, hidden = [], [], [], []
    for _ in range(TOKENS):
        log_p = output.logits[:, -1].float().log_softmax(-1)
        best = log_p.max(-1)
        tokens.append(best.indices)
        surprises.append(-best.values)
        entropies.append(entropy_nats(log_p))
        output = _read(writer, best.indices[:, None], mask, cache)
        hidden.append(output.hidden_states[-1])
    written = torch.stack(tokens, 1)  # (B,k)
    copied = _read(writer, written, mask, other).hidden_states[-1]  # (B,k,D)
    values = torch.stack(surprises, 1).tolist(), torch.stack(entropies, 1).tolist()
    return [
        _answer(writer, *row)
        for row in zip(written.tolist(), *values, torch.cat(hidden, 1), copied, strict=True)
    ]


def _answer(
    writer: PretrainedWriter, ids: list[int], surprise: list[float], entropy: list[float],
    hidden: Tensor, copied: Tensor,
) -> Answer:  # fmt: skip
    """What is written before the first end; the end itself where there is nothing else."""
    k = next((i for i, token in enumerate(ids) if token in writer.ends), TOKENS)
    exponent = growth(hidden[None, :k], copied[None, :k])[0] if k >= LEAST_FOLLOWED else 0.0
    n = max(k, 1)
    return Answer(writer.spell(ids[:k]), ids[:n], surprise[:n], entropy[:n], exponent)


def _read(writer: PretrainedWriter, ids: Tensor, mask: Tensor, cache: Any) -> Any:
    """The model on ids (B,T) behind a cache, with its hidden states; the mask holds all tokens."""
    start = 0 if cache is None else cache.get_seq_length()
    mask = mask[:, : start + ids.shape[1]]
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, start:]
    return writer.model(
        ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
        output_hidden_states=True,
    )  # fmt: skip


def _nudged(cache: Any) -> Any:
    """A copy of the cache with noise of NUDGE deviations in all keys and values."""
    generator = torch.Generator().manual_seed(0)
    other = copy.deepcopy(cache)
    for layer in other.layers:
        for values in (layer.keys, layer.values):
            size = NUDGE * 3**0.5 * values.std(correction=0)
            values += size * torch.empty_like(values).uniform_(-1, 1, generator=generator)
    return other


def doubts(answer: Answer, calibration: StabilityCalibration) -> dict[str, float]:
    """All scores of an answer."""
    monitor = StabilityMonitor(StabilityConfig(enabled=True), calibration)
    readings = [
        monitor.observe(h, token, surprise_nats=s)
        for token, s, h in zip(answer.ids, answer.surprise_nats, answer.entropy_nats, strict=True)
    ]
    surprise, entropy = np.array(answer.surprise_nats), np.array(answer.entropy_nats)
    return {
        "warning": max(reading.warning for reading in readings),
        "excess": float((surprise - entropy).mean()),
        "repetition": max(reading.repetition for reading in readings),
        "exponent": answer.exponent,
        "log p": float(surprise.mean()),
        "sum log p": float(surprise.sum()),
        "entropy": float(entropy.mean()),
        "max p": float(1 - np.exp(-surprise).mean()),
        "tokens": float(len(surprise)),
    }


def judged(
    scores: dict[str, np.ndarray], right: np.ndarray, units: np.ndarray, draws: int = DRAWS
) -> dict[str, Any]:
    """AUROC of scores (N,) by name, how far each is from the best plain one, and selection."""
    groups = groups_of(units)

    def area(name: str, drawn: np.ndarray) -> float:
        wrong, values = ~right[drawn], scores[name][drawn]
        return auroc(values[wrong], values[~wrong])

    every = np.arange(len(right))
    best = max(PLAIN, key=lambda name: area(name, every))
    return {
        "answers": len(right),
        "accuracy": bootstrap_groups(lambda drawn: float(right[drawn].mean()), groups, draws),
        "best_plain": best,
        "auroc": {name: bootstrap_groups(lambda drawn, n=name: area(n, drawn), groups, draws)
                  for name in scores},
        "minus": {name: bootstrap_groups(lambda drawn, n=name: area(n, drawn) - area(best, drawn),
                                         groups, draws) for name in OWN},
        "kept_right": {name: selected(values, right) for name, values in scores.items()},
    }  # fmt: skip


def selected(values: np.ndarray, right: np.ndarray) -> list[float]:
    """Accuracy among the least doubtful of SHARES; of equal doubts, the mean over their orders."""
    means = {value: right[values == value].mean() for value in np.unique(values)}
    expected = np.array([means[value] for value in np.sort(values)])
    return [float(expected[: math.ceil(share * len(right))].mean()) for share in SHARES]


def measured(
    writer: PretrainedWriter, questions: Sequence[Asked], calibration: StabilityCalibration
) -> dict[str, Any]:
    """The values of a row, and the answers."""
    parts = [questions[i : i + BATCH] for i in range(0, len(questions), BATCH)]
    given = [
        answer
        for part in tqdm(parts, desc="questions", leave=False, disable=None)
        for answer in answers(writer, [question.text for question in part])
    ]
    right = np.array([q.is_right(a.text) for q, a in zip(questions, given, strict=True)])
    found = [doubts(answer, calibration) for answer in given]
    scores = {name: np.array([one[name] for one in found]) for name in found[0]}
    units = np.array([question.unit for question in questions])
    sample = [[q.text, a.text, bool(r)] for q, a, r in zip(questions, given, right, strict=True)]
    return {**judged(scores, right, units), "sample": sample[:20]}


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows in markdown."""
    return "\n\n".join(map(_table, rows))


def _table(row: dict[str, Any]) -> str:
    lines = [
        [name, shown(area, 3), shown(row["minus"].get(name), 3),
         *(f"{share:.2f}" for share in row["kept_right"][name])]
        for name, area in row["auroc"].items()
    ]  # fmt: skip
    title = (
        f"**{row['model']}**, {row['answers']} questions, {row['facts']}: right "
        f"{shown(row['accuracy'], 2)}"
    )
    kept = [f"right of the surest {share:.0%}" for share in SHARES]
    head = ("doubt", "AUROC", f"minus {row['best_plain']}", *kept)
    return f"{title}\n\n{table(head, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model of transformers: directory or hub")
    parser.add_argument("--questions", type=int, default=200, help="of each kind, at most 200")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if not 1 <= options.questions <= 200:
        parser.error(f"--questions {options.questions}: expected 1 to 200")
    torch.set_num_threads(1)
    writer = PretrainedWriter(options.model)
    calibration = stability_calibration(writer.model, writer.encode)
    for facts, questions in (("told", told()), ("known", known())):
        row = {"model": writer.name, "weights_sha256": writer.weights, "facts": facts}
        row |= measured(writer, questions[: options.questions], calibration)
        print(text([row]), flush=True)
        if options.record:
            write_row("answers", row)


if __name__ == "__main__":
    main()
