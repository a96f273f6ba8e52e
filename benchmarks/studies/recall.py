"""Recall beyond the attention window: the sedenion field against tokens that attention cannot see.

Five pairs "key value", filler longer than the window, then the keys in another order, each
followed by its value, which is what is trained and scored. Keys, values and filler are 16 tokens
each, drawn anew for every sequence, so that chance is 1/16 and nothing can be learned by heart.
The two models are trained alike, with Muon, and differ in `temporal_smf.enabled` only. The one with
memory is asked once more with its field emptied before the questions: the same parameters without
what they remember.

    python -m benchmarks.studies.recall [--steps 200] [--filler 32] [--tied] [--seeds 0 1 2]

Rows go to results/recall.jsonl.
"""

import argparse

import torch
from torch import Tensor

from benchmarks.kit.records import num_parameters, write_row
from reso_llm.config import ResoLLMConfig, control_of, with_stage
from reso_llm.model import ResoLLMModel
from reso_llm.training.config import OptimConfig
from reso_llm.training.optim import make_optimizers

KINDS, PAIRS, WINDOW = 16, 5, 8  # of keys, values and filler; pairs a sequence; tokens attended


def draw_batch(rows: int, filler: int, generator: torch.Generator) -> Tensor:
    """Sequences (rows, 4 PAIRS + filler): pairs, filler, and the pairs again in another order."""
    keys = torch.rand(rows, KINDS, generator=generator).argsort(1)[:, :PAIRS]
    values = KINDS + torch.randint(KINDS, (rows, PAIRS), generator=generator)
    order = torch.rand(rows, PAIRS, generator=generator).argsort(1)
    between = 2 * KINDS + torch.randint(KINDS, (rows, filler), generator=generator)
    pairs = torch.stack((keys, values), dim=-1).flatten(1)
    questions = torch.stack((keys.gather(1, order), values.gather(1, order)), dim=-1).flatten(1)
    return torch.cat((pairs, between, questions), dim=1)


def make_model(memory: bool, filler: int, tied: bool) -> ResoLLMModel:
    config = ResoLLMConfig(
        vocab_size=3 * KINDS, dim=64, num_layers=2, num_heads=2, max_seq_len=4 * PAIRS + filler,
        attention_window=WINDOW, tie_embeddings=tied,
    )  # fmt: skip
    return ResoLLMModel(with_stage(control_of(config), "temporal_smf", memory))


def answers(ids: Tensor) -> Tensor:
    """Which targets (T - 1,) of a sequence are the values asked for."""
    mask = torch.zeros(ids.shape[1] - 1, dtype=torch.bool)
    mask[-2 * PAIRS + 1 :: 2] = True
    return mask


def train(model: ResoLLMModel, steps: int, filler: int, seed: int) -> None:
    """Constant rate, then linear decay over the second half."""
    optimizers = make_optimizers(model, OptimConfig()).values()
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * min(1.0, 2 * (steps - step) / steps)
        ids = draw_batch(32, filler, generator)
        mask = answers(ids).expand(len(ids), -1)
        model.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:], mask).backward()
        for optimizer in optimizers:
            optimizer.step()


@torch.no_grad()
def accuracy(model: ResoLLMModel, filler: int, forget: bool = False) -> float:
    """Share of 512 x PAIRS unseen questions answered with the right token.

    With `forget` the sedenion field is emptied between the filler and the first question.
    """
    ids = draw_batch(512, filler, torch.Generator().manual_seed(10**6))
    first_question = 2 * PAIRS + filler
    state = model(ids[:, :first_question], model.init_state(len(ids))).state
    if forget:
        empty = model.init_state(len(ids)).stages["temporal_smf"]
        state = state.with_stage("temporal_smf", empty)
    guesses = model(ids[:, first_question:-1], state).logits[:, ::2].argmax(-1)
    return (guesses == ids[:, first_question + 1 :: 2]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--filler", type=int, default=32)
    parser.add_argument("--tied", action="store_true", help="one table for input and output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    for seed in options.seeds:
        for memory in (True, False):
            torch.manual_seed(seed)
            model = make_model(memory, options.filler, options.tied)
            train(model, options.steps, options.filler, seed)
            row = {
                "memory": memory, "seed": seed, "steps": options.steps, "filler": options.filler,
                "tied": options.tied, "window": WINDOW,
                "layers": len(model.blocks), "parameters": num_parameters(model),
                "accuracy": accuracy(model, options.filler),
                "accuracy_forgetting": accuracy(model, options.filler, True) if memory else None,
                "chance": 1 / KINDS,
            }  # fmt: skip
            print(row, flush=True)
            write_row("recall", row)


if __name__ == "__main__":
    main()
