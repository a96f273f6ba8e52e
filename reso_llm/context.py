"""Context of a generation: feeds tokens to the model and keeps them within max_seq_len.

Policy. The model sees at most max_seq_len tokens. When they are full, or a prompt is longer, the
newest half is kept behind the first token (<|bos|>) and read again: generation never stops for
lack of room. A model with an attention window has no such limit.

One row on a CPU is read by the `Stepper`, everything else by the model itself.

Shapes: B rows, V vocabulary, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reso_llm.attending import received_attention
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.model import ResoLLMModel, ResoOutput, ResoState
from reso_llm.states import heated, padded, repeated, stacked
from reso_llm.stepper import Stepper


class Read(NamedTuple):
    """What the model says after all tokens so far."""

    logits: Tensor  # (B,V), float32
    coherence: Sequence[float]  # (B,) order parameter of the newest token; NaN without kuramoto
    hidden: np.ndarray  # (B,D), the final, normalised x
    layers_used: Sequence[int]  # (B,)


class Context:
    """The rows of one generation: their ids, and the model's state after them."""

    def __init__(
        self,
        model: ResoLLMModel,
        prompts: Sequence[Sequence[int]],
        goal: Tensor | None = None,
        generator: torch.Generator | None = None,
        field: Tensor | None = None,
    ) -> None:
        """prompts hold at least one id each; goal is (D,); generator is stochastic resonance's.

        field (H,C,S): what is in memory at the start, in place of the session's own.
        """
        self.model = model
        self.device = model.head_weight.device
        self.ids = [list(prompt) for prompt in prompts]
        self.num_prompt = [len(prompt) for prompt in prompts]
        self.dropped = [0] * len(prompts)
        self.goal = None if goal is None else goal.to(model.head_weight).view(1, -1)
        self.generator, self.field = generator, field
        self.table = model.embedding.weight
        self.stepper: Stepper | None = None
        self.state: ResoState | None = None
        self._unread: list[int] | None = None
        self._length = 0  # columns of the state
        self._bounded = model.config.attention_window == 0

    def append(self, tokens: Sequence[int]) -> None:
        """One more token for each row."""
        for ids, token in zip(self.ids, tokens, strict=True):
            ids.append(token)
        self._unread = list(tokens)

    def read(self) -> Read:
        """Read what is unread; the next token's logits."""
        if self._unread is None or (
            self._bounded and self._length + 1 > self.model.config.max_seq_len
        ):
            return self._read_all()
        self._length += 1
        if self.stepper is not None:
            step = self.stepper.step(self._unread[0])
            logits = torch.from_numpy(step.logits)[None]
            return Read(logits, [step.coherence], step.hidden[None], [step.layers_used])
        inputs = torch.tensor(self._unread, device=self.device).unsqueeze(1)
        output = self.model(inputs, self.state, self._goals(len(self.ids)), self.generator)
        self.state = output.state
        return self._host(output.logits[:, -1], output.diagnostics)

    def heat(self, row: int, noise: CacheNoise, generator: torch.Generator) -> None:
        """Put noise into a row's cache, for the tokens from the next one on."""
        prompt = self.num_prompt[row] - self.dropped[row]
        self._take(heated(self._current(), row, noise, max(0, prompt), generator))

    def lookahead(self, row: int, candidates: Tensor, horizon: int) -> Tensor:
        """ln p (m,) of the most probable `horizon` tokens after each of the candidates (m,)."""
        horizon = self._room_after_candidate(horizon)
        total = torch.zeros(len(candidates), device=self.device)
        state = repeated(self._current(), row, len(candidates))
        tokens = candidates
        for _ in range(horizon):
            goals = self._goals(len(candidates))
            output = self.model(tokens.unsqueeze(1), state, goals, self.generator)
            state = output.state
            best = output.logits[:, -1].float().log_softmax(-1).max(-1)
            total, tokens = total + best.values, best.indices
        return total

    def received(self, row: int) -> np.ndarray:
        """Share of attention (n,) that the newest n ids got from the tokens after the prompt."""
        ids = [self.ids[row][0], *self.ids[row][self.dropped[row] + 1 :]]
        ids = ids[-self.model.config.max_seq_len :]
        num_new = min(len(self.ids[row]) - self.num_prompt[row], len(ids))
        tokens = torch.tensor([ids], device=self.device)
        return received_attention(self.model, tokens, num_new, self._goals(1))

    def warnings(self, row: int) -> tuple[str, ...]:
        """Sentences about what a row's context has lost."""
        dropped = self.dropped[row]
        return (f"context full: the oldest {dropped} tokens were dropped",) if dropped else ()

    def newest_embeddings(self) -> np.ndarray:
        """Embedding (B,D) of each row's newest token."""
        newest = torch.tensor([ids[-1] for ids in self.ids], device=self.device)
        return self.table[newest].float().cpu().numpy()

    def _current(self) -> ResoState:
        return self.state if self.stepper is None else self.stepper.state

    def _take(self, state: ResoState) -> None:
        self._length = state.length
        one = len(self.ids) == 1 and Stepper.supports(self.model)
        self.stepper = Stepper(self.model, state, self.goal) if one else None
        self.state = None if one else state

    def _read_all(self) -> Read:
        """Read every row from its start, or from its newest half where it is too long."""
        kept = [tuple(self._kept(row)) for row in range(len(self.ids))]
        longest = max(map(len, kept))
        outputs = {ids: self._read_alone(ids, longest - len(ids)) for ids in set(kept)}
        rows = [outputs[ids] for ids in kept]
        self._take(stacked([row.state for row in rows]))
        logits = torch.cat([row.logits[:, -1] for row in rows])
        names = rows[0].diagnostics
        newest = {
            name: torch.cat([row.diagnostics[name][:, -1:] for row in rows]) for name in names
        }
        return self._host(logits, newest)

    def _read_alone(self, ids: tuple[int, ...], padding: int) -> ResoOutput:
        """A row from its start, behind `padding` columns."""
        state = self.model.recollected_state()
        if self.field is not None:
            field = self.field.to(state.field.field).unsqueeze(0)
            state = state._replace(field=state.field._replace(field=field))
        state = padded(state, padding)
        inputs = torch.tensor([ids], device=self.device)
        return self.model(inputs, state, self._goals(1), self.generator)

    def _kept(self, row: int) -> list[int]:
        ids, limit = self.ids[row], self.model.config.max_seq_len
        if not self._bounded or len(ids) - self.dropped[row] <= limit:
            return [ids[0], *ids[self.dropped[row] + 1 :]]
        keep = max(1, limit // 2 - 1)
        self.dropped[row] = len(ids) - keep - 1
        return [ids[0], *ids[-keep:]]

    def _goals(self, rows: int) -> Tensor | None:
        return None if self.goal is None else self.goal.expand(rows, -1)

    def _host(self, logits: Tensor, diagnostics: dict[str, Tensor]) -> Read:
        """Logits, and what the monitors read of the newest tokens, in one transfer."""
        rows, hidden = len(logits), diagnostics["hidden"][:, -1]
        nothing = hidden.new_full((rows,), torch.nan)
        coherence = diagnostics["coherence"][:, -1] if "coherence" in diagnostics else nothing
        layers = hidden.new_full((rows,), float(self.model.config.num_layers))
        if "gates" in diagnostics:
            layers = 1 + (diagnostics["gates"][:, -1] > 0).sum(-1)
        packed = torch.cat((coherence[:, None], layers[:, None], hidden), dim=1)
        numbers = packed.float().cpu().numpy()
        layers_used = numbers[:, 1].astype(int).tolist()
        return Read(logits.float(), numbers[:, 0].tolist(), numbers[:, 2:], layers_used)

    def _room_after_candidate(self, horizon: int) -> int:
        if not self._bounded:
            return horizon
        return min(horizon, max(0, self.model.config.max_seq_len - self._length))
