"""Context of a generation: feeds the rows' tokens to the model and keeps them in max_seq_len.

Policy. The model sees at most max_seq_len tokens. When they are full, or a prompt is longer, the
row is cut to half of them and read again: generation never stops for lack of room. Its opening
stays, which is <|bos|> and a system message of at most a quarter of max_seq_len, and an eighth more
for stored texts, and the newest tokens do. Noise in the cache ends there too. A model with an
attention window has no such limit. The echo keeps what it counted of the tokens dropped; the row's
own words count `own_weight`, and so does the beginning of a reply in a prompt. The rows own their
ids; the context owns the model's state after them.

On a CPU the `Stepper` reads the tokens after the prompt: every row has a state of its own, and goes
until it ends. Elsewhere the model reads them, and the rows are one state with common columns: a
short row is read again when the longest is full, and loses nothing.

Shapes: B rows, V vocabulary, D width.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.generation.attention_received import received_attention
from reso_llm.generation.nudge import FIRST_FORK, FORK_EVERY, Nudged
from reso_llm.generation.prompt_cache import PromptCache
from reso_llm.generation.remembered import memory_limit
from reso_llm.generation.row import Prediction, TextRow
from reso_llm.generation.states import heated, padded, selected, stacked
from reso_llm.generation.stepper import Step, Stepper
from reso_llm.model import ResoLLMModel
from reso_llm.network import ResoOutput, ResoState
from reso_llm.tokenizer import ResoTokenizer


class Context:
    """The model's state after the ids of some rows.

    Call its methods in inference mode.
    """

    def __init__(
        self,
        model: ResoLLMModel,
        tokenizer: ResoTokenizer,
        rows: Sequence[TextRow],
        *,
        goal: Tensor | None = None,
        noise: torch.Generator | None = None,
        attending: bool = False,
        cache: PromptCache | None = None,
    ) -> None:
        """rows hold at least one id each; goal is (D,); noise is stochastic resonance's source.

        cache: prompts that a single row may go on from, which its own joins. attending: sum up the
        attention received, which `received` returns. Rows with a monitor get the exponents of their
        states, where the traces are kept.
        """
        self.model, self.noise, self.attending = model, noise, attending
        self.tokenizer, self.table = tokenizer, model.embedding.weight
        self.device = self.table.device
        self.rows = rows
        self.dropped = [0] * len(rows)  # tokens between the opening and the newest
        context = model.config.max_seq_len
        limit = opening_limit(context) + memory_limit(context)
        self._opening = [_opening_size(row.ids, tokenizer, limit) for row in rows]
        self._num_given = [num_given(row.ids, tokenizer) for row in rows]
        self.goal = None if goal is None else goal.to(self.table).view(1, -1)
        self._cache = cache if len(rows) == 1 and noise is None else None
        self.forbidden = unwritable(tokenizer, model.config.vocab_size).to(self.device)
        self.ends = torch.tensor(tokenizer.end_ids, device=self.device)
        self._stepping = Stepper.supports(model)
        self.stepper: Stepper | None = None
        self._stepped: list[int] = []  # the rows that the stepper reads
        self.state: ResoState | None = None  # of all rows, where no stepper reads them
        self._begun = False
        self._taken_back: set[int] = set()  # rows that the state is no longer true of
        self._bounded = model.config.attention_window == 0
        self._num_first = [0] * len(rows)  # tokens of the last reading in one pass
        self._received = [np.zeros(0)] * len(rows)  # attention received before, by index in ids
        self.monitored = any(row.decoding.monitor is not None for row in rows)
        self._nudged: dict[tuple[int, ...], Nudged] = {}  # copies after a fork, by their rows
        self._num_read = 0  # tokens since the prompt, of every row

    def predict(self) -> Prediction:
        """Read the newest token of each row, and predict the next.

        The logits of a row that has ended mean nothing.
        """
        if not self._begun:
            prediction = self._host(*self._read_anew(range(len(self.rows)), num_unread=0))
            self._begun = True
        else:
            prediction = self._read_newest()
            self._follow(prediction)
        self._fork()
        return prediction

    def _read_newest(self) -> Prediction:
        self._leave_ended()
        if stale := self._full() | self._taken_back:
            self._read_anew(sorted(stale), num_unread=1)
        newest = [row.ids[-1] for row in self.rows]
        if self._stepping:
            return self._step(newest)
        inputs = torch.tensor(newest, device=self.device).unsqueeze(1)
        output = self.model(inputs, self.state, self._goals(len(self.rows)), self.noise)
        self.state = output.state
        return self._host(output.logits[:, -1], output.diagnostics)

    def _step(self, newest: Sequence[int]) -> Prediction:
        """Read the newest token of each row that goes on with the stepper."""
        rows, stepper = self._stepped, self.stepper
        step = stepper.step([newest[row] for row in rows])
        if len(rows) < len(newest):
            step = Step(*(_spread(values, rows, len(newest)) for values in step))
        return Prediction(
            self._allowed(torch.from_numpy(step.logits)),
            stepper.embedding.table[newest],
            step.coherence if stepper.kuramoto else None,
            step.layers_used if stepper.gate else None,
            step.hidden,
        )

    # --- the exponent of the states

    def _fork(self) -> None:
        """Begin to follow nudged copies of the states, where it is time for it (`nudge.py`)."""
        asked = self.monitored and self.rows[0].options.metrics
        if asked and self._num_read % FORK_EVERY == FIRST_FORK:
            self._nudged = {
                rows: Nudged(self.model, state, self._goals(len(rows)))
                for rows, state in self._current().items()
            }

    def _follow(self, prediction: Prediction) -> None:
        """Show the nudged copies what the rows have read; the monitors take their exponents."""
        self._num_read += 1
        for rows, copy in list(self._nudged.items()):
            newest = torch.tensor([self.rows[row].ids[-1] for row in rows], device=self.device)
            copy.follow(newest, prediction.hidden[list(rows)])
            if copy.complete:
                self._forget(rows)
                for row, exponent in zip(rows, copy.exponents(), strict=True):
                    monitor = self.rows[row].decoding.monitor
                    if monitor is not None and not self.rows[row].stop_reason:
                        monitor.take_exponent(exponent)

    def _forget(self, rows: Iterable[int]) -> None:
        """Follow no copy of these rows any more, as it follows another state."""
        gone = set(rows)
        self._nudged = {kept: copy for kept, copy in self._nudged.items() if not gone & {*kept}}

    def heat(self, row: int, noise: CacheNoise, generator: torch.Generator) -> None:
        """Put noise into a row's cache; it acts from the next token on."""
        if row in self._taken_back:
            self._read_anew([row], num_unread=0)
        num_prompt = max(self._opening[row], self.rows[row].num_prompt - self.dropped[row])
        self._forget([row])
        if not self._stepping:
            self.state = heated(self.state, row, noise, num_prompt, generator)
            return
        states = self._states()
        states[row] = heated(states[row], 0, noise, num_prompt, generator)
        self._take(states)

    def take_back(self, row: int, num_tokens: int) -> None:
        """Forget the last tokens of a row: it is read again, as no stage can forget."""
        if self.attending:
            kept = len(self.rows[row].ids) - num_tokens
            self._received[row] = self._received_by_id(row)[:kept]
        self._taken_back.add(row)

    def lookahead(self, row: int, candidates: Tensor, horizon: int) -> Tensor:
        """ln p (m,) of the most probable `horizon` tokens after each of the candidates (m,).

        There are fewer where the context has no room or the text ends before. Noise is left out.
        """
        total = torch.zeros(len(candidates), device=self.device)
        going = ~torch.isin(candidates, self.ends)
        state, place = (self._states()[row], 0) if self._stepping else (self.state, row)
        state, tokens = selected(state, [place] * len(candidates)), candidates
        room = self.model.config.max_seq_len - state.length if self._bounded else horizon
        for _ in range(min(horizon, room)):
            output = self.model(tokens.unsqueeze(1), state, self._goals(len(candidates)))
            best = self._allowed(output.logits[:, -1].float()).log_softmax(-1).max(-1)
            total = torch.where(going, total + best.values, total)
            state, tokens = output.state, best.indices
            going = going & ~torch.isin(tokens, self.ends)
        return total

    def received(self, row: int) -> np.ndarray:
        """Share of attention (n,) that a row's n ids got; all 0 where too little was written.

        The tokens after the prompt attend, except the last one. Each counts once, when it is first
        read. Equation: `attention_received.py`. ValueError unless the context is attending.
        """
        if not self.attending:
            raise ValueError("attention received was not summed: use Context(..., attending=True)")
        total = self._received_by_id(row)
        return total / (total.sum() or 1.0)

    def warnings(self, row: int) -> tuple[str, ...]:
        """Sentences about what a row's context has lost."""
        dropped = self.dropped[row]
        return (f"context full: the oldest {dropped} tokens were dropped",) if dropped else ()

    # --- the state

    def _states(self) -> dict[int, ResoState]:
        """The state of each row that the stepper reads."""
        if self.stepper is None:
            return {}
        return dict(zip(self._stepped, self.stepper.states, strict=True))

    def _current(self) -> dict[tuple[int, ...], ResoState]:
        """All states, by the rows that each is of."""
        if not self._stepping:
            return {tuple(range(len(self.rows))): self.state}
        return {(row,): state for row, state in self._states().items()}

    def _take(self, states: Mapping[int, ResoState]) -> None:
        """Let a new stepper go on from these states of some rows."""
        self._settle()
        self._stepped, goals = sorted(states), self._goals(len(states))
        ordered = [states[row] for row in self._stepped]
        self.stepper = Stepper(self.model, ordered, goals, attending=self.attending)

    def _settle(self) -> None:
        """Part with the stepper, but keep the attention that it has summed up."""
        if self.attending and self.stepper is not None:
            for row in self._stepped:
                self._received[row] = self._received_by_id(row)
        self.stepper = None  # Ctrl-C while a row is read again must not count it twice

    def _leave_ended(self) -> None:
        """Read the rows that have ended no more."""
        ended = [row for row in self._stepped if self.rows[row].stop_reason]
        if ended:
            self._forget(ended)
            self._taken_back.difference_update(ended)
            self._take({r: state for r, state in self._states().items() if r not in ended})

    def _full(self) -> set[int]:
        """The rows that have no room for another token, or whose common state has none."""
        limit = self.model.config.max_seq_len
        if not self._bounded:
            return set()
        if not self._stepping:
            return {*range(len(self.rows))} if self.state.length == limit else set()
        lengths = zip(self._stepped, self.stepper.lengths, strict=True)
        return {row for row, length in lengths if length == limit}

    def _read_anew(self, rows: Sequence[int], num_unread: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Read rows from their start, or their opening and newest tokens where they are too long.

        The num_unread newest tokens are left out. Returns logits (B,V) and diagnostics (B,1,...)
        after the others.
        """
        states = self._states()
        self._settle()
        kept = {row: self._cut_to_fit(row, num_unread) for row in rows}
        columns = max(part.length for part in kept.values())
        if not self._stepping and len(rows) < len(self.rows):  # the others stay where they are
            columns = self.state.length
            states = {row: selected(self.state, [row]) for row in range(len(self.rows))}
        read = {
            part: self._read_alone(part, 0 if self._stepping else columns - part.length)
            for part in dict.fromkeys(kept.values())
        }
        outputs = [read[part] for part in kept.values()]
        self._taken_back.difference_update(rows)
        if not self._begun and self.monitored:
            for row, output in zip(self.rows, outputs, strict=True):
                row.read_prompt(output.logits[0], row.ids)
        self._forget(rows)
        states |= {row: read[part].state for row, part in kept.items()}
        if self._stepping:
            self._take(states)
        else:
            self.state = stacked([states[row] for row in range(len(self.rows))])
        logits = torch.cat([output.logits[:, -1] for output in outputs])
        return logits, {
            name: torch.cat([output.diagnostics[name][:, -1:] for output in outputs])
            for name in outputs[0].diagnostics
        }

    def _read_alone(self, kept: "_Kept", padding: int) -> ResoOutput:
        """Read a row from its start, behind `padding` columns."""
        state = self.model.recollected_state(kept.memories)
        state = self._after_dropped(padded(state, padding), kept)
        # What is given first, then the model's own words; those that come next are its own, too.
        for read, ids in ((self._read_given, kept.given), (self._read_ids, kept.own)):
            if ids:
                output = read(ids, state)
                state = self._own_words_next(output.state)
        return output._replace(state=state)

    def _read_ids(self, ids: Sequence[int], state: ResoState) -> ResoOutput:
        inputs = torch.tensor([ids], device=self.device)
        return self.model(inputs, state, self._goals(1), self.noise)

    def _read_given(self, ids: Sequence[int], state: ResoState) -> ResoOutput:
        """Read given ids, from where the longest prompt of the cache that they go on from ends."""
        if self._cache is None or self._begun or self.dropped[0]:
            return self._read_ids(ids, state)
        start = self._start(state)
        before = self._cache.before(start, ids)
        if before is None:
            output = self._read_ids(ids, state)
        else:
            output = self._read_ids(ids[len(before.ids) :], before.state)
        logits = self._cache.keep(start, ids, output.state, output.logits[0], before)
        return output._replace(logits=logits[None])

    def _start(self, state: ResoState) -> tuple[Hashable, ...]:
        """What a row's reading starts from, by value: the goal, stored texts, and their field."""
        field = state.stages.get("temporal_smf")
        parts = self.goal, None if field is None else field.field
        return self.rows[0].memories.echo, *(None if p is None else _bytes(p) for p in parts)

    def _own_words_next(self, state: ResoState) -> ResoState:
        """The state whose echo counts the words read next as the model's own."""
        if self.model.echo is None:
            return state
        weight = self.model.echo.own_weight
        return state.with_stage("echo", state.stages["echo"]._replace(weight=weight))

    def _after_dropped(self, state: ResoState, kept: "_Kept") -> ResoState:
        """The state whose echo has counted the tokens that a row had to drop, as a text apart."""
        if self.model.echo is None or not kept.dropped:
            return state
        (counts,), own_weight = state.stages["echo"].rows, self.model.echo.own_weight
        for place, token in enumerate(kept.dropped):
            counts = counts.read(token, 1.0 if place < kept.dropped_given else own_weight)
        return state.with_stage("echo", state.stages["echo"]._replace(rows=(counts.read(-1),)))

    def _cut_to_fit(self, row: int, num_unread: int) -> "_Kept":
        """Ids of a row to be read again; the first one alone for a row that has ended."""
        ids, limit = self.rows[row].ids, self.model.config.max_seq_len
        if self.rows[row].stop_reason:
            return _Kept((), (), 0, (ids[0],), ())
        if self.attending and self._begun and not self._stepping:
            self._received[row] = self._received_by_id(row)
        opening, num_given = self._opening[row], self._num_given[row]
        if self._bounded and len(ids) - self.dropped[row] > limit:
            self.dropped[row] = len(ids) - max(1, limit // 2 - opening) - opening
        columns = self._columns(row)
        self._num_first[row] = len(columns) - num_unread
        read = columns[: self._num_first[row]]
        dropped = range(opening, opening + self.dropped[row])
        return _Kept(
            self.rows[row].memories.echo,
            tuple(ids[i] for i in dropped),
            sum(i < num_given for i in dropped),
            tuple(ids[i] for i in read if i < num_given),
            tuple(ids[i] for i in read if i >= num_given),
        )

    def _columns(self, row: int) -> list[int]:
        """Index in a row's ids of each of its columns, padding left out."""
        opening = self._opening[row]
        return [*range(opening), *range(opening + self.dropped[row], len(self.rows[row].ids))]

    def _received_by_id(self, row: int) -> np.ndarray:
        """Attention received (n,) by each of a row's ids, up to now."""
        columns = self._columns(row)
        received = self._received_since(row, columns)
        total = np.zeros(len(self.rows[row].ids))
        total[: len(self._received[row])] = self._received[row]
        total[columns[: len(received)]] += received
        return total

    def _received_since(self, row: int, columns: Sequence[int]) -> np.ndarray:
        """Attention received by a row's first columns since it was read anew; (0,) for none."""
        nothing = np.zeros(0)
        if row in self._taken_back:  # what was summed up is of other ids
            return nothing
        if self._stepping:
            has_stepped = self.stepper is not None and row in self._stepped
            return self.stepper.received(self._stepped.index(row)) if has_stepped else nothing
        inputs = torch.tensor([[self.rows[row].ids[i] for i in columns[:-1]]], device=self.device)
        num_new = inputs.shape[1] - self._num_first[row]
        if num_new <= 0:
            return nothing
        return received_attention(self.model, inputs, num_new, self._goals(1))

    # --- parts

    def _goals(self, rows: int) -> Tensor | None:
        return None if self.goal is None else self.goal.expand(rows, -1)

    def _allowed(self, logits: Tensor) -> Tensor:
        """Rule out, in place, the tokens that may not be written."""
        return logits.index_fill_(-1, self.forbidden, -torch.inf)

    def _host(self, logits: Tensor, diagnostics: dict[str, Tensor]) -> Prediction:
        """Bring logits and the monitors' inputs to the host in one transfer."""
        hidden = diagnostics["hidden"][:, -1]
        nothing = hidden.new_zeros(len(hidden))
        coherence = diagnostics["coherence"][:, -1] if "coherence" in diagnostics else nothing
        deep = diagnostics["deep"][:, -1] if "deep" in diagnostics else nothing
        newest = torch.tensor([row.ids[-1] for row in self.rows], device=self.device)
        parts = coherence[:, None], deep[:, None], hidden, self.table[newest]
        numbers = torch.cat(parts, dim=1).float().cpu().numpy()
        middle, L = 2 + hidden.shape[1], self.model.config.num_layers
        return Prediction(
            self._allowed(logits.float()),
            numbers[:, middle:],
            numbers[:, 0].tolist() if "coherence" in diagnostics else None,
            [L if x else 1 for x in numbers[:, 1]] if "deep" in diagnostics else None,
            numbers[:, 2:middle],
        )


class _Kept(NamedTuple):
    """What is read again of a row: stored texts, ids given to it and its own, and those dropped."""

    memories: tuple[tuple[tuple[int, ...], float], ...]
    dropped: tuple[int, ...]
    dropped_given: int
    given: tuple[int, ...]
    own: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens that the model reads."""
        return len(self.given) + len(self.own)


def _spread(values: Any, rows: Sequence[int], count: int) -> Any:
    """Values of some of `count` rows, at their places; those of the others are 0."""
    spread = np.zeros((count, *np.shape(values)[1:]), np.asarray(values).dtype)
    spread[rows] = values
    return spread if isinstance(values, np.ndarray) else spread.tolist()


def _bytes(values: Tensor) -> bytes:
    return values.float().cpu().numpy().tobytes()


def opening_limit(max_seq_len: int) -> int:
    """Tokens of <|bos|> and a system message that stay when a row is cut, at most."""
    return max_seq_len // 4


def num_given(prompt: Sequence[int], tokenizer: ResoTokenizer) -> int:
    """Number of a prompt's first ids that are given: all, but for the beginning of a reply.

    What follows the last <|assistant|> is the model's own, as if it had just written it.
    """
    if tokenizer.assistant_id not in prompt:
        return len(prompt)
    return len(prompt) - list(reversed(prompt)).index(tokenizer.assistant_id)


def _opening_size(ids: Sequence[int], tokenizer: ResoTokenizer, limit: int) -> int:
    """Number of first ids that stay when a row is cut: <|bos|>, and a system message after it.

    A system message is cut like other text where that would be more than `limit`.
    """
    if len(ids) > 1 and ids[1] == tokenizer.system_id and tokenizer.end_id in ids[:limit]:
        return ids.index(tokenizer.end_id) + 1
    return 1


def unwritable(tokenizer: ResoTokenizer, vocab_size: int) -> Tensor:
    """Turn openers, which only the chat template may write, and ids without a token."""
    t = tokenizer
    return torch.tensor([t.system_id, t.user_id, t.assistant_id, *range(t.vocab_size, vocab_size)])
