"""Temporal sedenion memory: a fading field that is erased before it is written, by the delta rule.

    p_t = unit(u_t + o u_t u_{t-1})         address of token t and the one before it, in this order
    q_t = unit(r_t + o r_t u_{t-1})         where token t looks
    y_t = S_{t-1} q_t                       read, before this token writes
    k_t = p_{t-1}                           its content goes to where the token before it stands
    S_t = a_t S_{t-1} + (i_t v_t - e_t a_t S_{t-1} k_t) k_t^T

S_t (C,S) is the field of a head: its 16 axes are addresses, each of its C channels is a sedenion.
u_t and r_t are unit sedenions of a token (address, reader), v_t its content; a_t, i_t and e_t in
(0, 1) are the shares that stay, are written and are erased. With all three 1, S_t k_t = v_t
whatever k_t held, and an address at a right angle to k_t keeps what it had (delta rule, Widrow and
Hoff 1960; with decay, Yang 2024, arXiv 2412.06464). e_t has a gate of its own: where more pairs are
told than there are axes, erasing costs recall; where a key is told again, it brings it.
u_t u_{t-1} is the sedenion product: it does not commute, so "a b" and "b a" have addresses of their
own, and so have "a b" and "c b".

S_t is linear in S_{t-1}, so fields add: that of a stored text, times a weight, may join another.
A chunk of L tokens is one affine map of the field before it, S F + B; its erasures, which depend on
each other, are one triangular system (Yang 2024, arXiv 2406.06484).

Shapes: B batch, T time, D width, H heads, C channels a head, S = 16 axes, N chunks of L tokens.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy import ndarray
from torch import Tensor, nn

from entropy_core import sedenion
from entropy_core.compiled import EPS, compiled, logistic, norm
from reso_llm.config import TemporalSMFConfig
from reso_llm.stages import register_constants
from reso_llm.stages.arrays import Matrix, view
from reso_llm.stages.fused import linear, rms_norm

S = sedenion.DIM
CHUNK = 32  # tokens of one triangular system; measured in 16 ... 64
HALF_LIVES = (16.0, 4096.0)  # in tokens; heads start spread above the first up to the last


class FieldState(NamedTuple):
    """The field after the tokens so far: a value, never changed in place.

    Fields add: the field of another text, times a weight, may be added to `field` at any time.
    """

    field: Tensor  # (B,H,C,S)
    address: Tensor  # (B,H,S), u of the newest token
    key: Tensor  # (B,H,S), p of the newest token: where the next one writes


def unit(x: Tensor) -> Tensor:
    """Sedenions (...,S) at length 1."""
    return rms_norm(x) * S**-0.5


def delta_scan(
    field: Tensor,
    keys: Tensor,
    readers: Tensor,
    content: Tensor,
    write: Tensor,
    erase: Tensor,
    log_retention: Tensor,
) -> tuple[Tensor, Tensor]:
    """What each token reads (B,H,T,C), and the field (B,H,C,S) after the last one.

    field (B,H,C,S) before the first, keys and readers (B,H,T,S), content (B,H,T,C), the gates
    i_t, e_t and ln a_t <= 0 (B,H,T). In a chunk c_t = ln a_1 + ... + ln a_t, and all exponents
    c_t - c_j are of j <= t and so <= 0: nothing overflows.
    """
    T, L = keys.shape[2], min(CHUNK, keys.shape[2])
    gates = (gate.unsqueeze(-1) for gate in (write, erase, log_retention))
    keys, readers, content, write, erase, log_retention = (
        F.pad(v, (0, 0, 0, -T % L)).unflatten(2, (-1, L)) for v in (keys, readers, content, *gates)
    )  # (B,H,N,L,.); padding writes and erases nothing, and all of the field stays
    c = log_retention.cumsum(-2)
    before = c - log_retention
    past = torch.ones(L, L, dtype=torch.bool, device=c.device).tril(-1)
    kept, kept_before = (
        (since - c.mT).masked_fill(~past, -math.inf).exp() for since in (c, before)
    )
    # Token t adds (own_t - S lost_t) k_t^T, with S the field before the chunk.
    system = erase * kept * (keys @ keys.mT)
    right = torch.cat((write * content, erase * c.exp() * keys), dim=-1)
    own, lost = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split(
        (content.shape[-1], S), dim=-1
    )
    # So the chunk maps S to S factor + offset.
    last = c[..., -1:, :]
    left = (last - c).exp() * keys
    factor = last.exp() * torch.eye(S, dtype=c.dtype, device=c.device) - lost.mT @ left
    fields = [field]
    for f, b in zip(factor.unbind(2), (own.mT @ left).unbind(2), strict=True):
        fields.append(fields[-1] @ f + b)
    # A token reads what the earlier ones of its chunk added, and the field before the chunk.
    match = kept_before * (readers @ keys.mT)
    look = before.exp() * readers - match @ lost
    y = match @ own + look @ torch.stack(fields[:-1], dim=2).mT
    return y.flatten(2, 3)[:, :, :T], fields[-1]


class SedenionField(nn.Module):
    """The stage x' = x + W_o (g * y / sqrt(1 + mean y^2)); see the module's docstring.

    g in (0, 1) is a read gate per head. The bound leaves a faint memory faint: an empty field adds
    nothing, and a stored text counts for more when it is added with more weight. W_o is zero at
    the start, which makes a new stage the identity. Half-lives start spread over the heads.
    """

    def __init__(self, dim: int, config: TemporalSMFConfig) -> None:
        super().__init__()
        self.num_heads, self.num_channels = config.num_heads, config.num_channels
        heads, width = config.num_heads, config.num_heads * config.num_channels
        self.sizes = (heads * S, heads * S, width, 4 * heads)  # address, reader, content, gates
        self.inputs = linear(dim, sum(self.sizes))
        self.gate_bias = nn.Parameter(torch.empty(4, heads))  # write, erase, read, retention
        self.order = nn.Parameter(torch.empty(heads, 1))
        self.out = linear(width, dim)
        register_constants(self)
        self.reset_parameters()

    def constants(self) -> dict[str, Tensor]:
        """y @ product (S,SS) is the matrix of the map x -> x y of rows x."""
        return {"product": rearrange(sedenion.TABLE, "i j k -> j (i k)").to(self.out.weight)}

    def reset_parameters(self) -> None:
        """Reader equal to address, gates and decay by their bias only, zero output.

        So a token reads the content bound to itself from the start: recall is learned sooner.
        """
        address, reader, _, gates = self.inputs.weight.split(self.sizes)
        bound = (3 / self.inputs.in_features) ** 0.5
        nn.init.uniform_(self.inputs.weight, -bound, bound)
        with torch.no_grad():
            reader.copy_(address)
            gates.zero_()
            short, long = HALF_LIVES
            share = torch.arange(1, self.num_heads + 1) / self.num_heads
            decay = math.log(2) / (short * (long / short) ** share)
            self.gate_bias.zero_()[1].fill_(-2.0)  # to erase is learned where it pays
            self.gate_bias[3].copy_(-torch.log(torch.expm1(decay)))  # d = softplus(-bias)
        nn.init.zeros_(self.order)
        nn.init.zeros_(self.out.weight)

    def init_state(self, batch: int, like: Tensor) -> FieldState:
        """The empty field of `batch` rows, on the device of `like`, in float32 or wider."""
        wide = torch.promote_types(like.dtype, torch.float32)
        field = like.new_zeros(batch, self.num_heads, self.num_channels, S, dtype=wide)
        return FieldState(field, field[:, :, 0].clone(), field[:, :, 0].clone())

    def stepper(self, state: FieldState) -> "FieldStep":
        """The one-token form."""
        return FieldStep(self, state)

    def silence(self) -> None:
        """Add nothing of the field to x."""
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, state: FieldState | None = None) -> tuple[Tensor, FieldState]:
        """x (B,T,D) and the state before it, None for an empty one -> x' (B,T,D), next state."""
        state = self.init_state(len(x), x) if state is None else state
        # Project: an address, a reader, the content to write, four gates.
        z = self.inputs(rms_norm(x))
        with torch.autocast(x.device.type, enabled=False):  # erasures add up over a text
            y, state = self._remember(z.to(state.field.dtype), state)
        return x + self.out(y.to(x.dtype)), state

    def _remember(self, z: Tensor, state: FieldState) -> tuple[Tensor, FieldState]:
        """Projections (B,T,.) -> what is read, bounded and gated (B,T,HC), and the next state."""
        address, reader, content, gates = z.split(self.sizes, dim=-1)
        content = rearrange(content, "b t (h c) -> b h t c", h=self.num_heads)
        gates = rearrange(gates, "b t (g h) -> g b h t", g=4) + self.gate_bias[:, None, :, None]
        write, erase, read = torch.sigmoid(gates[:3])
        # Where to write and to look, by the token and the one before it.
        vectors = rearrange(torch.stack((address, reader), dim=-2), "b t n (h s) -> b h t n s", s=S)
        address, vectors = self._paired(unit(vectors), state.address)
        places, readers = vectors.unbind(3)
        keys = torch.cat((state.key.unsqueeze(2), places[:, :, :-1]), dim=2)
        # Read; then erase and write.
        y, field = delta_scan(
            state.field, keys, readers, content, write, erase, F.logsigmoid(gates[3])
        )
        y = read.unsqueeze(-1) * F.rms_norm(y, (self.num_channels,), eps=1.0)
        # Views of the last ones would keep the projections of the whole prompt in memory.
        after = FieldState(field, address, places[:, :, -1].clone())
        return rearrange(y, "b h t c -> b t (h c)"), after

    def _paired(self, vectors: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """u and r (B,H,T,2,S), with u_{-1} (B,H,S) -> the last u, and p and q (B,H,T,2,S)."""
        u = vectors[:, :, :, 0]
        before = torch.cat((before.unsqueeze(2), u[:, :, :-1]), dim=2)
        turn = (before @ self.product.to(u)).unflatten(-1, (S, S))
        order = self.order.to(u)[:, :, None, None]
        return u[:, :, -1].clone(), unit(torch.addcmul(vectors, order, vectors @ turn))


class FieldStep:
    """One-token form of `SedenionField`: read the field into x (R,D), then write to it."""

    def __init__(self, module: SedenionField, state: FieldState) -> None:
        self.inputs, self.out = Matrix(module.inputs.weight), Matrix(module.out.weight)
        self.order, self.bias = view(module.order)[:, 0], view(module.gate_bias)
        self.product = view(module.product)
        self.field = view(state.field).copy()  # (R,H,C,S)
        self.address, self.key = view(state.address).copy(), view(state.key).copy()  # (R,H,S)

    def __call__(self, x: ndarray) -> None:
        R, H, C, _ = self.field.shape
        normal, y = np.empty_like(x), np.empty((R, H * C), np.float32)
        norm(x, normal)
        z = self.inputs(normal)
        delta_step(z, self.bias, self.order, self.product, self.field, self.address, self.key, y)
        x += self.out(y)

    @property
    def state(self) -> FieldState:
        """The state after the tokens so far."""
        values = (self.field.copy(), self.address.copy(), self.key.copy())
        return FieldState(*map(torch.from_numpy, values))


@compiled
def delta_step(z, bias, order, product, field, address, key, y):
    """Read the field for one token of each row, y (R,HC), bounded and gated; then write to it.

    z (R,.) are the token's projections; field (R,H,C,S), address and key (R,H,S) move on in place.
    """
    R, H, C, S = field.shape
    turn, paired = np.empty((S, S), np.float32), np.empty((2, S), np.float32)
    eps, one = np.float32(S) * EPS, np.float32(1)
    for r in range(R):
        gates = z[r, 2 * H * S + H * C :]
        for h in range(H):
            write, erase = logistic(gates[h] + bias[0, h]), logistic(gates[H + h] + bias[1, h])
            read = logistic(gates[2 * H + h] + bias[2, h])
            retention = logistic(gates[3 * H + h] + bias[3, h])
            # Where this token writes and looks: its vectors, turned by the address before it.
            before, k, field_h = address[r, h], key[r, h], field[r, h]
            turn[:] = 0
            for i in range(S):
                for j in range(S):
                    for s in range(S):
                        turn[j, s] += before[i] * product[i, j * S + s]
            for n in range(2):
                v, pair, square = z[r, (n * H + h) * S : (n * H + h + 1) * S], paired[n], eps
                for s in range(S):
                    square += v[s] * v[s]
                scale, square = one / np.sqrt(square), eps
                for s in range(S):
                    v[s] *= scale
                    pair[s] = 0
                for j in range(S):
                    for s in range(S):
                        pair[s] += v[j] * turn[j, s]
                for s in range(S):
                    pair[s] = v[s] + order[h] * pair[s]
                    square += pair[s] * pair[s]
                scale = one / np.sqrt(square)
                for s in range(S):
                    pair[s] *= scale
            # Read with the reader; erase and write at the key of the token before.
            content = z[r, 2 * H * S + h * C : 2 * H * S + (h + 1) * C]
            out, square, reader = y[r, h * C : (h + 1) * C], np.float32(C), paired[1]
            for c in range(C):
                channel, found, held = field_h[c], np.float32(0), np.float32(0)
                for s in range(S):
                    found += channel[s] * reader[s]
                    held += channel[s] * k[s]
                change = content[c] * write - held * erase * retention
                for s in range(S):
                    channel[s] = channel[s] * retention + change * k[s]
                out[c] = found
                square += found * found
            scale = read * np.sqrt(np.float32(C) / square)
            for c in range(C):
                out[c] *= scale
            for s in range(S):
                before[s], k[s] = z[r, h * S + s], paired[0, s]
