"""Temporal sedenion memory: a decaying field of products, read and written by every token.

    y_t = r_t* S_{t-1}                          read, before this token writes
    S_t = e^{-d_t} S_{t-1} + i_t a_t v_t        write: address times content

a_t, r_t unit sedenions (address, reader) of a head, v_t its C sedenions of content, S_t its field,
d_t >= 0 a decay in nats per token, i_t in (0, 1) a write gate; a_t v_t is the sedenion product and
r* the conjugate. For unit sedenions a* (a v) is v up to the failure of the alternative law, and
E[r* (a v)] = 0 for unrelated r: an associative memory by superposition (holographic reduced
representation, Plate 1995) whose scalar decay makes it a linear recurrence, as in gated linear
attention (Yang 2023, arXiv 2312.06635).

The address is a learned mix of this token's and the previous one's, so one write can bind a token
to the one before it. A token reads before it writes: reading its own write would be a feed-forward
path from x_t to x_t, which the blocks already have.

Shapes: B batch, T time, D width, H heads, C channels a head, S = 16 components, E = C S.
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
from reso_llm.stages import arrays
from reso_llm.stages.arrays import EPS, logistic, matrix, row_squares, scalar, view
from reso_llm.stages.fused import linear, rms_norm

S = sedenion.DIM
CHUNK = 32  # tokens a triangular matrix spans; measured in 16 ... 128
HALF_LIVES = (16.0, 4096.0)  # in tokens; heads start spread above the first up to the last


class FieldState(NamedTuple):
    """The field after the tokens so far: a value, never changed in place.

    Fields add: the field of another text, times a weight, may be added to `field` at any time.
    """

    field: Tensor  # (B,H,C,S)
    previous_address: Tensor  # (B,H,S), of the newest token, before it is mixed and normalised


def scan_chunk(field: Tensor, writes: Tensor, log_retention: Tensor) -> tuple[Tensor, Tensor]:
    """Fields before each of L tokens (B,H,L,E), and the one after them (B,H,E).

    field (B,H,E) before the first token, writes (B,H,L,E), log_retention -d_t <= 0 (B,H,L). One
    triangular matrix e^{c_t - c_j}, j <= t, of the cumulative decay c, whose first column carries
    the field in. All exponents are <= 0, so nothing overflows.
    """
    c = F.pad(log_retention.cumsum(-1), (1, 0))  # (B,H,L+1)
    future = torch.ones(c.shape[-1], c.shape[-1], dtype=torch.bool, device=c.device).triu(1)
    kept = (c.unsqueeze(-1) - c.unsqueeze(-2)).masked_fill(future, -math.inf).exp()
    fields = kept @ torch.cat((field.unsqueeze(2), writes), dim=2)  # (B,H,L+1,E)
    before, after = fields.split((writes.shape[2], 1), dim=2)
    return before, after.squeeze(2)


class SedenionField(nn.Module):
    """The stage x' = x + W_o (g * y / sqrt(1 + mean y^2)); see the module's docstring.

    g in (0, 1) is a read gate per head. The bound leaves a faint memory faint: an empty field adds
    nothing, and a stored text counts for more when it is added with more weight. W_o is zero at
    the start, which makes a new stage the identity. Half-lives start spread over the heads.
    """

    def __init__(self, dim: int, config: TemporalSMFConfig) -> None:
        super().__init__()
        self.num_heads, self.num_channels = config.num_heads, config.num_channels
        heads, width = config.num_heads, config.num_heads * config.num_channels * S
        self.sizes = (heads * S, heads * S, width, 3 * heads)  # address, reader, content, gates
        self.inputs = linear(dim, sum(self.sizes))
        self.gate_bias = nn.Parameter(torch.empty(3, heads))  # write, read, retention
        self.previous_mix = nn.Parameter(torch.empty(heads, 1))
        self.out = linear(width, dim)
        # Scaled so that a vector whose root mean square is 1 counts as one of length 1.
        table = sedenion.TABLE.reshape(S, S * S).to(self.out.weight) * S**-0.5
        self.register_buffer("product", table, persistent=False)
        self.reset_parameters()

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
            self.gate_bias[0].fill_(-1.0)
            self.gate_bias[1].zero_()
            self.gate_bias[2].copy_(-torch.log(torch.expm1(decay)))  # d = softplus(-bias)
        nn.init.ones_(self.previous_mix)
        nn.init.zeros_(self.out.weight)

    def init_state(self, batch: int, like: Tensor) -> FieldState:
        """The empty field of `batch` rows, with the dtype and device of `like`."""
        return FieldState(
            like.new_zeros(batch, self.num_heads, self.num_channels, S),
            like.new_zeros(batch, self.num_heads, S),
        )

    def stepper(self, state: FieldState) -> "FieldStep":
        """The one-token form."""
        return FieldStep(self, state)

    def silence(self) -> None:
        """Add nothing of the field to x."""
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, state: FieldState | None = None) -> tuple[Tensor, FieldState]:
        """x (B,T,D) and the state before it, None for an empty one -> x' (B,T,D), next state."""
        state = self.init_state(len(x), x) if state is None else state
        # Project: an address, a reader, the content to write, three gates.
        z = F.linear(rms_norm(x), self.inputs.weight)
        addresses, readers, content, gates = z.split(self.sizes, dim=-1)
        addresses, last = self._mixed(addresses, state.previous_address)
        readers = rearrange(readers, "b t (h s) -> b t h s", s=S)
        content = rearrange(content, "b t (h c s) -> b t h c s", h=self.num_heads, s=S)
        gates = rearrange(gates, "b t (g h) -> b t g h", g=3) + self.gate_bias
        write, read = torch.sigmoid(gates[:, :, :2, :, None, None]).unbind(2)
        # Write: address times content, into a field that decays.
        address, reader = self._matrices(torch.stack((addresses, readers))).unbind()
        writes = (content * write) @ address  # (B,T,H,C,S)
        fields, field = self._carry(state.field, writes, gates[:, :, 2])
        # Read: the conjugate of the reader times the field before this token.
        y = rearrange(fields @ reader.mT, "b t h c s -> b t h (c s)")  # r* has r's matrix, turned
        y = F.rms_norm(y, (S * self.num_channels,), eps=1.0)
        y = rearrange(read.flatten(3) * y, "b t h e -> b t (h e)")
        return x + self.out(y), FieldState(field, last)

    def _mixed(self, addresses: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Addresses (B,T,HS) mixed with the previous token's (B,T,H,S), and the last raw one."""
        addresses = rearrange(addresses, "b t (h s) -> b t h s", s=S)
        shifted = torch.cat((previous.unsqueeze(1), addresses[:, :-1]), dim=1)
        mixed = torch.addcmul(addresses, self.previous_mix, shifted - addresses)
        # A view of the last one would keep the projections of the whole prompt in memory.
        return mixed, addresses[:, -1].clone()

    def _matrices(self, vectors: Tensor) -> Tensor:
        """R (...,S,S) with v R = u v for a row v, where u is `vectors` (...,S) at length 1."""
        return rearrange(rms_norm(vectors) @ self.product, "... (r s) -> ... r s", s=S)

    def _carry(self, field: Tensor, writes: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """The field each token reads (B,T,H,C,S), and the one after the last (B,H,C,S)."""
        if writes.shape[1] == 1:
            retention = rearrange(torch.sigmoid(gates), "b 1 h -> b h 1 1")
            return field.unsqueeze(1), torch.addcmul(writes[:, 0], retention, field)
        log_retention = rearrange(F.logsigmoid(gates), "b t h -> b h t")
        flat = rearrange(writes, "b t h c s -> b h t (c s)")
        state, read = rearrange(field, "b h c s -> b h (c s)"), []
        for some, kept in zip(flat.split(CHUNK, 2), log_retention.split(CHUNK, 2), strict=True):
            fields, state = scan_chunk(state, some, kept)
            read.append(fields)
        fields = rearrange(torch.cat(read, dim=2), "b h t (c s) -> b t h c s", s=S)
        return fields, state.view_as(field)


class FieldStep:
    """One-token form of `SedenionField`: read the field into x (D,), in place, then write to it."""

    def __init__(self, module: SedenionField, state: FieldState) -> None:
        self._given = state
        self.inputs, self.out = matrix(module.inputs), matrix(module.out)
        self.mix, self.bias = view(module.previous_mix), view(module.gate_bias)[..., None]
        self.field = view(state.field)[0].copy()  # (H,C,S)
        self.previous = view(state.previous_address)[0]  # (H,S)
        _, C, S = self.field.shape
        # rms is sqrt(sum of squares + S eps) / sqrt(S), and likewise below with 1 for eps.
        self.product, self.eps = view(module.product) * S**0.5, scalar(S * EPS)
        self.size, self.root = scalar(C * S), scalar((C * S) ** 0.5)

    def __call__(self, x: ndarray) -> None:
        H, C, S = self.field.shape
        z = np.dot(arrays.rms_norm(x), self.inputs)
        vectors, content = z[: 2 * H * S].reshape(2 * H, S), z[2 * H * S : -3 * H]
        self._mix(vectors[:H])
        vectors /= np.sqrt(row_squares(vectors) + self.eps)
        address, reader = np.dot(vectors, self.product).reshape(2, H, S, S)
        write, read, retention = logistic(z[-3 * H :].reshape(3, H, 1) + self.bias)
        y = np.matmul(self.field, reader.transpose(0, 2, 1)).reshape(H, C * S)
        y *= read * self.root / np.sqrt(row_squares(y) + self.size)
        x += np.dot(y.ravel(), self.out)
        writes = np.matmul(content.reshape(H, C, S), address)
        writes *= write[..., None]
        self.field *= retention[..., None]
        self.field += writes

    def _mix(self, addresses: ndarray) -> None:
        """Mix the raw addresses (H,S) with the previous ones, in place."""
        difference = self.previous - addresses
        self.previous = addresses.copy()
        difference *= self.mix
        addresses += difference

    @property
    def state(self) -> FieldState:
        """The state after the tokens so far."""
        field, previous = torch.from_numpy(self.field.copy()), torch.from_numpy(self.previous)
        return self._given._replace(field=field[None], previous_address=previous[None])
