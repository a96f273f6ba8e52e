"""A tiny random Llama with a byte tokenizer and a chat template, as an `HFEngine`."""

import pytest
import torch

from reso_llm.hf.engine import HFEngine

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template=TEMPLATE):
    """256 bytes and three special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    made.chat_template = template
    return made


def model(positions=64, **changes):
    """A Llama of two layers, the same each time."""
    sizes = dict(
        vocab_size=256 + len(SPECIAL), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=positions,
        initializer_range=0.3, bos_token_id=0, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


def engine(positions=64, template=TEMPLATE):
    return HFEngine(model(positions), tokenizer(template), "tiny")
