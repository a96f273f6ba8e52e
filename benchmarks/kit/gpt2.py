"""Hugging Face GPT-2 and Llama of our shapes; GPT-2 with our echo, the same memory of the text.

    p' = (p + sum_m s_m K_m / N_m) / (1 + sum_m s_m)        `reso_llm.stages.echo`, trained as ours

p is GPT-2's own distribution, and its final, normalised hidden state sets the trust s_m. Loss and
nats are called as those of `ResoNetwork`, so one objective and one evaluation serve both.
transformers (the extra `bench`) is imported when a model is made.

Shapes: B batch, T time, D width, V vocabulary, W = 0 ids of a tail.
"""

from typing import Any

import torch
from torch import Tensor, nn

from reso_llm.config import ResoLLMConfig
from reso_llm.stages.echo import Echo, TargetEvidence
from reso_llm.stages.fused import linear_cross_entropy, linear_nats, rms_norm


def gpt2_like(config: ResoLLMConfig) -> nn.Module:
    """Hugging Face GPT-2 of the same shape and dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.max_seq_len, n_embd=config.dim,
        n_layer=config.num_layers, n_head=config.num_heads, resid_pdrop=config.dropout,
        embd_pdrop=config.dropout, attn_pdrop=config.dropout, bos_token_id=0, eos_token_id=None,
    ))  # fmt: skip


def llama_like(config: ResoLLMConfig) -> nn.Module:
    """Hugging Face Llama of the same shape; its gated feed-forward has as many numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab_size, max_position_embeddings=config.max_seq_len,
        hidden_size=config.dim, intermediate_size=2 * config.ffn_multiplier * config.dim // 3,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=None,
    ))  # fmt: skip


class EchoingGPT2(nn.Module):
    """GPT-2 of the shape of `config`, with the echo where that is enabled."""

    tail_length = 0  # it reads no ids before its window

    def __init__(self, config: ResoLLMConfig) -> None:
        super().__init__()
        self.config, self.body = config, gpt2_like(config)
        self.echo = Echo(config.dim, config.echo) if config.echo.enabled else None

    @property
    def head_weight(self) -> Tensor:
        """Output map (V,D), tied to the token embedding."""
        return self.body.lm_head.weight

    def loss(self, ids: Tensor, targets: Tensor, evidence: TargetEvidence | None = None) -> Tensor:
        """Mean nats per target (B,T); without evidence nothing is known before the window."""
        return linear_cross_entropy(**self._prediction(ids, targets, evidence))

    @torch.no_grad()
    def nats(
        self,
        ids: Tensor,
        targets: Tensor,
        tail: Tensor | None = None,
        evidence: TargetEvidence | None = None,
    ) -> Tensor:
        """Nats (B,T) of every target (B,T); the tail (B,0) is empty."""
        return linear_nats(**self._prediction(ids, targets, evidence)).view_as(targets)

    def _prediction(
        self, ids: Tensor, targets: Tensor, evidence: TargetEvidence | None
    ) -> dict[str, Any]:
        x, support = self.body.transformer(ids).last_hidden_state, None
        if self.echo is not None:
            evidence = evidence or self.echo.window_evidence(ids, targets)
            added = self.echo.support(rms_norm(x), evidence)
            support = tuple(part.flatten() for part in added)
        return {
            "x": x.flatten(0, 1), "weight": self.head_weight, "targets": targets.flatten(),
            "support": support,
        }  # fmt: skip
