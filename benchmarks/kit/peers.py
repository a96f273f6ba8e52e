"""The peer model of speed and quality: Hugging Face GPT-2 of our shape (the extra `bench`)."""

from transformers import GPT2Config, GPT2LMHeadModel

from reso_llm.config import ResoLLMConfig


def gpt2_like(config: ResoLLMConfig) -> GPT2LMHeadModel:
    """Hugging Face GPT-2 of the same width, depth, heads, vocabulary and context, no dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_seq_len,
            n_embd=config.dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=None,
        )
    )
