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
from reso_llm.config import TemporalSMFConfig
from reso_llm.stages import arrays, register_constants
from reso_llm.stages.arrays import EPS, Matrix, logistic, row_squares, scalar, view
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
        self.order, self.bias = view(module.order)[..., None], view(module.gate_bias)[..., None]
        self.product = view(module.product)
        self.field = view(state.field).copy()  # (R,H,C,S)
        self.address, self.key = view(state.address), view(state.key)  # (R,H,S)
        # rms is sqrt(sum of squares + S eps) / sqrt(S), and likewise below with 1 for eps.
        C, S = self.field.shape[2:]
        self.eps, self.size, self.root = scalar(S * EPS), scalar(C), scalar(C**0.5)

    def __call__(self, x: ndarray) -> None:
        R, H, C, S = self.field.shape
        z = self.inputs(arrays.rms_norm(x))
        content = z[:, 2 * H * S : -4 * H].reshape(R, H, C)
        gates = logistic(z[:, -4 * H :].reshape(R, 4, H, 1) + self.bias)
        write, erase, read, retention = gates.swapaxes(0, 1)  # (R,H,1) each
        key = self.key
        reader = self._move_on(z[:, : 2 * H * S].reshape(-1, S))
        y = np.matmul(self.field, reader[..., None])[..., 0]  # (R,H,C)
        held = np.matmul(self.field, key[..., None])[..., 0]
        y *= read * self.root / np.sqrt(row_squares(y) + self.size)
        x += self.out(y.reshape(R, H * C))
        change = content * write - held * (erase * retention)
        self.field *= retention[..., None]
        self.field += change[..., None] * key[:, :, None]

    def _move_on(self, vectors: ndarray) -> ndarray:
        """Reader (R,H,S) of raw addresses and readers (2RH,S); this token is now the newest."""
        R, H, _, S = self.field.shape
        vectors /= np.sqrt(row_squares(vectors) + self.eps)
        vectors = vectors.reshape(R, 2, H, 1, S)
        turn = np.dot(self.address.reshape(-1, S), self.product).reshape(R, 1, H, S, S)
        paired = (vectors + self.order * np.matmul(vectors, turn)).reshape(-1, S)
        paired /= np.sqrt(row_squares(paired) + self.eps)
        paired = paired.reshape(R, 2, H, S)
        self.address, self.key = vectors[:, 0, :, 0], paired[:, 0]
        return paired[:, 1]

    @property
    def state(self) -> FieldState:
        """The state after the tokens so far."""
        values = (self.field.copy(), self.address.copy(), self.key.copy())
        return FieldState(*map(torch.from_numpy, values))
