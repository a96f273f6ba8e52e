"""Speed of the full stack, our control, and Hugging Face GPT-2 of the same shape.

python -m benchmarks.studies.speed                    training and batch-1 decoding, 2 threads
python -m benchmarks.studies.speed --threads 1
python -m benchmarks.studies.speed --threads 1 --profile        where a token's time goes
python -m benchmarks.studies.speed --threads 1 --batches        rows in step, and monitors
python -m benchmarks.studies.speed --table                      the README's table again

The models take turns in one process; the figures are medians over the rounds, and the ratios are
medians of the ratios within a round. The weights are random. The binding memory has counted random
tokens, as many as 800 rows of guanaco, and the coherence gate has its threshold from them
(`evaluate.py gating` times a trained model). `full` and `control` decode with the engine;
`..._stepper` and `..._torch` are `reso_llm.generation.stepper` and the model alone: a prompt, a
loop and an argmax. `trained` is the shipped model: first replies at temperature .8.
"""

import argparse
import statistics
import time
from collections.abc import Iterable
from functools import partial
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit.first_questions import FIRST
from benchmarks.kit.gpt2 import gpt2_like
from benchmarks.kit.profile import PARTS, median_parts
from benchmarks.kit.records import Row, current_rows, num_parameters, write_row
from benchmarks.kit.tables import table
from benchmarks.kit.timing import interleaved, median_ratio, rate
from reso_llm.config import ResoLLMConfig, control_of, small_config
from reso_llm.data.windows import Batch
from reso_llm.generation.context import Context
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.stepper import Stepper
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import SPECIAL_TOKENS, create_default_tokenizer
from reso_llm.training.config import OptimConfig
from reso_llm.training.objective import StepObjective
from reso_llm.training.optim import make_optimizers
from run_core.hardware import keep_freed_memory

FITTED = 400_000
PROMPT_TOKENS, NEW_TOKENS, BATCH = 16, 240, 8
REPLY_TOKENS = 64
BATCHES = 1, 8, 32  # rows that are written in step
TEXT = "It was a dark night, and"
RATIOS = (
    ("full", "control"), ("control", "gpt2"), ("full", "gpt2"),
    ("full", "full_stepper"), ("full_stepper", "full_torch"),
    ("control_stepper", "control_torch"), ("full_stepper", "control_stepper"),
    ("control_stepper", "gpt2"), ("full_stepper", "gpt2"), ("full_torch", "gpt2"),
)  # fmt: skip


def made(config: ResoLLMConfig, fitted: int = FITTED) -> ResoLLMModel:
    """A model whose binding memory has counted random tokens."""
    model = ResoLLMModel(config)
    model.fit_bindings(np.random.default_rng(0).integers(config.vocab_size, size=fitted))
    return model


def training_step(model, loss, optimizers, config: ResoLLMConfig, windows: int):
    """A function that runs one optimizer step and returns tokens per second."""

    def step() -> float:
        ids = torch.randint(config.vocab_size, (windows, config.max_seq_len + 1))
        reply = torch.ones(windows, config.max_seq_len, dtype=torch.bool)
        starts = torch.randint(FITTED, (windows,))
        batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), reply, starts)
        started = time.perf_counter()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return windows * config.max_seq_len / (time.perf_counter() - started)

    return step


def training_measures(config: ResoLLMConfig, windows: int = BATCH):
    """Functions that train each model for one step and return tokens per second."""
    theirs, generator = gpt2_like(config), torch.Generator()

    def gpt2_loss(batch: Batch):
        logits = theirs(batch.inputs).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())

    def ours(config: ResoLLMConfig):
        model = made(config)
        optimizers = list(make_optimizers(model, OptimConfig()).values())

        def loss(batch: Batch) -> Tensor:
            return StepObjective(model, [batch], generator).pass_loss(0)

        return training_step(model, loss, optimizers, config, windows)

    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)
    return {
        "full": ours(config),
        "control": ours(control_of(config)),
        "gpt2": training_step(theirs, gpt2_loss, [adamw], config, windows),
    }


def decoding_measures(config: ResoLLMConfig):
    theirs = gpt2_like(config).eval()
    prompt_ids = torch.randint(5, config.vocab_size, (1, PROMPT_TOKENS))

    @torch.inference_mode()
    def gpt2() -> None:
        theirs.generate(
            prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=False,
            max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0,
        )  # fmt: skip

    full, control = random_model(config), random_model(control_of(config))
    return {
        "full": generating(full, prompt_ids),
        "full_unmeasured": generating(full, prompt_ids, metrics=False, auto_temperature=False),
        "control": generating(control, prompt_ids),
        "full_stepper": rate(partial(step, full, prompt_ids), NEW_TOKENS),
        "control_stepper": rate(partial(step, control, prompt_ids), NEW_TOKENS),
        "full_torch": rate(partial(forward, full, prompt_ids), NEW_TOKENS),
        "control_torch": rate(partial(forward, control, prompt_ids), NEW_TOKENS),
        "gpt2": rate(gpt2, NEW_TOKENS),
    }


def trained_measures(config: ResoLLMConfig):
    """The shipped model at its gate, its weights without the stages, and GPT-2: first replies."""
    theirs, full = gpt2_like(config).eval(), ResoLLMInference.from_pretrained()
    plain = control_of(full.config)
    control = ResoLLMModel(plain)
    control.load_state_dict(full.model.state_dict(), strict=False)
    prompt_ids = torch.randint(5, config.vocab_size, (1, PROMPT_TOKENS))

    def written(engine: ResoLLMInference, **options: bool) -> float:
        results = [
            engine.generate(
                [("user", question)], REPLY_TOKENS, seed=0, temperature=0.8,
                logit_bias=dict.fromkeys(engine.tokenizer.end_ids, -100.0), **options,
            )
            for question in FIRST[:5]
        ]  # fmt: skip
        milliseconds = sum(result.generation_time_ms for result in results)
        return 1000 * sum(result.tokens_generated for result in results) / milliseconds

    @torch.inference_mode()
    def gpt2() -> None:
        theirs.generate(
            prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=True, temperature=0.8,
            max_new_tokens=REPLY_TOKENS, min_new_tokens=REPLY_TOKENS, pad_token_id=0,
        )  # fmt: skip

    return {
        "full": partial(written, full),
        "full_unmeasured": partial(written, full, metrics=False, auto_temperature=False),
        "control": partial(written, ResoLLMInference(control, full.tokenizer, plain)),
        "gpt2": rate(gpt2, REPLY_TOKENS),
    }


def random_model(config: ResoLLMConfig, fitted: int = FITTED) -> ResoLLMModel:
    """A model whose maps are random and whose texts never end."""
    model = made(config, fitted).eval()
    for name, p in model.named_parameters():
        if p.ndim >= 2 and ".gate." not in name:
            torch.nn.init.normal_(p, std=0.02)
    with torch.no_grad():  # the control tokens are never the most probable: no text ends early
        model.embedding.table.weight[: len(SPECIAL_TOKENS)] = 0
    return model


def generating(
    model: ResoLLMModel, prompt_ids: Tensor, new_tokens: int = NEW_TOKENS, **options: bool
):
    """A function that generates greedily with the engine and returns tokens per second."""
    config = model.config
    engine = ResoLLMInference(model, create_default_tokenizer(), config)
    prompt = engine.tokenizer.decode(prompt_ids[0].tolist())

    def generate() -> float:
        result = engine.generate(prompt, new_tokens, temperature=0.0, **options)
        assert result.tokens_generated == new_tokens, "the random model ended its text"
        return result.tokens_generated / result.generation_time_ms * 1000

    return generate


def step(model: ResoLLMModel, prompt_ids: Tensor) -> None:
    """Generate greedily with a stepper alone."""
    with torch.inference_mode():
        output = model(prompt_ids, model.init_state())
    stepper, logits = Stepper(model, [output.state]), output.logits[0, -1].numpy()
    for _ in range(NEW_TOKENS):
        logits = stepper.step([int(logits.argmax())]).logits


@torch.inference_mode()
def forward(model: ResoLLMModel, prompt_ids: Tensor) -> None:
    """Generate greedily with the model alone."""
    output = model(prompt_ids, model.init_state())
    for _ in range(NEW_TOKENS):
        output = model(output.logits[:, -1:].argmax(-1), output.state)


def batch_measures(config: ResoLLMConfig, rows: int, temperature: float):
    """Measures of tokens per second, all rows together, after prompts of 8 to 64 tokens.

    `unmeasured` leaves the monitors out, `unnudged` the copies of the state that give the exponent.
    """
    theirs = gpt2_like(config).eval()
    lengths = np.random.default_rng(0).integers(8, 65, size=rows).tolist()
    ids = torch.randint(5, config.vocab_size, (rows, max(lengths)))
    mask = torch.tensor([[0] * (max(lengths) - n) + [1] * n for n in lengths])
    new_tokens = config.max_seq_len - max(lengths) - 8  # no context is full: HF has no policy

    @torch.inference_mode()
    def gpt2() -> None:
        theirs.generate(
            ids, attention_mask=mask, do_sample=temperature > 0, temperature=temperature or None,
            max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0,
        )  # fmt: skip

    tokenizer, models = create_default_tokenizer(), (config, control_of(config))
    full, control = (ResoLLMInference(random_model(c), tokenizer, c) for c in models)
    prompts = [tokenizer.decode(row[-n:].tolist()) for row, n in zip(ids, lengths, strict=True)]

    def written(engine: ResoLLMInference, **options) -> float:
        started = time.perf_counter()
        results = engine.generate_batch(
            prompts, new_tokens, seed=0, temperature=temperature,
            logit_bias=dict.fromkeys(tokenizer.end_ids, -100.0), **options,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        return sum(result.tokens_generated for result in results) / seconds

    def unnudged() -> float:
        with mock.patch.object(Context, "_fork"):
            return written(full)

    return {
        "full": partial(written, full),
        "full_unnudged": unnudged,
        "full_unmeasured": partial(written, full, metrics=False, auto_temperature=False),
        "control": partial(written, control),
        "gpt2": rate(gpt2, rows * new_tokens),
    }


def batches(config: ResoLLMConfig, threads: int, rounds: int) -> None:
    """Print and record the speed of rows in step: 1, 8 and 32, greedy and at temperature .8."""
    lines = []
    for temperature in (0.0, 0.8):
        measures = {
            (rows, name): measure
            for rows in BATCHES
            for name, measure in batch_measures(config, rows, temperature).items()
        }
        interleaved(measures, 1)  # warm up
        values = interleaved(measures, rounds)
        for rows in BATCHES:
            speeds = {name: v for (n, name), v in values.items() if n == rows}
            medians = {name: statistics.median(v) for name, v in speeds.items()}
            others = {name: v for name, v in speeds.items() if name != "full"}
            others["one row"] = values[1, "full"]
            ratios = {f"full/{name}": median_ratio(speeds["full"], v) for name, v in others.items()}
            row = {
                "work": "batches", "rows": rows, "temperature": temperature, "threads": threads,
                "rounds": rounds, "speeds": medians, "ratios": ratios,
            }  # fmt: skip
            write_row("speed", row)
            figures = [f"{value:,.0f}" for value in medians.values()]
            shares = [f"{ratios[f'full/{name}']:.2f}" for name in ("gpt2", "control", "one row")]
            lines.append((f"{rows}", f"{temperature}", *figures, *shares))
    print(table(("rows", "T", *medians, "full / gpt2", "full / control", "full / one row"), lines))


def profile(config: ResoLLMConfig, threads: int, rounds: int) -> None:
    """Print and record the milliseconds of a token by part: random weights and the shipped model.

    The random model writes one text greedily, the shipped one ten first replies at temperature .8.
    """
    small = ResoLLMInference(random_model(config), create_default_tokenizer(), config)
    questions = [[("user", question)] for question in FIRST[:10]]
    works = {
        "small, random weights": (
            small, [TEXT], GenerationOptions(max_length=NEW_TOKENS, temperature=0.0)
        ),
        "shipped": (
            ResoLLMInference.from_pretrained(), questions, GenerationOptions(temperature=0.8)
        ),
    }  # fmt: skip
    lines = []
    for name, work in works.items():
        row = {"work": "profile", "model": name, "threads": threads, "rounds": rounds}
        row |= median_parts(*work, rounds=rounds)
        write_row("speed", row)
        shares = [f"{1000 * row['milliseconds'][part]:,.0f}" for part in (*PARTS, "whole")]
        lines.append((name, *shares, f"{row['timed_over_untimed']:.2f}"))
    print(table(("microseconds a token", *PARTS, "whole", "timed / untimed"), lines))


def readme_table(rows: Iterable[Row]) -> str:
    """The README's table, of the newest rows of training and decoding with one thread."""
    newest = {row["work"]: row["tokens_per_second"] for row in rows
              if row["threads"] == 1 and "tokens_per_second" in row}  # fmt: skip
    lines = {"training": newest["training"], "writing, all dials on": newest["decoding"]}
    head = ("tokens a second, one thread", "Reso", "plain decoder", "Hugging Face GPT-2")
    models = ("full", "control", "gpt2")
    return table(head, [(n, *(f"{v[m]:,.0f}" for m in models)) for n, v in lines.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="the parts of a token's time alone")
    parser.add_argument("--batches", action="store_true", help="rows in step, and monitors, alone")
    parser.add_argument("--table", action="store_true", help="the README's, of recorded rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    config = small_config()
    if options.profile:
        profile(config, options.threads, options.rounds)
        return
    if options.batches:
        batches(config, options.threads, options.rounds)
        return
    if options.table:
        print(readme_table(current_rows("speed")))
        return
    works = {
        "training": training_measures, "decoding": decoding_measures, "trained": trained_measures,
    }  # fmt: skip
    for work, make in works.items():
        measures = make(config)
        interleaved(measures, 2)  # warm up
        values = interleaved(measures, options.rounds)
        medians = {name: statistics.median(v) for name, v in values.items()}
        ratios = {
            f"{a}/{b}": median_ratio(values[a], values[b])
            for a, b in RATIOS
            if a in values and b in values
        }
        speeds = ", ".join(f"{name} {value:,.0f}" for name, value in medians.items())
        shares = ", ".join(f"{name} {value:.2f}" for name, value in ratios.items())
        print(f"{work}, {options.threads} threads, tokens/s: {speeds}; ratios: {shares}")
        row = {
            "work": work, "threads": options.threads, "rounds": options.rounds,
            "tokens_per_second": medians, "ratios": ratios,
            "parameters": {
                "full": num_parameters(ResoLLMModel(config)),
                "control": num_parameters(ResoLLMModel(control_of(config))),
                "gpt2": num_parameters(gpt2_like(config)),
            },
        }  # fmt: skip
        write_row("speed", row)


if __name__ == "__main__":
    main()
