"""Tiny random GPT-2, Llama and Mistral (a sliding window), and controllers with a fixed plan."""

import math
from dataclasses import dataclass

import pytest
import torch

from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import PhaseSlip
from reso_llm.hf.control import controlled

transformers = pytest.importorskip("transformers")

V, EOS, PAD, NEW = 41, 39, 40, 12
SMALL = dict(vocab_size=V, bos_token_id=1, eos_token_id=EOS, initializer_range=0.3)
WIDE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
WIDE |= dict(num_key_value_heads=1, max_position_embeddings=64)


def make(name, **changes):
    """A tiny model with uneven distributions; the token `EOS` is likely now and then."""
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **SMALL)
    elif name == "llama":
        config = transformers.LlamaConfig(**SMALL, **WIDE)
    else:
        config = transformers.MistralConfig(**SMALL, **WIDE, sliding_window=6)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = getattr(transformers, type(config).__name__.replace("Config", MODELS[name]))(config)
    model.generation_config.pad_token_id = PAD
    return model.eval()


MODELS = {"gpt2": "LMHeadModel", "llama": "ForCausalLM", "mistral": "ForCausalLM"}
NAMES = tuple(MODELS)
TINY = {name: make(name) for name in NAMES}
IDS = torch.tensor([[PAD, PAD, 5, 7, 11], [3, 1, 4, 1, 5], [PAD, 9, 2, 6, 8]])
MASK = (IDS != PAD).long()
NOTHING = PhaseSlip.published(confident_nats=math.inf)
SILENT = PhaseSlip.published(spike_nats=0.0, slip_temperature=None, noise=CacheNoise(scale=0.0))
SLIPS = PhaseSlip.published(spike_nats=0.0, cooldown_steps=2)


@dataclass(frozen=True)
class Script:
    """A controller that takes the decisions of `plan`, {step: decision}."""

    plan: dict
    name: str = "script"

    def start(self):
        return Follow(self.plan)


class Follow:
    def __init__(self, plan):
        self.plan, self.step = plan, -1

    def decide(self, reading):
        self.step += 1
        return self.plan.get(self.step)


@dataclass(frozen=True)
class OneRow:
    """`controller`, in row `row` of the first call only: `start` is called once for each row."""

    controller: object
    row: int
    calls: list
    name: str = "one_row"

    def start(self):
        self.calls.append(0)
        return self.controller.start() if len(self.calls) - 1 == self.row else Follow({})


def one_row(controller, row):
    return OneRow(controller, row, [])


def plain(model, seed=None, **kwargs):
    """`generate` without controllers: the oracle."""
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        given = dict(max_new_tokens=NEW, attention_mask=MASK) | kwargs
        return model.generate(IDS, **given)


def run(model, controllers, seed=0, torch_seed=None, stability=None, **kwargs):
    with controlled(model, controllers, seed=seed, stability=stability) as control:
        return plain(model, torch_seed, **kwargs), control.results
