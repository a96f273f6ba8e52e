"""The matched pair of the zombie test: one skeleton, two kinds of block, written plainly.

    x_0 = e(w) [+ position],  x_{l+1} = x_l + f_l(norm x_l),  logits = U norm x_L,  U = table of e

feed-forward  f = causal self-attention, then MLP: GPT-2 (Radford et al. 2019). A token knows of
              earlier ones only by attention.
state-space   f = Mamba (Gu & Dao 2023): h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t,
              y_t = C_t h_t + D u_t with Δ_t, B_t, C_t read from u_t. A token knows of
              earlier ones only by the state h (B,H,N).

Both equal transformers' GPT2LMHeadModel and MambaForCausalLM weight for weight, which the tests
check. They are written again because transformers' Mamba needs more than a second for a training
step of this size without a GPU. Here H is the inner width of a Mamba block, N its state size.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

STATE_SIZE, CONV_WIDTH, EXPAND = 8, 4, 2
DT_RANGE = (1e-3, 1e-1)  # Gu & Dao 2023, section 3.6


class Architecture(NamedTuple):
    """Kind and sizes of one member of the pair."""

    kind: str  # "feed-forward" or "state-space"
    vocab_size: int
    width: int
    num_layers: int
    context: int
    num_heads: int = 4


class AttentionBlock(nn.Module):
    """(B,T,D) -> (B,T,D): x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.c_attn(self.ln_1(x))
        q, k, v = rearrange(packed, "b t (n h k) -> n b h t k", n=3, h=self.num_heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(rearrange(y, "b h t k -> b t (h k)"))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class MambaBlock(nn.Module):
    """(B,T,D) -> (B,T,D): x + out_proj(scan(conv u) · silu(z)) with u, z projected from norm x."""

    def __init__(self, width: int):
        super().__init__()
        inner = EXPAND * width
        self.rank = math.ceil(width / 16)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, CONV_WIDTH, groups=inner, padding=CONV_WIDTH - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * STATE_SIZE, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, STATE_SIZE + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(self.norm(x)).chunk(2, -1)  # (B,T,H) each
        u = F.silu(self.conv1d(u.mT)[..., : x.shape[1]]).mT
        dt, b, c = self.x_proj(u).split([self.rank, STATE_SIZE, STATE_SIZE], -1)
        dt = F.softplus(self.dt_proj(dt))
        y = selective_scan(u, dt, -self.A_log.exp(), b, c) + self.D * u
        return x + self.out_proj(y * F.silu(z))


def selective_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """y_t = C_t h_t of the recurrence above: u, dt (B,T,H), a (H,N), b, c (B,T,N) -> (B,T,H)."""
    a, h, out = a.T.contiguous(), None, []
    # One token at a time, with H innermost: three times as fast as all decays (B,T,H,N) at once.
    for u_t, dt_t, b_t, c_t in zip(*(x.unbind(1) for x in (dt * u, dt, b, c)), strict=True):
        write = b_t[..., None] * u_t[:, None]  # (B,N,H)
        h = write if h is None else torch.addcmul(write, (dt_t[:, None] * a).exp(), h)
        out.append((c_t[:, None] @ h)[:, 0])
    return torch.stack(out, 1)


class TinyLM(nn.Module):
    """Ids (B,T) -> logits (B,T,V); the head is the embedding table."""

    def __init__(self, shape: Architecture):
        super().__init__()
        attends = shape.kind == "feed-forward"
        self.context = shape.context
        self.table = nn.Embedding(shape.vocab_size, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width) if attends else None
        self.blocks = nn.ModuleList(
            AttentionBlock(shape.width, shape.num_heads) if attends else MambaBlock(shape.width)
            for _ in range(shape.num_layers)
        )
        self.norm = nn.LayerNorm(shape.width) if attends else nn.RMSNorm(shape.width, eps=1e-5)

    def states(self, embeddings: Tensor) -> Tensor:
        """Input of the head (B,T,D) for token embeddings (B,T,D)."""
        x = embeddings
        if self.positions is not None:
            x = x + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.states(self.table(ids)), self.table.weight)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Small normal weights (Nguyen & Salazar 2019), in Mamba blocks those of its own code."""
        std = (2 / (5 * self.table.embedding_dim)) ** 0.5
        for name, p in self.named_parameters():
            kind, shrink = name.rsplit(".", 1)[0], 1.0
            if kind.endswith(("c_proj", "c_out", "out_proj")):  # one addition to the stream each
                shrink = (len(self.blocks) * (1 if kind.endswith("out_proj") else 2)) ** -0.5
            if name.endswith("dt_proj.bias"):
                low, high = (math.log(edge) for edge in DT_RANGE)
                dt = (low + (high - low) * torch.rand(p.shape, generator=generator)).exp()
                p.copy_(dt + (-(-dt).expm1()).log())  # softplus(bias) = dt
            elif kind.endswith(("in_proj", "x_proj", "dt_proj", "out_proj", "conv1d")):
                bound = (p[0].numel() if p.dim() > 1 else CONV_WIDTH) ** -0.5
                p.copy_((2 * torch.rand(p.shape, generator=generator) - 1) * bound * shrink)
            elif p.dim() == 2 and not name.endswith("A_log"):
                p.copy_(torch.randn(p.shape, generator=generator) * std * shrink)
            elif name.endswith("bias"):
                p.zero_()


def make_model(shape: Architecture, seed: int) -> TinyLM:
    """An untrained member of the pair. Raises ValueError for an unknown kind."""
    if shape.kind not in ("feed-forward", "state-space"):
        raise ValueError(f"kind must be feed-forward or state-space, got {shape.kind!r}")
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global generator
        model = TinyLM(shape)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model
