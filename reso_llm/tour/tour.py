"""A guided tour of a trained model: each stop measures one stage on real text, with and without.

Every stop has a number that may come out bad, and says so where it does: below VISIBLE bits per
byte an effect is called none.

Shapes: T tokens, D width.
"""

import copy
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from reso_llm.data.conversation import Message
from reso_llm.decoding.controllers import SRB, PhaseSlip
from reso_llm.generation.engine import Engine
from reso_llm.generation.results import GenerationResult
from reso_llm.session.session import Session
from reso_llm.tour.probes import (
    DIALOGUES,
    bits_per_byte,
    dialogue_ids,
    goal_vector,
    next_tokens,
    probability,
    read,
    repeated_share,
    warning_trace,
    without,
)
from run_core.terminal import mean, sparkline

VISIBLE = 0.005  # bits per byte
BAG = "the more you give, the more you have"
OPENING = "Hi! How are"
FACT, CUE, ANSWER = "My sister Olga lives in Oslo.", "My sister Olga lives in", " Oslo"
LATER = 100.0  # texts
OPENINGS = (
    "I think that",
    "The most important thing",
    "The cat and the dog and the cat and the dog and the cat and the dog and",
)
GREEDY_LENGTH, BUDGET = 96, 48  # tokens
SLIPPING = PhaseSlip(loop_patience=4)
"""The published triggers, at which a small model slips often, and that of loops."""


@dataclass(frozen=True)
class Stop:
    """What a stop found: lines to print, numbers, and values along tokens, named by labels."""

    lines: list[str]
    numbers: dict[str, float] = field(default_factory=dict)
    traces: dict[str, list[float]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)


def _primes(engine: Engine, _: int) -> Stop:
    t = engine.tokenizer
    ids = t.encode(BAG)
    product, own = t.bag(ids), t.encode_primes(BAG)
    found = t.factorise(product)
    digits = str(product)
    shown = digits if len(digits) <= 40 else f"{digits[:34]}... ({len(digits)} digits)"
    pairs = "  ".join(f"{t.decode([i])!r} {p}" for i, p in list(zip(ids, own, strict=True))[:4])
    exact = found == sorted(ids)
    return Stop(
        [
            f"{BAG!r}: {len(ids)} tokens, {pairs} ...",
            f"their product: {shown}",
            f"its factors are the same {len(found)} tokens: {'yes' if exact else 'NO'}; "
            "their order is not in it",
        ],
        {"exact": float(exact)},
    )


def _bindings(engine: Engine, _: int) -> Stop:
    t, plain = engine.tokenizer, without(engine.model, "prsc")
    ids = _chat_ids(engine, OPENING)
    lines = [f"next after {OPENING!r}:"]
    for name, model in (("with", engine.model), ("without", plain)):
        best = "  ".join(f"{t.decode([i])!r} {p:.2f}" for i, p in next_tokens(model, ids, 4))
        lines.append(f"  {name:8}{best}")
    return _worth(engine, "prsc", lines)


def _synchrony(engine: Engine, seed: int) -> Stop:
    ids = _long_ids(engine)
    shuffled = ids[1:]
    random.Random(seed).shuffle(shuffled)
    real = read(engine.model, ids).coherence
    mixed = read(engine.model, [ids[0], *shuffled]).coherence
    lines = [
        f"order along {len(ids)} tokens of talk  {sparkline(real, 1.0, 32)}",
        f"mean {mean(real):.3f}; the same tokens shuffled {mean(mixed):.3f} "
        "(where equal, order is not in it)",
    ]
    stop = _worth(engine, "kuramoto", lines)
    return replace(stop, traces={"talk": real, "shuffled": mixed})


def _depth(engine: Engine, _: int) -> Stop:
    if engine.config.num_layers == 1:
        return Stop(["a model of one layer has nothing to skip"])
    t, uncut = engine.tokenizer, without(engine.model, "coherence_gate")
    ids = dialogue_ids(t, DIALOGUES[0])[0][: engine.config.max_seq_len]
    used, allowed = read(engine.model, ids).layers_used, read(uncut, ids).layers_used
    pieces = [t.decode([i]).strip() for i in ids]
    cost = bits_per_byte(engine.model, t) - bits_per_byte(uncut, t)
    adaptive = "" if min(used) < max(used) else "; all tokens the same: nothing adaptive here"
    return Stop(
        [
            " ".join(f"{p}:{n}" for p, n in zip(pieces, used, strict=True) if p)[:220],
            f"mean {mean(used):.2f} of {engine.config.num_layers} layers, from {min(used)} to "
            f"{max(used)}{adaptive}",
            f"without its cut {mean(allowed):.2f} layers, and {cost:+.4f} bits per byte: what the "
            "cut costs",
        ],
        {"coherence_gate": -cost, "num_layers": engine.config.num_layers},
        {"layers": [float(n) for n in used]},
        pieces,
    )


def _goals(engine: Engine, _: int) -> Stop:
    model, t = engine.model, engine.tokenizer
    own = [goal_vector(model, t, d.topic) for d in DIALOGUES]
    score = {
        "own goal": bits_per_byte(model, t, own, replies_only=True),
        "no goal": bits_per_byte(model, t, replies_only=True),
        "another's goal": bits_per_byte(model, t, own[1:] + own[:1], replies_only=True),
    }
    pays = score["no goal"] - score["own goal"]
    aims = score["another's goal"] - score["own goal"]
    return Stop(
        [
            f"bits per byte of {len(DIALOGUES)} replies, the goal being what each is about, such "
            f"as {DIALOGUES[0].topic!r}:",
            "  " + "   ".join(f"{name} {bits:.3f}" for name, bits in score.items()),
            f"against none it {_verdict(pays)}; against another's it {_verdict(aims)}",
        ],
        {"goal": pays, "goal, another's": aims},
    )


def _memory(engine: Engine, _: int) -> Stop:
    model, t = copy.deepcopy(engine.model), engine.tokenizer
    model.session = Session(model.config)
    p = {"before": probability(model, t, CUE, ANSWER)}
    talk = bits_per_byte(model, t, recollect=True)
    model.update_memory(FACT)
    p["after"] = probability(model, t, CUE, ANSWER)
    cost = bits_per_byte(model, t, recollect=True) - talk
    model.session.advance(LATER)
    p[f"{LATER:.0f} texts later"] = probability(model, t, CUE, ANSWER)
    found = model.recall("Olga") if model.config.temporal_smf.episodic_tagging else ()
    told = f"{found[0].age:.0f} texts ago: {found[0].moment.text!r}" if found else "nothing"
    return Stop(
        [
            f"told: {FACT!r}; p({ANSWER!r} after {CUE!r}):",
            "  " + "   ".join(f"{name} {value:.3g}" for name, value in p.items()),
            f"other talk costs {cost:+.4f} bits per byte for it",
            f"recall('Olga'): {told}",
        ],
        p,
    )


def _field(engine: Engine, _: int) -> Stop:
    return _worth(engine, "temporal_smf", [])


def _stability(engine: Engine, seed: int) -> Stop:
    clean = _long_ids(engine)
    half, draw = len(clean) // 2, random.Random(seed)
    loop, size = clean[max(1, half - 6) : half], len(clean) - half
    first = 5  # behind the control tokens
    damaged = [draw.randrange(first, engine.tokenizer.vocab_size) for _ in range(size)]
    texts = {"clean": clean, "looping": clean[:half] + (loop * size)[:size],
             "random tokens": clean[:half] + damaged}  # fmt: skip
    traces, lines, top = {}, [], {}
    for name, ids in texts.items():
        traces[name], label = warning_trace(engine.model, ids)
        top[name] = max(traces[name][half:])
        lines.append(
            f"{name:14}{sparkline(traces[name], 1.0, 32)}  highest {top[name]:.2f} {label}"
        )
    alarms = sum(w > 0.5 for w in traces["clean"])
    lines.append(f"damage begins half-way; above .5 is a warning: {alarms} on the clean text")
    return Stop(lines, top, traces)


def _control(engine: Engine, seed: int) -> Stop:
    plain, slipped = _greedy(engine, seed), _greedy(engine, seed, SLIPPING)
    budgeted = _greedy(engine, seed, SRB(max_tokens=BUDGET))
    repeated = [repeated_share(r.token_ids) for r in plain]
    worst = max(range(len(plain)), key=lambda i: (max(0.0, repeated[i]), len(plain[i].text)))
    before, after = mean(repeated), mean([repeated_share(r.token_ids) for r in slipped])
    slips = [e.step for e in slipped[worst].events]
    causes = Counter(e.cause for r in slipped for e in r.events)
    ends = Counter(r.stop_reason for r in budgeted)
    deepened = sum(e.cause == "deepen" for r in budgeted for e in r.events)
    lines = [
        f"of {len(plain)} greedy texts {before:.0%} is repeated, with slips {after:.0%}",
        f"causes of the slips: {_counted(causes) or 'none, so nothing changed'}",
        "the most repetitive text (of equals, the longest) ends",
        f"  greedy      ...{' '.join(plain[worst].text.split())[-58:]}",
        f"  with slips  ...{' '.join(slipped[worst].text.split())[-58:]}",
        f"ends under SRB with a budget of {BUDGET}: {_counted(ends)}; {deepened} tokens deepened",
    ]
    traces = {"greedy": plain[worst], "with slips": slipped[worst]}
    entropies = {name: list(r.entropy_trace) for name, r in traces.items()}
    marks = {"slips": [float(s) for s in slips]}
    return Stop(lines, {"greedy": before, "with slips": after}, entropies | marks)


class Station(NamedTuple):
    """A stop of the tour: the stage it needs ("" for none), what measures it, what to look for."""

    title: str
    stage: str
    measure: Callable[[Engine, int], Stop]
    about: str


STATIONS = {
    "primes": Station(
        "Tokens are primes",
        "",
        _primes,
        "Token i is the i-th prime: a bag of tokens is one integer, and factors say what is in it.",
    ),
    "bindings": Station(
        "Binding memory",
        "prsc",
        _bindings,
        "Counts of the training text, addressed by primes, speak for what follows the last tokens.",
    ),
    "synchrony": Station(
        "Kuramoto synchronisation",
        "kuramoto",
        _synchrony,
        "Tokens carry phases; the order parameter says how far those of the past agree (0 to 1).",
    ),
    "depth": Station(
        "Coherence gate",
        "coherence_gate",
        _depth,
        "Each token runs as many layers as the gate leaves it.",
    ),
    "goals": Station(
        "Agency: goals",
        "agency",
        _goals,
        "A goal shifts what is said; the right one should make the reply more probable.",
    ),
    "field": Station(
        "Sedenion field",
        "temporal_smf",
        _field,
        "The sedenion field carries what attention may no longer see; here, within the context.",
    ),
    "memory": Station(
        "Episodic memory",
        "temporal_smf",
        _memory,
        "What was told once changes what is said later, without being in the context.",
    ),
    "stability": Station(
        "Stability monitor",
        "stability",
        _stability,
        "The monitor should be calm on clean text, and warn where it loops or falls apart.",
    ),
    "control": Station(
        "Decoding controllers",
        "",
        _control,
        "A slip heats greedy text where its entropy jumps or it runs in circles; SRB ends it.",
    ),
}


def visit(engine: Engine, name: str, seed: int) -> Stop:
    """Measure one of STATIONS; where the model has no such stage, the stop says so."""
    stage = STATIONS[name].stage
    if stage and not getattr(engine.config, stage).enabled:
        return Stop([f"this model was trained without it ({stage}.enabled=false)"])
    return STATIONS[name].measure(engine, seed)


def _worth(engine: Engine, stage: str, lines: list[str]) -> Stop:
    """Bits per byte that the dialogues cost without the stage, beyond what they cost with it."""
    present = bits_per_byte(engine.model, engine.tokenizer)
    absent = bits_per_byte(without(engine.model, stage), engine.tokenizer)
    gain = absent - present
    told = f"talk at {present:.3f} bits per byte, {absent:.3f} without: it {_verdict(gain)}"
    return Stop([*lines, told], {stage: gain})


def _verdict(gain: float) -> str:
    if abs(gain) < VISIBLE:
        return f"does nothing visible here ({gain:+.4f})"
    return f"{'helps' if gain > 0 else 'HURTS'} ({gain:+.3f})"


def _chat_ids(engine: Engine, text: str) -> list[int]:
    t = engine.tokenizer
    return [t.bos_id, t.user_id, *t.encode(text)][-engine.config.max_seq_len :]


def _long_ids(engine: Engine) -> list[int]:
    """All dialogues as one conversation, as much of it as the context holds."""
    turns = [
        turn for d in DIALOGUES for turn in (("user", d.question), ("assistant", d.reply))
    ]  # fmt: skip
    return engine.tokenizer.encode_conversation(turns)[0][: engine.config.max_seq_len]


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in names.most_common())


def _greedy(engine: Engine, seed: int, *controllers: SRB | PhaseSlip) -> list[GenerationResult]:
    prompts = [*([Message("user", d.question)] for d in DIALOGUES), *OPENINGS]
    return engine.generate_batch(
        prompts, GREEDY_LENGTH, temperature=0.0, seed=seed, controllers=controllers
    )
