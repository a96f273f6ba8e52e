"""Long context: time and memory of a decoding step, and what an attention window costs in quality.

python -m benchmarks.studies.long_context                                    time and memory
python -m benchmarks.studies.long_context --checkpoint FULL WINDOW [WINDOW ...] --data HELDOUT.jsonl

    full             full attention, every stage off, max_seq_len raised to hold the context
    window + memory  the same with an attention window and the sedenion field
    window, all      the default model, every stage on, with the window

Time needs no training: random weights, random text read in chunks, then greedy steps at batch 1
from that state; the three models and all contexts take turns. A round starts from the same state,
with one step that is not timed (a state continued twice copies its caches first). Memory is what
the state keeps alive: the storages behind its tensors, each counted once; the counts of the echo,
which grow with the text, are no tensors and not among them. Flat means that the step at 16,384
tokens takes at most 1.3 times the one at 256.

Quality compares checkpoints trained alike on the same held-out text, in windows of max_seq_len (the
stateful protocol); those with an attention window also read every document in one pass with the
state carried, as long as it is. Intervals are 95 % bootstrap percentiles over documents,
differences are paired. Rows go to results/long_context.jsonl.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kit.heldout import document_ids, document_scores, held_out
from benchmarks.kit.records import write_row
from benchmarks.kit.statistics import ratio_interval
from benchmarks.kit.tables import shown, table
from benchmarks.kit.timing import greedy_steps, interleaved, median_ratio
from reso_llm.config import ResoLLMConfig, control_of, small_config, with_stage
from reso_llm.data.token_cache import Split
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.network import ResoState
from reso_llm.stages.cache import KVBuffer
from run_core.hardware import keep_freed_memory

CONTEXTS = (256, 4096, 16384)
CHUNK, STEPS = 256, 24


# --- time and memory


def variants(base: ResoLLMConfig, window: int, longest: int) -> dict[str, ResoLLMConfig]:
    """The compared configurations by name; only full attention needs room for the longest text."""
    plain = control_of(base)
    windowed = dataclasses.replace(plain, attention_window=window)
    return {
        "full": dataclasses.replace(plain, max_seq_len=longest),
        "window + memory": with_stage(windowed, "temporal_smf", enabled=True),
        "window, all": dataclasses.replace(base, attention_window=window),
    }


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor inside a state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, KVBuffer):
        yield from (value.keys, value.values)
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors_of(item)


def state_bytes(state: ResoState) -> int:
    """Bytes the state keeps alive: the storages behind its tensors, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors_of(state)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@torch.inference_mode()
def read(model: ResoLLMModel, length: int, seed: int, chunk: int = CHUNK) -> ResoState:
    """The state after `length` random tokens, with room for the steps to come."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    state = model.init_state(1, length + STEPS + 1)
    for piece in ids.split(chunk, dim=1):
        state = model(piece, state).state
    return state


def step_ms(model: ResoLLMModel, state: ResoState) -> float:
    """Median milliseconds of a greedy step from this state, after one that is not timed."""
    return statistics.median(greedy_steps(model, state, STEPS + 1)[0][1:])


def scale(
    base: ResoLLMConfig, window: int, contexts: Sequence[int], rounds: int, seed: int
) -> list[dict[str, Any]]:
    """One row for each model and context."""
    torch.manual_seed(seed)
    configs = variants(base, window, max(contexts) + STEPS + 1)
    models = {name: ResoLLMModel(config).eval() for name, config in configs.items()}
    keys = {f"{name} @ {n}": (name, n) for name in models for n in contexts}
    states = {key: read(models[name], n, seed) for key, (name, n) in keys.items()}
    measures = {key: partial(step_ms, models[name], states[key]) for key, (name, _) in keys.items()}
    interleaved(measures, 1)  # warm up
    values = interleaved(measures, rounds)
    rows = []
    for key, (name, n) in keys.items():
        first = values[f"{name} @ {contexts[0]}"]
        rows.append({
            "part": "scale", "model": name, "context": n, "seed": seed, "rounds": rounds,
            "window": configs[name].attention_window, "threads": torch.get_num_threads(),
            "ms_per_token": statistics.median(values[key]),
            "ratio_to_shortest": median_ratio(values[key], first),
            "state_bytes": state_bytes(greedy_steps(models[name], states[key], 1)[1]),
        })  # fmt: skip
    return rows


# --- quality


@torch.inference_mode()
def carried_nats(model: ResoLLMModel, split: Split, chunk: int = CHUNK) -> Tensor:
    """Nats of each document (N,), read once from its start to its end with the state carried."""
    nats = []
    for ids in document_ids(split):
        ids, state, total = torch.from_numpy(ids)[None], model.init_state(), 0.0
        for first in range(0, ids.shape[1] - 1, chunk):
            piece = ids[:, first : first + chunk + 1]
            output = model(piece[:, :-1], state)
            state = output.state
            losses = F.cross_entropy(output.logits[0], piece[0, 1:], reduction="none")
            total += losses.double().sum().item()
        nats.append(total)
    return torch.tensor(nats, dtype=torch.float64)


def quality(directories: Sequence[str], data: str) -> list[dict[str, Any]]:
    """Bits per byte of each checkpoint, and its paired difference from the first one."""
    rows, first = [], None
    for directory in directories:
        engine = ResoLLMInference.from_pretrained(directory)
        split, sizes = held_out(data, engine.tokenizer)
        window = engine.config.attention_window
        readings = {"windows": document_scores(engine.model, split, sizes).nats}
        if window:
            readings["carried"] = carried_nats(engine.model, split)
        for reading, nats in readings.items():
            first = nats if first is None else first
            rows.append({
                "part": "quality", "run": Path(directory).name, "window": window,
                "reading": reading, "documents": len(sizes),
                "bits_per_byte": ratio_interval(nats / log(2), sizes),
                "above_first": ratio_interval((nats - first) / log(2), sizes),
            })  # fmt: skip
    return rows


def scale_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [row["model"], str(row["window"] or "-"), f"{row['context']:,}",
         f"{row['ms_per_token']:.2f}", f"{row['ratio_to_shortest']:.2f}",
         f"{row['state_bytes'] / 1e6:.2f} MB"]
        for row in rows
    ]  # fmt: skip
    return table(("model", "window", "context", "ms/token", "to the shortest", "state"), lines)


def quality_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [row["run"], str(row["window"] or "-"), row["reading"], shown(row["bits_per_byte"]),
         shown(row["above_first"])]
        for row in rows
    ]  # fmt: skip
    return table(("run", "window", "read", "bits/byte", "above the first"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", nargs="+", help="compare these runs; the first is the base")
    parser.add_argument("--data", help="held-out rows, needed with --checkpoint")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if (options.checkpoint is None) != (options.data is None):
        parser.error("--checkpoint and --data go together")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.checkpoint is None:
        base = small_config()
        rows = scale(base, options.window, options.contexts, options.rounds, options.seed)
        print(scale_table(rows))
    else:
        rows = quality(options.checkpoint, options.data)
        print(quality_table(rows))
    for row in rows:
        write_row("long_context", row)


if __name__ == "__main__":
    main()
