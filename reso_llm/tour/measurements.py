"""Measurements of the tour on a trained model, stage by stage.

Every measurement gives a number that may come out badly, and says so: an effect below VISIBLE is
called none, a stage that costs bits is said to hurt.
"""

import copy
import random
from dataclasses import dataclass, field, replace

from reso_llm.generation.engine import Engine
from reso_llm.session.session import Session
from reso_llm.tour.probes import (
    DIALOGUES,
    bits_per_byte,
    dialogue_ids,
    goal_vector,
    next_tokens,
    probability,
    read,
    warning_trace,
    without,
)
from run_core.terminal import finite_mean, sparkline

VISIBLE = 0.005
"""The smallest effect that counts, in bits per byte."""
BAG = "the more you give, the more you have"
OPENING = "Hi! How are"
FACT, CUE, ANSWER = "My sister Olga lives in Oslo.", "My sister Olga lives in", " Oslo"
TEXTS_LATER = 100.0
"""Time between a fact and the later question about it, by the session's clock."""


@dataclass(frozen=True)
class Finding:
    """The finding of a station.

    lines: sentences to print. saved: bits per byte saved on unseen talk, by the name of what saves
    them. numbers: other values. traces: values along tokens. labels: the texts of those tokens.
    """

    lines: list[str]
    saved: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    traces: dict[str, list[float]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)


# --- tokens


def measure_primes(engine: Engine, seed: int) -> Finding:
    """Multiply the primes of a sentence's tokens, and factor the product."""
    tokenizer = engine.tokenizer
    ids, primes = tokenizer.encode(BAG), tokenizer.encode_primes(BAG)
    product = tokenizer.bag(ids)
    factors = tokenizer.factorise(product)
    is_exact = factors == sorted(ids)
    digits = str(product)
    if len(digits) > 40:
        digits = f"{digits[:34]}... ({len(digits)} digits)"
    first = list(zip(ids, primes, strict=True))[:4]
    pairs = "  ".join(f"{tokenizer.decode([i])!r} {prime}" for i, prime in first)
    lines = [
        f"{BAG!r}: {len(ids)} tokens, {pairs} ...",
        f"their product: {digits}",
        f"its factors are the same {len(factors)} tokens: {'yes' if is_exact else 'NO'}; "
        "their order is not in it",
    ]
    return Finding(lines, numbers={"exact": float(is_exact)})


# --- stages


def measure_saving(engine: Engine, stage: str) -> Finding:
    """Bits per byte that a stage saves on the dialogues: with it against without it."""
    present = bits_per_byte(engine.model, engine.tokenizer)
    absent = bits_per_byte(without(engine.model, stage), engine.tokenizer)
    saved = absent - present
    line = f"talk at {present:.3f} bits per byte, {absent:.3f} without: it {_verdict(saved)}"
    return Finding([line], {stage: saved})


def measure_bindings(engine: Engine, seed: int) -> Finding:
    """The next token with and without the binding memory, and what it saves."""
    tokenizer = engine.tokenizer
    ids = [tokenizer.bos_id, tokenizer.user_id, *tokenizer.encode(OPENING)]
    ids = ids[-engine.config.max_seq_len :]
    lines = [f"next after {OPENING!r}:"]
    for name, model in (("with", engine.model), ("without", without(engine.model, "prsc"))):
        best = next_tokens(model, ids, 4)
        words = "  ".join(f"{tokenizer.decode([i])!r} {p:.2f}" for i, p in best)
        lines.append(f"  {name:8}{words}")
    saving = measure_saving(engine, "prsc")
    return replace(saving, lines=[*lines, *saving.lines])


def measure_synchrony(engine: Engine, seed: int) -> Finding:
    """The order parameter along talk and the same tokens shuffled, and what the stage saves."""
    ids = _all_dialogues(engine)
    shuffled = ids[1:]
    random.Random(seed).shuffle(shuffled)
    talk = read(engine.model, ids).coherence
    mixed = read(engine.model, [ids[0], *shuffled]).coherence
    lines = [
        f"order along {len(ids)} tokens of talk  {sparkline(talk, 1.0, 32)}",
        f"mean {finite_mean(talk):.3f}; the same tokens shuffled {finite_mean(mixed):.3f} "
        "(equal: it does not depend on their order)",
    ]
    saving = measure_saving(engine, "kuramoto")
    traces = {"talk": talk, "shuffled": mixed}
    return replace(saving, lines=[*lines, *saving.lines], traces=traces)


def measure_depth(engine: Engine, seed: int) -> Finding:
    """Layers that each token of a dialogue runs, and the cost of skipping the others."""
    if engine.config.num_layers == 1:
        return Finding(["a model of one layer has nothing to skip"])
    tokenizer, uncut = engine.tokenizer, without(engine.model, "coherence_gate")
    ids = dialogue_ids(tokenizer, DIALOGUES[0])[0][: engine.config.max_seq_len]
    used = read(engine.model, ids).layers_used
    used_uncut = read(uncut, ids).layers_used
    pieces = [tokenizer.decode([i]).strip() for i in ids]
    cost = bits_per_byte(engine.model, tokenizer) - bits_per_byte(uncut, tokenizer)
    uniform = "; all tokens the same: nothing adaptive here" if min(used) == max(used) else ""
    lines = [
        " ".join(f"{p}:{n}" for p, n in zip(pieces, used, strict=True) if p)[:220],
        f"mean {finite_mean(used):.2f} of {engine.config.num_layers} layers, from {min(used)} to "
        f"{max(used)}{uniform}",
        f"with every token deep {finite_mean(used_uncut):.2f} layers; going shallow costs "
        f"{cost:+.4f} bits per byte",
    ]
    return Finding(
        lines,
        {"coherence_gate": -cost},
        {"num_layers": engine.config.num_layers},
        {"layers": [float(n) for n in used]},
        pieces,
    )


def measure_goals(engine: Engine, seed: int) -> Finding:
    """Bits per byte of replies towards their own goal, towards none, and towards another's."""
    model, tokenizer = engine.model, engine.tokenizer
    own = [goal_vector(model, tokenizer, dialogue.topic) for dialogue in DIALOGUES]
    others = own[1:] + own[:1]
    bits = {
        "own goal": bits_per_byte(model, tokenizer, own, replies_only=True),
        "no goal": bits_per_byte(model, tokenizer, replies_only=True),
        "another's goal": bits_per_byte(model, tokenizer, others, replies_only=True),
    }
    against_none = bits["no goal"] - bits["own goal"]
    against_others = bits["another's goal"] - bits["own goal"]
    lines = [
        f"bits per byte of {len(DIALOGUES)} replies, the goal being what each is about, such "
        f"as {DIALOGUES[0].topic!r}:",
        "  " + "   ".join(f"{name} {value:.3f}" for name, value in bits.items()),
        f"against none it {_verdict(against_none)}; against another's it "
        f"{_verdict(against_others)}",
    ]
    return Finding(
        lines, {"goal, against none": against_none, "goal, against another's": against_others}
    )


def measure_stability(engine: Engine, seed: int) -> Finding:
    """The monitor's warnings on clean talk, on a loop, and on random tokens."""
    clean = _all_dialogues(engine)
    half = len(clean) // 2
    texts = {
        "clean": clean,
        "looping": [*clean[:half], *_loop(clean[:half], len(clean) - half)],
        "random tokens": [*clean[:half], *_random_ids(engine, len(clean) - half, seed)],
    }
    traces, lines, highest = {}, [], {}
    for name, ids in texts.items():
        traces[name], label = warning_trace(engine.model, ids)
        highest[name] = max(traces[name][half:])
        line = sparkline(traces[name], 1.0, 32)
        lines.append(f"{name:14}{line}  highest {highest[name]:.2f} {label}")
    alarms = sum(warning > 0.5 for warning in traces["clean"])
    lines.append(f"damage begins half-way; above .5 is a warning: {alarms} on the clean text")
    return Finding(lines, numbers=highest, traces=traces)


# --- the session


def measure_memory(engine: Engine, seed: int) -> Finding:
    """The probability of a fact before it was told, after, and many texts later."""
    model, tokenizer = copy.deepcopy(engine.model), engine.tokenizer
    model.session = Session(model.config)
    p = {"before": probability(model, tokenizer, CUE, ANSWER)}
    bits_before = bits_per_byte(model, tokenizer, recollect=True)
    model.update_memory(FACT)
    p["after"] = probability(model, tokenizer, CUE, ANSWER)
    p_without = probability(without(model, "echo"), tokenizer, CUE, ANSWER)
    cost = bits_per_byte(model, tokenizer, recollect=True) - bits_before
    model.session.advance(TEXTS_LATER)
    p[f"{TEXTS_LATER:.0f} texts later"] = probability(model, tokenizer, CUE, ANSWER)
    recalled = "nothing"
    if model.config.temporal_smf.episodic_tagging and (memories := model.recall("Olga")):
        recalled = f"{memories[0].age:.0f} texts ago: {memories[0].moment.text!r}"
    lines = [
        f"told: {FACT!r}; p({ANSWER!r} after {CUE!r}):",
        "  " + "   ".join(f"{name} {value:.3g}" for name, value in p.items()),
        f"after, without the echo: {p_without:.3g}",
        f"other talk after it: {cost:+.4f} bits per byte (less is better)",
        f"recall('Olga'): {recalled}",
    ]
    return Finding(lines, numbers=p)


# --- parts of several stations


def _verdict(saved: float) -> str:
    """The end of a sentence about bits per byte saved."""
    if abs(saved) < VISIBLE:
        return f"does nothing visible here ({saved:+.4f})"
    return f"{'helps' if saved > 0 else 'HURTS'} ({saved:+.3f})"


def _all_dialogues(engine: Engine) -> list[int]:
    """Ids of all dialogues as one conversation, as much of it as the context holds."""
    turns = []
    for dialogue in DIALOGUES:
        turns += [("user", dialogue.question), ("assistant", dialogue.reply)]
    return engine.tokenizer.encode_conversation(turns)[0][: engine.config.max_seq_len]


def _loop(ids: list[int], size: int) -> list[int]:
    """`size` ids that repeat the last six."""
    period = ids[-6:]
    return [period[i % len(period)] for i in range(size)]


def _random_ids(engine: Engine, size: int, seed: int) -> list[int]:
    """`size` random ids that are no control tokens."""
    draw, tokenizer = random.Random(seed), engine.tokenizer
    first = len(tokenizer.special_tokens)
    return [draw.randrange(first, tokenizer.vocab_size) for _ in range(size)]
