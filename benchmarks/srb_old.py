"""Where SRB stops a reply, against other places to stop, in tokens, time and outside quality.

python -m benchmarks.srb --checkpoint RUN --data HELDOUT.jsonl --scorer DIR [--json OUT]

Every arm answers the same prompts with the same sampler and seeds. SRB without deepening draws
what the static run draws, so its reply is a prefix of the static one (checked in every run), and
any other place to stop is a cut of the static reply too:

    static     where the model ended, or the cap
    srb        where the rule fired: E <= θ_H, |ΔE| <= θ_Δ and C+ >= θ_C for τ steps
    random     the lengths of srb, dealt to replies by chance: the same lengths, the same tokens
    elsewhere  the same replies cut as in srb, each at the length of another
    fixed      all cut at one length L, the mean tokens being srb's
    end_rule   before the first token at which p(<|end|>) >= a threshold
    deepened   SRB with deepening, a text of its own; its budget counts what deepening reads

A cut text has other mean nats by its length alone: only arms which keep as many tokens say whether
the rule's places are better than chance. random also cuts what would have ended by itself, and
mixes languages anew; elsewhere cuts the same replies as srb, so it is the fair one. Both are means
over 200 deals. `kept` and `rest` are nats per byte of what is kept and of what is cut off, `end`
the nats of ending the turn there: by this model without control (own) and by a causal language
model from DIR (outside). A token that straddles a cut counts in proportion to its bytes, and the
end is read at the last of the scorer's token borders before the cut.

The first half of the prompts calibrates, the other half is reported. For each of 27 triples
(τ, θ_Δ and θ_C at quantiles of the signals), θ_H is the least at which a target share of the
static replies exits; of the triples, the one with the lowest own `end` at its exits against all
places of the same replies. The outside scorer sees nothing of this. Intervals are 95 % bootstrap
percentiles over prompts, paired. Times are `generation_time_ms`, prompt included, arms in turn,
`metrics=False`: the static run measures nothing, SRB what it needs. A deepening is charged
candidates x horizon tokens.

Source: SRB derivation notes, section 4. Rows go to results/srb.jsonl.
"""

import argparse
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.heldout import save, shown
from reso_llm.decoding.controllers import SRB
from reso_llm.hardware import keep_freed_memory
from reso_llm.inference import ResoLLMInference
from reso_llm.results import GenerationResult
from reso_llm.sources import read_documents

SAMPLER = {"temperature": 0.8, "top_p": 0.95}
CANDIDATES, HORIZON = 4, 4  # of deepening
PATIENCE, QUANTILES = (2, 4, 8), (0.25, 0.5, 0.75)
DEALS, DRAWS, SCORER_BATCH = 200, 2000, 4
FINISHED = re.compile(r"[.!?…。！？][\"'»”)\]]*$")
SETTLED = ("settled_nats", "settled_delta_nats", "settled_coherence", "patience")
OTHERS = ("random", "elsewhere", "fixed", "end_rule", "static", "deepened")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Size of a study: a target share of exits, new tokens at most, seeds per prompt, prompts."""

    target: float = 0.5
    max_length: int = 96
    seeds: int = 2
    prompts: int | None = None


class Scores(NamedTuple):
    """A scorer on a reply of n tokens: nats (n+1,) of its first k, and of ending after them."""

    text: np.ndarray
    end: np.ndarray


class Reply(NamedTuple):
    """One static or deepened reply. breaks (n+1,) are the characters its first k tokens spell."""

    prompt: int
    question: str
    result: GenerationResult
    breaks: np.ndarray


Measures = Mapping[str, np.ndarray]
"""Each measure of a reply cut after k tokens, (n+1,2): numerator and denominator of a mean."""
Outside = Callable[[Sequence[Reply]], list[Scores]]


# --- replies


def questions(spec: str, engine: ResoLLMInference, protocol: Protocol) -> list[str]:
    """The first user turns of conversations that leave room for a whole reply, each once."""
    room = engine.config.max_seq_len - protocol.max_length
    turns = (
        next((m.content for m in document.messages if m.role == "user"), "")
        for document in read_documents(spec)
    )
    found = [t for t in dict.fromkeys(turns) if t]
    return [t for t in found if len(engine.prompt_ids([("user", t)])) <= room][: protocol.prompts]


def replies(
    engine: ResoLLMInference,
    asked: Sequence[tuple[int, str]],
    arms: Mapping[str, Sequence[SRB]],
    protocol: Protocol,
    metrics: bool = False,
) -> dict[str, list[Reply]]:
    """Every arm's reply to every numbered prompt at every seed; who is first goes round."""
    found: dict[str, list[Reply]] = {name: [] for name in arms}
    turns = itertools.product(asked, range(protocol.seeds))
    for turn, ((index, question), seed) in enumerate(turns):
        first = turn % len(arms)
        for name in [*arms][first:] + [*arms][:first]:
            result = engine.generate(
                [("user", question)], protocol.max_length, seed=1000 * index + seed,
                controllers=arms[name], metrics=metrics, **SAMPLER,
            )  # fmt: skip
            found[name].append(made_reply(engine, index, question, result))
    return found


def made_reply(
    engine: ResoLLMInference, index: int, question: str, result: GenerationResult
) -> Reply:
    ids = result.token_ids
    parts = [engine.tokenizer.decode(ids[:k]) for k in range(len(ids) + 1)]
    breaks = [_common(part, result.text) for part in parts]
    return Reply(index, question, result, np.array(breaks))


def _common(a: str, b: str) -> int:
    """Characters that two texts begin with; half a character at the end is not among them."""
    size = min(len(a), len(b))
    return next((i for i in range(size) if a[i] != b[i]), size)


# --- the rule on known signals


def signals(reply: Reply) -> np.ndarray:
    """E, |ΔE| and C+ of each step, (T,3)."""
    trace = reply.result.signals_trace
    return np.array([(s.ema_nats, abs(s.delta_ema_nats), s.coherence) for s in trace])


def exit_after(trace: np.ndarray, options: SRB) -> int:
    """Tokens (T,3) that SRB lets through: up to the one after the first τ settled steps, or T."""
    needed = needed_nats(trace, options)
    fired = np.flatnonzero(needed <= options.settled_nats)
    return int(fired[0]) + 1 if len(fired) else len(trace)


def exit_share(traces: Sequence[np.ndarray], options: SRB) -> float:
    """Share of the replies that the rule ends before the model, or the cap, does."""
    return float(np.mean([exit_after(t, options) < len(t) for t in traces]))


def needed_nats(trace: np.ndarray, options: SRB) -> np.ndarray:
    """The least θ_H at which each step (T,) ends τ settled ones; inf where none does."""
    ema, change, coherence = trace.T
    steady = change <= options.settled_delta_nats
    held = np.where(steady & (coherence >= options.settled_coherence), ema, math.inf)
    held = np.concatenate([np.full(int(options.patience) - 1, math.inf), held])
    return np.lib.stride_tricks.sliding_window_view(held, int(options.patience)).max(-1)


def calibrated(traces: Sequence[np.ndarray], ends: Sequence[np.ndarray], target: float) -> SRB:
    """The rule that exits in a target share of the replies where ending costs fewest nats.

    ends[i] (T_i + 1,) are the nats of ending reply i after k tokens. Raises ValueError where no
    triple of thresholds reaches the target.
    """
    steps = np.concatenate(traces)
    found = []
    for patience, still, near in itertools.product(PATIENCE, QUANTILES, QUANTILES):
        triple = {
            "patience": patience,
            "settled_delta_nats": _rounded(np.nanquantile(steps[:, 1], still)),
            "settled_coherence": min(_rounded(np.nanquantile(steps[:, 2], near)), 1.0),
            "max_tokens": math.inf,
            "candidates": 0,
        }
        least = sorted(needed_nats(t, SRB(**triple))[:-1].min(initial=math.inf) for t in traces)
        nats = least[math.ceil(target * len(least)) - 1]
        if nats < math.inf:
            rule = SRB(settled_nats=math.ceil(nats * 1000) / 1000, **triple)
            found.append((_advantage(rule, traces, ends), rule))
    if not found:
        raise ValueError(f"no thresholds make {target:.0%} of these replies exit: ask for less")
    return max(found, key=lambda pair: pair[0])[1]


def _advantage(rule: SRB, traces: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> float:
    """Nats by which ending at the exits is cheaper than anywhere in the same replies, mean."""
    stops = [exit_after(t, rule) for t in traces]
    cut = [(e, k) for e, k, t in zip(ends, stops, traces, strict=True) if k < len(t)]
    return float(np.mean([e[1:].mean() - e[k] for e, k in cut])) if cut else -math.inf


def _rounded(value: float) -> float:
    return round(float(value), 3)


def deepening(rule: SRB, traces: Sequence[np.ndarray], protocol: Protocol) -> SRB:
    """The rule with deepening at about 5 % of steps, and twice the cap as its budget."""
    steps = np.concatenate(traces)
    nats = _rounded(np.median(steps[:, 0]))
    rises = np.concatenate([np.diff(t[:, 2], prepend=math.nan) for t in traces])
    high = rises[(steps[:, 0] >= nats) & ~np.isnan(rises)]
    rise = max(0.0, _rounded(np.quantile(high, 0.9)))
    changed = {"deepen_nats": nats, "deepen_coherence_rise": rise, "candidates": CANDIDATES,
               "horizon": HORIZON,
               "max_tokens": 2 * protocol.max_length}  # fmt: skip
    return SRB(**{k: v for k, v in asdict(rule).items() if k != "name"} | changed)


# --- scorers


@torch.inference_mode()
def own_scores(engine: ResoLLMInference, reply: Reply) -> Scores:
    """This model without control, at temperature 1."""
    prompt, ids = engine.prompt_ids([("user", reply.question)]), reply.result.token_ids
    log_p = engine.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    log_p = log_p[len(prompt) - 1 :].double()  # (n+1,V), of what follows k tokens
    drawn = log_p[:-1].gather(1, torch.tensor(ids)[:, None])[:, 0]
    drawn = torch.where(torch.tensor(ids) == engine.tokenizer.end_id, 0.0, drawn)
    text = np.concatenate([[0.0], -np.cumsum(drawn.numpy())])
    return Scores(text, -log_p[:, engine.tokenizer.end_id].numpy())


def load_scorer(directory: str) -> Outside:
    """A causal language model of Hugging Face's format, asked as its chat template says.

    It reads a reply once, however often it is asked.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    known: dict[tuple, Scores] = {}

    def scores(found: Sequence[Reply]) -> list[Scores]:
        keys = [(reply.question, reply.result.token_ids) for reply in found]
        new = {key: r for key, r in zip(keys, found, strict=True) if key not in known}
        scored = outside_scores(model, tokenizer, list(new.values()))
        known.update(zip(new, scored, strict=True))
        return [known[key] for key in keys]

    return scores


def outside_scores(model, tokenizer, found: Sequence[Reply]) -> list[Scores]:
    """Scores of every reply by a Hugging Face model and its fast tokenizer, texts of like length
    together."""
    texts = [_encoded(tokenizer, reply) for reply in found]
    order = sorted(range(len(found)), key=lambda i: len(texts[i][0] + texts[i][1]))
    scores: dict[int, Scores] = {}
    for first in range(0, len(order), SCORER_BATCH):
        some = order[first : first + SCORER_BATCH]
        for i, nats in zip(some, _nats(model, tokenizer, [texts[i] for i in some]), strict=True):
            scores[i] = aligned(found[i], texts[i][2], *nats)
    return [scores[i] for i in range(len(found))]


def _encoded(tokenizer, reply: Reply) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Ids of the question and of the reply, and the characters of each of the latter."""
    question = reply.question + "\n\n"
    if tokenizer.chat_template is not None:
        turn = [{"role": "user", "content": reply.question}]
        question = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    coded = tokenizer(reply.result.text, add_special_tokens=False, return_offsets_mapping=True)
    head = tokenizer(question, add_special_tokens=False).input_ids or [tokenizer.eos_token_id]
    return list(head), list(coded.input_ids), list(coded.offset_mapping)


@torch.inference_mode()
def _nats(model, tokenizer, texts: Sequence[tuple]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nats of each reply token (m,), and of the end after the first 0..m of them (m+1,)."""
    rows = [torch.tensor(head + tail) for head, tail, _ in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    logits = model(ids).logits  # causal, so that it does not see the padding on the right
    found = []
    for row, (head, tail, _) in zip(logits, texts, strict=True):
        log_p = row[len(head) - 1 : len(head) + len(tail)].log_softmax(-1)
        said = log_p[:-1].gather(1, torch.tensor(tail, dtype=torch.long)[:, None])[:, 0]
        found.append((-said.double().numpy(), -log_p[:, tokenizer.eos_token_id].double().numpy()))
    return found


def aligned(
    reply: Reply, spans: Sequence[tuple[int, int]], nats: np.ndarray, ends: np.ndarray
) -> Scores:
    """Scores by the scorer's tokens, which span characters, at the breaks of ours."""
    size = len(reply.result.text)
    sizes = _byte_sizes(reply.result.text)
    density, end = np.zeros(size), np.full(size + 1, ends[0])
    for (start, stop), cost, after in zip(spans, nats, ends[1:], strict=True):
        weights = np.diff(sizes[start : stop + 1])
        if stop > start:
            density[start:stop] += cost * weights / weights.sum()
        end[stop:] = after
    total = np.concatenate([[0.0], np.cumsum(density)])
    return Scores(total[reply.breaks], end[reply.breaks])


def _byte_sizes(text: str) -> np.ndarray:
    """UTF-8 bytes of the first c characters, (C+1,)."""
    return np.cumsum([0, *(len(c.encode()) for c in text)])


# --- measures


def measured(reply: Reply, own: Scores, outside: Scores | None) -> Measures:
    """All measures of a reply at every cut."""
    result, text = reply.result, reply.result.text
    n = len(result.token_ids)
    k, one = np.arange(n + 1), np.ones(n + 1)
    size = _byte_sizes(text)[reply.breaks]
    spoken = n - (result.stop_reason == "end")  # the end is a token without text
    at = np.minimum(k, spoken)
    whole = (at == spoken) & (spoken < n)
    heads = [text[:c] for c in reply.breaks]
    finished = [bool(FINISHED.search(head.rstrip())) for head in heads] | whole
    inside = [h[-1:].isalnum() and text[len(h) : len(h) + 1].isalnum() for h in heads]
    words = result.token_ids[:spoken]
    table = {
        "tokens": (k, one), "saved": (n - k, n * one), "cut": (k < n, one),
        "finished": (finished, one), "mid_word": (inside, one),
        "rep4": (_repeats(words, 4)[at], np.maximum(at - 3, 0)),
        "distinct2": (np.maximum(at - 1, 0) - _repeats(words, 2)[at], np.maximum(at - 1, 0)),
    }  # fmt: skip
    for name, scores in (("own", own), ("outside", outside)):
        if scores is not None:
            table[f"{name}_kept"] = (scores.text, size)
            table[f"{name}_rest"] = (scores.text[-1] - scores.text, size[-1] - size)
            table[f"{name}_end"] = (scores.end[at], one)
    return {name: np.stack(pair, -1).astype(float) for name, pair in table.items()}


def _repeats(ids: Sequence[int], order: int) -> np.ndarray:
    """Runs of `order` tokens within the first k that came before, (n+1,)."""
    seen: set[tuple[int, ...]] = set()
    counts = [0] * min(order, len(ids) + 1)
    for stop in range(order, len(ids) + 1):
        gram = tuple(ids[stop - order : stop])
        counts.append(counts[-1] + (gram in seen))
        seen.add(gram)
    return np.array(counts)


def cut(tables: Sequence[Measures], stops: np.ndarray) -> dict[str, np.ndarray]:
    """Measures (N,2) of replies cut at stops (N,), or the mean over deals (R,N)."""
    deals = np.atleast_2d(stops)
    return {
        name: np.stack([t[name][deals[:, i]].mean(0) for i, t in enumerate(tables)])
        for name in tables[0]
    }


# --- other places to stop


def dealt(
    stops: np.ndarray, lengths: np.ndarray, rng: np.random.Generator, deals: int = DEALS
) -> np.ndarray:
    """Stops (N,) dealt anew (R,N), evenly over all deals in which none exceeds its length (N,).

    A chain of swaps that are made where both fit: symmetric, so all deals are equally likely.
    """
    stops, found = stops.copy(), []
    for deal in range(deals):
        for i, j in rng.integers(len(stops), size=((10 if deal else 100) * len(stops), 2)):
            if stops[i] <= lengths[j] and stops[j] <= lengths[i]:
                stops[i], stops[j] = stops[j], stops[i]
        found.append(stops.copy())
    return np.stack(found)


def fixed_stop(lengths: np.ndarray, mean: float) -> np.ndarray:
    """All cut at the one length whose mean tokens come nearest to `mean`."""
    cuts = [np.minimum(lengths, length) for length in range(1, lengths.max() + 1)]
    return min(cuts, key=lambda stops: abs(stops.mean() - mean))


def end_stops(ends: Sequence[np.ndarray], nats: float) -> np.ndarray:
    """Stops before the first token, but one, at which the end costs at most `nats`."""
    early = [np.flatnonzero(e[1:-1] <= nats) for e in ends]
    return np.array([x[0] + 1 if len(x) else len(e) - 1 for x, e in zip(early, ends, strict=True)])


def end_threshold(ends: Sequence[np.ndarray], mean: float) -> float:
    """The threshold in nats of `end_stops` whose mean tokens come nearest to `mean`."""
    values = np.quantile(np.concatenate([e[1:] for e in ends]), np.linspace(0, 1, 401))
    return float(min(values, key=lambda v: abs(end_stops(ends, v).mean() - mean)))


# --- the study


def study(
    engine: ResoLLMInference, asked: Sequence[str], protocol: Protocol, outside: Outside | None
) -> dict[str, Any]:
    """Calibrate on the first half of the prompts, measure on the other: one row."""
    half = len(asked) // 2
    numbered = list(enumerate(asked))
    past = replies(engine, numbered[:half], {"static": ()}, protocol, metrics=True)["static"]
    traces = [signals(reply) for reply in past]
    ends = [own_scores(engine, reply).end for reply in past]
    rule = calibrated(traces, ends, protocol.target)
    deep = deepening(rule, traces, protocol)
    stops = [exit_after(t, rule) for t in traces]
    threshold = end_threshold(ends, np.mean(stops))
    arms = {"static": (), "srb": (rule,), "deepened": (deep,)}
    found = replies(engine, numbered[half:], arms, protocol)
    tables = compared(engine, found, threshold, outside)
    prompts = np.array([reply.prompt for reply in found["static"]])
    return {
        "target": protocol.target, "max_length": protocol.max_length, "sampler": SAMPLER,
        "seeds": protocol.seeds, "prompts": {"calibration": half, "reported": len(asked) - half},
        "rule": _finite(rule), "deepen_rule": _finite(deep), "end_rule_p": math.exp(-threshold),
        "calibration_exits": exit_share(traces, rule),
        "default_exits": exit_share(traces, SRB()),
        "arms": {name: summary(table, prompts) for name, table in tables.items()},
        "srb_minus": {name: summary(tables["srb"], prompts, tables[name]) for name in OTHERS},
        "replies": [_compact(*three) for three in zip(*found.values(), strict=True)],
    }  # fmt: skip


def compared(
    engine: ResoLLMInference, found: Mapping[str, Sequence[Reply]], threshold: float,
    outside: Outside | None,
) -> dict[str, dict[str, np.ndarray]]:  # fmt: skip
    """Measures (N,2) of all arms. Raises RuntimeError where SRB is no prefix of static."""
    tables: dict[str, list[Measures]] = {}
    own = {}
    for name in ("static", "deepened"):  # all others are cuts of static
        own[name] = [own_scores(engine, reply) for reply in found[name]]
        scores = outside(found[name]) if outside else [None] * len(found[name])
        tables[name] = [measured(*x) for x in zip(found[name], own[name], scores, strict=True)]
    static, lengths = tables["static"], _lengths(found["static"])
    stops = _lengths(found["srb"])
    for reply, other in zip(found["static"], found["srb"], strict=True):
        ids = other.result.token_ids
        if reply.result.token_ids[: len(ids)] != ids:
            raise RuntimeError(f"seed {other.result.seed}: SRB drew what the static run did not")
    rng = np.random.default_rng(0)
    cuts = stops < lengths
    elsewhere = np.tile(stops, (DEALS, 1))
    if cuts.any():
        elsewhere[:, cuts] = dealt(stops[cuts], lengths[cuts], rng)
    arms = {
        "static": cut(static, lengths), "srb": cut(static, stops),
        "random": cut(static, dealt(stops, lengths, rng)), "elsewhere": cut(static, elsewhere),
        "fixed": cut(static, fixed_stop(lengths, stops.mean())),
        "end_rule": cut(static, end_stops([s.end for s in own["static"]], threshold)),
        "deepened": cut(tables["deepened"], _lengths(found["deepened"])),
    }  # fmt: skip
    del arms["deepened"]["mid_word"]  # what would have come next is not known
    for name, some in found.items():
        arms[name] |= real_run(some, lengths)
    return arms


def real_run(found: Sequence[Reply], lengths: np.ndarray) -> dict[str, np.ndarray]:
    """What only real runs have: time, exits, and tokens charged against the static lengths."""
    results = [reply.result for reply in found]
    exits = [r.stop_reason == "srb_settled" for r in results]
    spent = [r.tokens_generated + CANDIDATES * HORIZON * len(_deepenings(r)) for r in results]
    cuts = [r.stop_reason not in ("end", "length") for r in results]
    one = np.ones(len(results))
    pairs = {
        "exits": (exits, one), "cut": (cuts, one), "spent": (spent, one),
        "saved": (lengths - _lengths(found), lengths), "spent_saved": (lengths - spent, lengths),
        "ms": ([r.generation_time_ms for r in results], one),
    }  # fmt: skip
    return {name: np.stack(pair, -1).astype(float) for name, pair in pairs.items()}


def _deepenings(result: GenerationResult) -> list[int]:
    return [event.step for event in result.events if event.cause == "deepen"]


def _lengths(found: Sequence[Reply]) -> np.ndarray:
    return np.array([reply.result.tokens_generated for reply in found])


def _finite(rule: SRB) -> dict[str, Any]:
    return {k: v if v != math.inf else None for k, v in asdict(rule).items() if k != "name"}


def _compact(static: Reply, srb: Reply, deepened: Reply) -> list[Any]:
    """Seed, tokens and reason of the three arms, and how often the last deepened."""
    some = [(r.result.tokens_generated, r.result.stop_reason) for r in (static, srb, deepened)]
    return [static.result.seed, *itertools.chain(*some), len(_deepenings(deepened.result))]


def summary(
    table: Mapping[str, np.ndarray], prompts: np.ndarray,
    other: Mapping[str, np.ndarray] | None = None,
) -> dict[str, tuple[float, float, float] | None]:  # fmt: skip
    """Each measure's mean with its interval over prompts, or its difference from another arm's.

    None where there is nothing to measure, such as a rest where nothing is cut.
    """
    found = {}
    for name in sorted(table if other is None else table.keys() & other.keys()):
        ours = _by_prompt(table[name], prompts)
        theirs = None if other is None else _by_prompt(other[name], prompts)
        empty = any(sums is not None and not sums[:, 1].any() for sums in (ours, theirs))
        found[name] = None if empty else interval(ours, theirs)
    return found


def _by_prompt(pairs: np.ndarray, prompts: np.ndarray) -> Tensor:
    sums = [pairs[prompts == p].sum(0) for p in np.unique(prompts)]
    return torch.from_numpy(np.stack(sums))  # (P,2)


def interval(ours: Tensor, theirs: Tensor | None = None) -> tuple[float, float, float]:
    """Sums over counts (P,2), or the difference of two such means, and its paired 95 % interval.

    Draws without a count are left out.
    """
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(ours), (DRAWS, len(ours)), generator=generator)
    picks = torch.cat([torch.arange(len(ours))[None], picks])  # the value itself comes first
    means = _mean(ours[picks]) - (0 if theirs is None else _mean(theirs[picks]))
    edges = means[1:].nanquantile(torch.tensor([0.025, 0.975], dtype=means.dtype))
    return (means[0].item(), *edges.tolist())


def _mean(pairs: Tensor) -> Tensor:
    sums, counts = pairs.sum(1).unbind(-1)  # (R,)
    return torch.where(counts > 0, sums / counts, math.nan)


# --- the report

COLUMNS = {
    "exits": 2, "cut": 2, "tokens": 1, "saved": 3, "spent_saved": 3, "ms": 0, "finished": 3,
    "mid_word": 3, "rep4": 3, "distinct2": 3, "own_kept": 3, "own_rest": 3, "own_end": 2,
    "outside_kept": 3, "outside_rest": 3, "outside_end": 2,
}  # fmt: skip


def table(row: Mapping[str, Any]) -> str:
    """A row in markdown: the rule, the means of all arms, and srb minus each of the others."""
    columns = [c for c in COLUMNS if c in row["arms"]["srb"]]
    rule = ", ".join(f"{name} {row['rule'][name]:g}" for name in SETTLED)
    lines = [
        f"**target {row['target']:g}**: {row['prompts']['reported']} prompts, {row['seeds']} "
        f"seeds, cap {row['max_length']}. Rule: {rule}. Of the calibration half it ends "
        f"{row['calibration_exits']:.0%}, today's defaults {row['default_exits']:.0%}; end_rule "
        f"at p = {row['end_rule_p']:.3g}.",
    ]
    for title, arms in (("measure", row["arms"]), ("srb minus", row["srb_minus"])):
        lines += ["", f"| {title} | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
        for c in columns:
            values = [arm.get(c) for arm in arms.values()]
            cells = ["-" if v is None else shown(v, COLUMNS[c]) for v in values]
            lines.append(f"| {c} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a run directory; by default the shipped checkpoint")
    parser.add_argument("--data", required=True, help="held-out conversations")
    parser.add_argument("--scorer", help="directory of a causal language model for transformers")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5], help="shares of exits")
    parser.add_argument("--seeds", type=int, default=2, help="replies to each prompt")
    parser.add_argument("--prompts", type=int, help="at most; half of them calibrate")
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument(
        "--quick", action="store_true", help="8 prompts, 1 seed, 24 tokens, no record"
    )
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    engine = ResoLLMInference.from_pretrained(options.checkpoint)
    outside = load_scorer(options.scorer) if options.scorer else None
    rows = []
    for target in options.targets:
        size = {
            "max_length": options.max_length,
            "seeds": options.seeds,
            "prompts": options.prompts,
        }
        if options.quick:
            size = {"max_length": 24, "seeds": 1, "prompts": 8}
        protocol = Protocol(target=target, **size)
        asked = questions(options.data, engine, protocol)
        engine.generate([("user", asked[0])], 8, seed=0)  # warm up
        names = {"run": Path(options.checkpoint or "shipped").name,
                 "scorer": Path(options.scorer).name if options.scorer else None}  # fmt: skip
        rows.append(names | study(engine, asked, protocol, outside))
        print(table(rows[-1]), flush=True)
    if not options.quick:
        save("srb", rows, options.json)


if __name__ == "__main__":
    main()
