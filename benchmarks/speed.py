"""Speed against Hugging Face GPT-2 of the same width, depth, vocabulary and context.

python -m benchmarks.speed                    training and batch-1 decoding, 2 threads
python -m benchmarks.speed --threads 1

Both models take turns in one process; the figures are medians over the rounds, and the ratios are
medians of the ratios within a round.
"""

import argparse
import statistics
import time

import torch

from benchmarks.common import gpt2_like, interleaved, median_ratio, num_parameters, write_row
from reso_llm.config import ResoLLMConfig, small_config
from reso_llm.hardware import keep_freed_memory
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.optim import make_optimizers
from reso_llm.tokenizer import SPECIAL_TOKENS, create_default_tokenizer
from reso_llm.train_config import OptimConfig

PROMPT_TOKENS, NEW_TOKENS, BATCH = 16, 240, 8


def training_step(model, loss, optimizers, config: ResoLLMConfig):
    """A function that runs one optimizer step and returns tokens per second."""

    def step() -> float:
        ids = torch.randint(config.vocab_size, (BATCH, config.max_seq_len + 1))
        started = time.perf_counter()
        loss(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return BATCH * config.max_seq_len / (time.perf_counter() - started)

    return step


def training_measures(config: ResoLLMConfig):
    ours, theirs = ResoLLMModel(config), gpt2_like(config)

    def gpt2_loss(ids, targets):
        logits = theirs(ids).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)
    return {
        "reso": training_step(
            ours, ours.loss, list(make_optimizers(ours, OptimConfig()).values()), config
        ),
        "gpt2": training_step(theirs, gpt2_loss, [adamw], config),
    }


def decoding_measures(config: ResoLLMConfig):
    ours, theirs = ResoLLMModel(config).eval(), gpt2_like(config).eval()
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.02)
    with torch.no_grad():  # the control tokens are never the most probable: no text ends early
        ours.embedding.table.weight[: len(SPECIAL_TOKENS)] = 0
    engine = ResoLLMInference(ours, create_default_tokenizer(), config)
    prompt_ids = torch.randint(5, config.vocab_size, (1, PROMPT_TOKENS))
    prompt = engine.tokenizer.decode(prompt_ids[0].tolist())

    def reso() -> float:
        result = engine.generate(prompt, NEW_TOKENS, temperature=0.0)
        assert result.tokens_generated == NEW_TOKENS, "the random model ended its text"
        return result.tokens_generated / result.generation_time_ms * 1000

    def gpt2() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            out = theirs.generate(
                prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=False,
                max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0,
            )  # fmt: skip
        return (out.shape[1] - PROMPT_TOKENS) / (time.perf_counter() - started)

    return {"reso": reso, "gpt2": gpt2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    config = small_config()
    for work, make in (("training", training_measures), ("decoding", decoding_measures)):
        measures = make(config)
        interleaved(measures, 2)  # warm up
        values = interleaved(measures, options.rounds)
        medians = {name: statistics.median(v) for name, v in values.items()}
        ratio = median_ratio(values["reso"], values["gpt2"])
        print(
            f"{work}, {options.threads} threads: reso {medians['reso']:,.0f} tokens/s, "
            f"GPT-2 {medians['gpt2']:,.0f} tokens/s, ratio {ratio:.2f}"
        )
        write_row(
            "speed",
            {
                "work": work,
                "threads": options.threads,
                "rounds": options.rounds,
                "tokens_per_second": medians,
                "ratio": ratio,
                "parameters": {
                    "reso": num_parameters(ResoLLMModel(config)),
                    "gpt2": num_parameters(gpt2_like(config)),
                },
            },
        )


if __name__ == "__main__":
    main()
