"""How time grows: with the context, the size of the model, the prompt, the batch, and the text.

python -m benchmarks.studies.growth                     every curve; goes on where it was stopped
python -m benchmarks.studies.growth context prompt      some of them
python -m benchmarks.studies.growth --quick             small, in seconds, records nothing
python -m benchmarks.studies.growth --plot docs/figures pictures of the recorded rows

    context   decoding a token after so many, `Stepper`, small model, all of them attended to
    size      decoding a token, after 64, of the small, medium and large model, by numbers read
    prompt    time to the first token of the engine, and of `generate` of Hugging Face GPT-2
    batch     one training step of so many windows of 256 tokens
    window    one training step of 2,048 tokens in windows of so many
    ngrams    the binding memory's count of a text of so many tokens, their ranks as in Zipf's law

Weights are random: every token goes deep. `full` has every stage, `control` none, `gpt2` is
Hugging Face's of the small model's shape. The models take turns at each point; times are medians.

Beside each time stands a bound that this machine cannot beat, by what it was measured to do in the
same run: bytes that have to be read, at the speed of reading as many (decoding: weights, keys and
values; counts: the keys of every order once written and once read), or products that have to be
taken / peak (prompt: 2 a weight and token, training: 6, and those of attention). A slope is that of
a line through ln x and ln ms: 1 means twice the time at twice the x, 0 no growth. Rows go to
results/growth.jsonl.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.kit.bounds import (
    Machine,
    attention_products,
    matrix_numbers,
    network_numbers,
    timed,
)
from benchmarks.kit.curves import HEAD, draw, summary
from benchmarks.kit.gpt2 import gpt2_like
from benchmarks.kit.records import Records, Row, current_rows
from benchmarks.kit.tables import table
from benchmarks.kit.timing import interleaved
from benchmarks.studies.long_context import read
from benchmarks.studies.speed import random_model, training_measures
from reso_llm.config import ResoLLMConfig, control_of, large_config, medium_config, small_config
from reso_llm.generation.stepper import Stepper
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import create_default_tokenizer
from run_core.hardware import keep_freed_memory

SIZES = {"small": small_config, "medium": medium_config, "large": large_config}
POINTS: dict[str, tuple] = {
    "context": (256, 1024, 4096, 16384),
    "size": tuple(SIZES),
    "prompt": (16, 256, 4096),
    "batch": (2, 4, 8, 16),
    "window": (64, 256, 1024),
    "ngrams": (50_000, 200_000, 800_000, 1_600_000),
}
QUICK = {
    "context": (64, 128), "size": ("small",), "prompt": (16, 64), "batch": (1, 2),
    "window": (64, 128), "ngrams": (2_000, 4_000),
}  # fmt: skip
AXES = {
    "context": "tokens before", "size": "numbers in the matrices of weights",
    "prompt": "tokens of the prompt", "batch": "windows of 256 tokens a step",
    "window": "tokens of a window", "ngrams": "tokens counted",
}  # fmt: skip
STEPS = 16  # decoded for one measurement

Measures = Mapping[str, Callable[[], float]]  # milliseconds of a model, by its name


# --- decoding


def decoding(config: ResoLLMConfig, length: int, machine: Machine) -> tuple[Measures, Row]:
    """Milliseconds of a token after `length` others; bytes of weights, keys and values."""
    roomy = replace(config, max_seq_len=max(config.max_seq_len, length + STEPS + 1))
    measures, bounds = {}, {}
    for name, shape in (("full", roomy), ("control", control_of(roomy))):
        model = random_model(shape)
        measures[name] = partial(step_ms, model, read(model, length, seed=0))
        cached = 2 * config.num_layers * config.dim * length
        bounds[name] = machine.reading_ms(4 * (matrix_numbers(model, shape) + cached))
    return measures, bounds


def step_ms(model: nn.Module, state: Any) -> float:
    """Median milliseconds of STEPS steps; the state is left as it is."""
    stepper = Stepper(model, [state])
    return statistics.median(timed(partial(stepper.step, [7]), STEPS))


def by_size(name: str, machine: Machine) -> tuple[Measures, Row]:
    """`decoding` of a model by the name of its size."""
    return decoding(SIZES[name](), 64, machine)


def prompt(length: int, machine: Machine) -> tuple[Measures, Row]:
    """Milliseconds to the first token after a prompt; products of reading it."""
    config = replace(small_config(), max_seq_len=max(256, length + 16))
    tokenizer, theirs = create_default_tokenizer(), gpt2_like(config).eval()
    text = tokenizer.decode(tokenizer.encode(__doc__ * (1 + length // 200))[: length - 1])
    ids = torch.tensor([[0, *tokenizer.encode(text)]])

    def first(engine: ResoLLMInference) -> None:
        engine.generate(text, 1, seed=0, temperature=0.0)

    works: dict[str, Callable[[], object]] = {"gpt2": partial(
        theirs.generate, ids, attention_mask=torch.ones_like(ids), do_sample=False,
        max_new_tokens=1, pad_token_id=0,
    )}  # fmt: skip
    models = {"gpt2": theirs}
    for name, shape in (("full", config), ("control", control_of(config))):
        models[name] = random_model(shape)
        works[name] = partial(first, ResoLLMInference(models[name], tokenizer, shape))
    attention, count = attention_products(config, ids.shape[1]), ids.shape[1]
    return {name: partial(one_ms, work) for name, work in works.items()}, {
        name: (2 * matrix_numbers(model, config) * count + attention) / machine.products_a_ms
        for name, model in models.items()
    }


def one_ms(work: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    return timed(work, 1)[0]


# --- training and counting


def training(windows: int, length: int, machine: Machine) -> tuple[Measures, Row]:
    """Milliseconds of one training step; products of both passes, the optimizer's left out."""
    config, tokens = replace(small_config(), max_seq_len=length), windows * length
    rates = training_measures(config, windows)
    numbers = {
        "full": network_numbers(config), "control": network_numbers(control_of(config)),
        "gpt2": matrix_numbers(gpt2_like(config), config),
    }  # fmt: skip
    attention = 3 * windows * attention_products(config, length)
    return {name: partial(_step_of, rate, tokens) for name, rate in rates.items()}, {
        name: (6 * count * tokens + attention) / machine.products_a_ms
        for name, count in numbers.items()
    }


def _step_of(tokens_per_second: Callable[[], float], tokens: int) -> float:
    return 1000 * tokens / tokens_per_second()


def ngrams(tokens: int, machine: Machine) -> tuple[Measures, Row]:
    """Milliseconds of a count; 8 bytes for the key of each token and order, twice."""
    config = small_config()
    model, ranks = ResoLLMModel(config), np.arange(1, config.vocab_size + 1)
    chances = (1 / ranks) / (1 / ranks).sum()
    ids = np.random.default_rng(0).choice(config.vocab_size, size=tokens, p=chances)
    bytes_touched = 2 * 8 * tokens * config.prsc.max_order
    measure = partial(one_ms, partial(model.fit_bindings, ids))
    return {"full": measure}, {"full": machine.reading_ms(bytes_touched)}


CURVES: dict[str, Callable[[Any, Machine], tuple[Measures, Row]]] = {
    "context": partial(decoding, small_config()),
    "size": by_size,
    "prompt": prompt,
    "batch": lambda windows, machine: training(windows, 256, machine),
    "window": lambda length, machine: training(max(1, 8 * 256 // length), length, machine),
    "ngrams": ngrams,
}


# --- rows


def measured(
    curve: str, points: Sequence[Any], rounds: int, records: Records, machine: Machine
) -> Iterator[Row]:
    """The rows of a curve, those already recorded not measured again."""
    threads = torch.get_num_threads()
    for point in points:
        key = {"curve": curve, "point": point, "threads": threads, "rounds": rounds}
        yield records.row(key, lambda p=point: _point(curve, p, rounds, machine))


def _point(curve: str, point: Any, rounds: int, machine: Machine) -> Row:
    torch.manual_seed(0)
    measures, bounds = CURVES[curve](point, machine)
    interleaved(measures, 1)  # warm up
    values = interleaved(measures, rounds)
    x = network_numbers(SIZES[point]()) if curve == "size" else point
    return {
        "x": x, "ms": {name: statistics.median(v) for name, v in values.items()}, "bound": bounds,
        "gigaflops": machine.products_a_ms / 1e6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", nargs="*", metavar="CURVE", help=", ".join(CURVES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two small points, not recorded")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw the recorded rows instead")
    options = parser.parse_args()
    curves = options.curves or list(CURVES)
    if unknown := sorted(set(curves) - set(CURVES)):
        parser.error(f"no curve {', '.join(unknown)}: expected {', '.join(CURVES)}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.plot:
        rows = [row for row in current_rows("growth") if row["threads"] == options.threads]
        for curve in sorted({row["curve"] for row in rows} & set(curves)):
            print(draw(rows, curve, AXES[curve], options.plot))
    else:
        machine, records = Machine(), Records("growth", on=not options.quick)
        rows, points = [], QUICK if options.quick else POINTS
        for curve in curves:
            rounds = 1 if options.quick else options.rounds
            rows += measured(curve, points[curve], rounds, records, machine)
            print(curve, flush=True)
    print(table(HEAD, summary([row for row in rows if row["curve"] in curves])))


if __name__ == "__main__":
    main()
