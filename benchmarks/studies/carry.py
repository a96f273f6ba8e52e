"""Do windows of the stateful protocol lose what the field and the phases knew before them?

    python -m benchmarks.studies.carry --data data/heldout.jsonl [--record]

The protocol gives a window the ids before it and what the echo has counted; field and phases begin
empty (`reso_llm.training.evaluation`). Here the shipped model reads windows of its context, half of
it ahead, four times: with both empty, and with the field, the phases or both as the window before
left them where this one begins. Bits per byte of all documents, each token scored once, with the
paired difference from both empty and its 95 % bootstrap interval over documents. Rows go to
results/carry.jsonl.
"""

import argparse
from collections.abc import Sequence
from math import log

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit.heldout import add_data_option, document_ids, held_out
from benchmarks.kit.records import write_row
from benchmarks.kit.statistics import ratio_interval
from benchmarks.kit.tables import shown, table
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel

ARMS = {
    "neither": (), "field": ("temporal_smf",), "phases": ("kuramoto",),
    "both": ("temporal_smf", "kuramoto"),
}  # fmt: skip


@torch.inference_mode()
def carried_nats(model: ResoLLMModel, ids: Tensor, stages: Sequence[str]) -> float:
    """Nats of a document (1,T+1), these stages carried from each window to the next."""
    context, last = model.config.max_seq_len, ids.shape[1] - 1
    step, start, total, before = context // 2, 0, 0.0, None
    while True:
        state = model.init_state(1)
        for name in () if before is None else ("echo", *stages):
            state = state.with_stage(name, before.stages[name])
        state = state if before is None else state._replace(tail=before.tail)
        middle, end = min(start + step, last), min(start + context, last)
        first = model(ids[:, start:middle], state)
        if before is None:
            total += nats_of(first.logits, ids[:, start + 1 : middle + 1])
        if end > middle:
            second = model(ids[:, middle:end], first.state)
            total += nats_of(second.logits, ids[:, middle + 1 : end + 1])
        if end == last:
            return total
        before, start = first.state, start + step


def nats_of(logits: Tensor, targets: Tensor) -> float:
    return -logits.log_softmax(-1).gather(-1, targets[..., None]).double().sum().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser, required=True)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = ResoLLMInference.from_pretrained()
    split, sizes = held_out(options.data, engine.tokenizer)
    documents = [torch.from_numpy(ids.astype(np.int64))[None] for ids in document_ids(split)]
    longer = sum(ids.shape[1] > engine.model.config.max_seq_len for ids in documents)
    bits = {
        arm: np.array([carried_nats(engine.model, ids, stages) for ids in documents]) / log(2)
        for arm, stages in ARMS.items()
    }
    rows = [
        {"carried": arm, "model": "shipped", "documents": len(documents), "longer": longer,
         "bits_per_byte": ratio_interval(own, sizes),
         "above_neither": ratio_interval(own - bits["neither"], sizes)}
        for arm, own in bits.items()
    ]  # fmt: skip
    lines = [[r["carried"], shown(r["bits_per_byte"], 4), shown(r["above_neither"], 5)]
             for r in rows]  # fmt: skip
    print(table(("carried", "bits/byte", "above neither"), lines))
    for row in rows if options.record else ():
        write_row("carry", row)


if __name__ == "__main__":
    main()
