"""Context of a generation by a model of transformers: its key-value cache after some rows.

    p'(v) = the echo of stored texts mixed into the model's p(v); p itself without stored texts

The model reads every row once and then one token a step. Rows of a batch are padded on the left.
Policy: when a row holds as many tokens as the model has positions, or a prompt does, all rows are
read again, that one cut to half: its opening (a system message of at most a quarter) and its newest
tokens stay. Noise in the cache ends there too. Source: the cache classes of transformers 5.

Shapes: B rows, T tokens, V vocabulary, D width, m candidates.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reso_llm.config import EchoConfig
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.generation.context import opening_limit
from reso_llm.generation.prompt_cache import PromptCache
from reso_llm.generation.remembered import memory_limit
from reso_llm.generation.row import PROMPT_WINDOW, Prediction, TextRow
from reso_llm.hf.cache import add_noise, is_recurrent
from reso_llm.hf.tokenizer import HFTokenizer
from reso_llm.stages.echo import Echo, EchoState, EchoStep, TextCounts


class HFContext:
    """A model of transformers after the ids of some rows. Call its methods in inference mode."""

    attending = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: HFTokenizer,
        rows: Sequence[TextRow],
        *,
        prompts: Sequence[Sequence[int]],
        limit: int,
        openings: Sequence[int],
        echo: EchoConfig,
        cache: PromptCache | None = None,
    ) -> None:
        """prompts: ids that the model reads before the new ones, in place of the rows' own prompts.

        limit: the model's positions. openings: first ids of each prompt that stay in a cut. echo:
        options of what speaks of the stored texts that a row's prompt asks for. cache: prompts that
        a single row may go on from, which its own joins.
        """
        self.model, self.tokenizer, self.rows, self.limit = model, tokenizer, rows, limit
        self.table = model.get_input_embeddings().weight
        self.prompts = [list(prompt) for prompt in prompts]
        longest = opening_limit(limit) + memory_limit(limit)
        self.openings = [n if n <= longest else 0 for n in openings]
        self.dropped = [0] * len(rows)  # tokens between the opening and the newest
        self._prompts_read = cache if len(rows) == 1 else None
        self._cache: Any = None
        self._mask = torch.zeros(0)  # (B,T), 1 where a column of the cache is a token
        parameters = inspect.signature(model.forward).parameters
        self._keeps_some = "logits_to_keep" in parameters
        self.monitored = any(row.decoding.monitor is not None for row in rows)
        self._echo = echo
        self._echoes = [_echo_of(row, echo) for row in rows]
        self._heard = [0] * len(rows)  # ids that the echo has read

    def predict(self) -> Prediction:
        """Read the newest token of each row, and predict the next.

        The logits of a row that has ended mean nothing. Raises ValueError for a model that keeps
        another state than keys and values.
        """
        newest = torch.tensor([row.ids[-1] for row in self.rows], device=self.table.device)
        going = [self._length(b) for b, row in enumerate(self.rows) if not row.stop_reason]
        if self._cache is None or max(going, default=0) > self.limit:
            logits = self._read_anew()
        else:
            self._mask = torch.cat((self._mask, self._mask.new_ones(len(self.rows), 1)), 1)
            logits = self._read(newest[:, None], self._cache, self._mask)[:, -1]
        embedding = self.table[newest].float().cpu().numpy()
        return Prediction(self._echoed(logits.float()), embedding)

    def heat(self, row: int, noise: CacheNoise, generator: torch.Generator) -> None:
        """Put noise into a row's cache; it acts from the next token on."""
        num_pads = int((self._mask[row].cumsum(0) == 0).sum())
        num_gone = int((self._mask[row] == 0).sum()) - num_pads  # taken back, all of them new
        num_new = min(len(self.rows[row].new_ids), self._length(row) - self.openings[row])
        add_noise(self._cache, row, noise, num_pads, num_new + num_gone, generator)

    def take_back(self, row: int, num_tokens: int) -> None:
        """Forget the last tokens of a row: no later one attends to them, and theirs are its places.

        The echo hears the rest again.
        """
        held = self._mask[row].nonzero()[:, 0]
        self._mask[row, held[-num_tokens:]] = 0
        self._heard[row], self._echoes[row] = 0, _echo_of(self.rows[row], self._echo)

    def lookahead(self, row: int, candidates: Tensor, horizon: int) -> Tensor:
        """ln p (m,) of the most probable `horizon` tokens after each of the candidates (m,).

        There are fewer at the model's last position and where the text ends. Without the echo.
        """
        places = torch.full_like(candidates, row)
        cache, mask, tokens = copy.deepcopy(self._cache), self._mask[places], candidates
        cache.batch_select_indices(places)
        ends = torch.tensor(self.tokenizer.end_ids, device=candidates.device)
        total = torch.zeros(len(candidates), device=candidates.device)
        going = ~torch.isin(candidates, ends)
        room = self.limit - int(self._mask[row].sum())
        for _ in range(max(0, min(horizon, room))):
            mask = torch.cat((mask, mask.new_ones(len(tokens), 1)), 1)
            best = self._read(tokens[:, None], cache, mask)[:, -1].float().log_softmax(-1).max(-1)
            total = torch.where(going, total + best.values, total)
            tokens = best.indices
            going = going & ~torch.isin(tokens, ends)
        return total

    def received(self, row: int) -> np.ndarray:
        """ValueError: these models do not tell the attention that a token received."""
        raise ValueError("attention received is not known of a model of transformers")

    def warnings(self, row: int) -> tuple[str, ...]:
        """Sentences about what a row's context has lost."""
        dropped = self.dropped[row]
        return (f"context full: the oldest {dropped} tokens were dropped",) if dropped else ()

    # --- the model

    def _read_anew(self) -> Tensor:
        """Read every row from its start, or its opening and newest tokens where it is too long."""
        parts = [self._kept(row) for row in range(len(self.rows))]
        longest = max(map(len, parts))
        pads = [longest - len(part) for part in parts]
        device = self.table.device
        self._mask = torch.tensor(
            [[0] * n + [1] * (longest - n) for n in pads], dtype=torch.long, device=device
        )
        ids = [[part[0]] * n + part for n, part in zip(pads, parts, strict=True)]
        first, self._cache = self._cache is None, None
        counts = first and self.monitored  # the prompt, for the class of the text
        if first and self._prompts_read is not None and not self.dropped[0]:
            logits = self._read_prompt(self._prompts_read, ids[0])
        else:
            kept = PROMPT_WINDOW + 1 if counts else 1
            logits = self._read(torch.tensor(ids, device=device), None, self._mask, kept)
        if counts:
            for row, part, read in zip(self.rows, parts, logits, strict=True):
                row.read_prompt(read[-len(part) :], part)
        return logits[:, -1]

    def _read_prompt(self, earlier: PromptCache, ids: list[int]) -> Tensor:
        """Logits (1,k,V) after the last ids of a prompt; only what no prompt before it has is read.

        A cache that is kept is copied, as the model extends it in place.
        """
        before = earlier.before(None, ids)
        self._cache = None if before is None else copy.deepcopy(before.state)
        rest = torch.tensor([ids[0 if before is None else len(before.ids) :]])
        logits = self._read(rest.to(self._mask), self._cache, self._mask, PROMPT_WINDOW + 1)
        return earlier.keep(None, ids, copy.deepcopy(self._cache), logits[0], before)[None]

    def _read(self, ids: Tensor, cache: Any, mask: Tensor, kept: int = 1) -> Tensor:
        """Logits (B,k,V) after ids (B,n), the newest columns of the mask (B,T).

        k is `kept` or fewer where the model can be asked for so many, else n.

        The model extends the cache in place; without one it makes that of this context.
        """
        places = (mask.cumsum(-1) - 1).clamp(0, self.limit - 1)[:, -ids.shape[1] :]
        padded = bool((mask == 0).any())
        output = self.model(
            input_ids=ids,
            attention_mask=mask if padded else None,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            **({"logits_to_keep": kept} if self._keeps_some else {}),
        )
        if cache is None:
            self._cache = output.past_key_values
            if is_recurrent(self._cache, True):
                raise ValueError(
                    f"{type(self.model).__name__} is recurrent: expected a model that keeps keys "
                    "and values"
                )
        return output.logits

    def _kept(self, row: int) -> list[int]:
        """Ids of a row that are read; the first one alone for a row that has ended."""
        ids, opening = [*self.prompts[row], *self.rows[row].new_ids], self.openings[row]
        if self.rows[row].stop_reason:
            return ids[:1]
        if len(ids) - self.dropped[row] > self.limit:
            self.dropped[row] = len(ids) - max(1, self.limit // 2 - opening) - opening
        return [*ids[:opening], *ids[opening + self.dropped[row] :]]

    def _length(self, row: int) -> int:
        """Tokens that are read of a row."""
        new = len(self.rows[row].ids) - self.rows[row].num_prompt
        return len(self.prompts[row]) + new - self.dropped[row]

    def _echoed(self, logits: Tensor) -> Tensor:
        """Logits (B,V) with the stored texts mixed in; what was ruled out stays so."""
        for b, (row, echo) in enumerate(zip(self.rows, self._echoes, strict=True)):
            if echo is None:
                continue
            found = [[]]
            for token in row.ids[self._heard[b] :]:
                found = echo.read([token])
            self._heard[b] = len(row.ids)
            mixed = logits[b : b + 1].cpu().numpy().copy()
            echo.add(found, np.zeros((1, 1), np.float32), mixed)
            ruled_out = logits[b].isneginf()
            logits[b] = torch.from_numpy(mixed[0]).to(logits).masked_fill(ruled_out, -torch.inf)
        return logits


def _echo_of(row: TextRow, config: EchoConfig) -> EchoStep | None:
    """An echo that has read the stored texts a row's prompt asks for; None without any.

    What is read besides counts nothing: these models copy from their context by themselves.
    """
    if not row.memories.echo or not config.enabled:
        return None
    stored = TextCounts.of_texts(row.memories.echo, config.max_order)
    return EchoStep(Echo(1, config), EchoState((stored,), weight=0.0))
