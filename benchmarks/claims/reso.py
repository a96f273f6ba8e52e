"""The claims of the Reso-LLM v2 README."""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.ablation_report import gain, groups
from benchmarks.claims import (
    HOLDS,
    NOT,
    Claim,
    Evidence,
    Finding,
    Interval,
    Row,
    above,
    below,
    combined,
    decided,
    shown,
    untested,
)
from reso_llm.config import ResoLLMConfig, small_config
from reso_llm.model import ResoLLMModel
from reso_llm.primes import first_primes
from reso_llm.tokenizer import create_default_tokenizer

README = "Reso-LLM v2 README"
ABLATION = "evaluate.py ablation shakespeare --steps 80"
STEPS = 80
OVERHEAD = 0.10  # "~10 % overhead during inference"


def brings(stage: str) -> Callable[[Evidence], Finding]:
    """Bits per byte that taking the stage out of the full stack costs, paired by seed."""

    def decide(evidence: Evidence) -> Finding:
        rows = evidence.rows("ablation", task="shakespeare", steps=STEPS)
        (group,) = groups(rows).values()
        found = gain(group, f"full - {stage}")
        cost = (-found.mean, -found.mean - found.half, -found.mean + found.half)
        return Finding(
            f"without it {shown(cost, 4)} bits/byte (tinyshakespeare, {STEPS} steps, "
            f"{len(group['full'])} paired seeds)",
            above(cost), ABLATION,
        )  # fmt: skip

    return decide


def overhead(evidence: Evidence) -> Finding:
    """Agency and PRSC: milliseconds of a decoding step of the full stack, with and without each."""
    full = statistics.median(
        r["decode_ms"] for r in evidence.rows("ablation", variant="full", steps=STEPS)
    )
    shares = {}
    for stage in ("agency", "prsc"):
        rows = evidence.rows("ablation", variant=f"full - {stage}", steps=STEPS)
        shares[stage] = full / statistics.median(r["decode_ms"] for r in rows) - 1
    words = ", ".join(f"{stage} {share:+.0%}" for stage, share in shares.items())
    return Finding(
        f"time of a decoding step: {words} (median of 3 runs of the torch path)",
        decided(sum(shares.values()) <= 2 * OVERHEAD), ABLATION,
    )  # fmt: skip


def better_model(evidence: Evidence) -> Finding:
    """The full stack against our control and GPT-2 at equal time, on both texts."""
    verdicts, words = [], []
    for task, seconds in (("shakespeare", 130), ("guanaco", 180)):
        bits = {}
        for model in ("full", "control"):
            rows = evidence.rows("quality", task=task, model=model)
            bits[model] = [r["bits_per_byte"] for r in rows if round(r["seconds"], -1) == seconds]
        means = {model: statistics.fmean(values) for model, values in bits.items()}
        verdicts.append(decided(max(bits["full"]) < min(bits["control"])))
        words.append(f"{task} {means['full']:.3f} against {means['control']:.3f}")
    return Finding(
        f"bits/byte at equal time, full stack against the same model without stages: "
        f"{'; '.join(words)}",
        combined(*verdicts), "python -m benchmarks.quality TASK --data FILE",
    )  # fmt: skip


def goals_steer(evidence: Evidence) -> Finding:
    """A goal pooled from the prompt, or from one half of a reply and scored on the other."""
    cases = {
        case: evidence.row("goals", measure="loss", case=case)["matching - none"]
        for case in ("whole reply", "first half, second scored", "prompt")
    }
    words = "; ".join(f"{case} {shown(values)}" for case, values in cases.items())
    return Finding(
        f"nats/token with a goal minus without, by what the goal was made of: {words}",
        combined(*(below(values) for values in cases.values())), "evaluate.py goals",
    )  # fmt: skip


def memory_helps(evidence: Evidence) -> Finding:
    row = evidence.row("memory")["gain_nats_per_token"]
    stored, control = row["age 0, stored"], row["age 0, control"]
    alone, other = row["field alone, stored"], row["field alone, control"]
    return Finding(
        f"a stored fact gains {shown(stored, 2)} nats/token, one that was not {shown(control, 2)}; "
        f"the sedenion field alone {shown(alone)} against {shown(other)}",
        combined(decided(stored[1] > control[2]), decided(alone[1] > other[2])),
        "evaluate.py memory",
    )  # fmt: skip


def forgets(evidence: Evidence) -> Finding:
    row = evidence.row("memory")["gain_nats_per_token"]
    ages = {k: v for k, v in row.items() if k.startswith("age ") and k.endswith(", stored")}
    gains = [values[0] for values in ages.values()]
    words = ", ".join(f"{k.removesuffix(', stored')}: {v[0]:.2f}" for k, v in ages.items())
    falls = all(a > b for a, b in itertools.pairwise(gains))
    return Finding(f"nats/token gained at {words}", decided(falls), "evaluate.py memory")


def beyond_window(evidence: Evidence) -> Finding:
    rows = [r for r in evidence.rows("recall", memory=True, tied=False, filler=32)
            if r.get("accuracy_forgetting") is not None]  # fmt: skip
    with_field = statistics.fmean(r["accuracy"] for r in rows)
    emptied = statistics.fmean(r["accuracy_forgetting"] for r in rows)
    return Finding(
        f"pairs told 32 tokens before a window of 8: {with_field:.0%} recalled, {emptied:.1%} with "
        f"the field emptied (chance {rows[0]['chance']:.1%})",
        decided(with_field > 2 * emptied), "python -m benchmarks.recall",
    )  # fmt: skip


def warns(evidence: Evidence) -> Finding:
    """Against the best baseline in every seed: 8 damaged tokens read, or 5 before an own loop."""
    rows = evidence.rows("stability")
    verdicts, words = [], []
    for damage, read in (("corrupt", 8), ("loop", 8), ("own loop", -5)):
        found = [_warning(row, damage, read) for row in rows]
        ours, best = found[0]
        words.append(f"{damage}, {read} tokens read: {shown(ours, 2)}, best baseline {best:.2f}")
        verdicts.append(decided(all(low > max(0.5, rival) for (_, low, _), rival in found)))
    return Finding(
        f"AUROC of the warning, {len(rows)} seeds, the first shown: {'; '.join(words)}",
        combined(*verdicts), "evaluate.py stability --data FILE",
    )  # fmt: skip


def _warning(row: Row, damage: str, read: int) -> tuple[Interval, float]:
    """AUROC of the warning with its interval, and of the best baseline."""
    scores = next(s for s in row[damage] if s["read"] == read)
    others = [s["auroc"][0] for name, s in scores.items()
              if isinstance(s, dict) and name != "warning"]  # fmt: skip
    return scores["warning"]["auroc"], max(others)


def chaotic(evidence: Evidence) -> Finding:
    """How much of clean text the classifier calls by a name other than unknown."""
    row = evidence.row("stability")
    clean = row["classes"]["clean"]
    unknown = clean.get("unknown", 0) / sum(clean.values())
    return Finding(
        f"the class is unknown on {unknown:.1%} of clean tokens: text shows no deterministic "
        "dynamics that an exponent could measure",
        decided(unknown < 0.5), "evaluate.py stability --data FILE",
    )  # fmt: skip


def lightweight(evidence: Evidence) -> Finding:
    """Tokens per second of the engine with all monitors against without measuring."""
    row = [r for r in evidence.rows("speed") if "full_unmeasured" in r["tokens_per_second"]][-1]
    rates = row["tokens_per_second"]
    cost = rates["full_unmeasured"] / rates["full"] - 1
    return Finding(f"all monitors together cost {cost:.0%} of the engine's speed",
                   decided(cost <= OVERHEAD), "python -m benchmarks.speed")  # fmt: skip


def share_state(evidence: Evidence) -> Finding:
    row = evidence.row("consensus", measure="memory", state="F 1")
    return Finding(
        f"at fidelity 1, what one agent was told costs another {shown(row['fact'])} nats/token "
        f"more than before, a fact that nobody was told {shown(row['control'])}",
        decided(row["fact"][2] < row["control"][1]), "python -m benchmarks.consensus",
    )  # fmt: skip


def coordinates(evidence: Evidence) -> Finding:
    rows = evidence.rows("consensus", measure="bits per byte", way="consensus")
    words = ", ".join(shown(r["minus_best_single"]) for r in rows)
    return Finding(
        f"bits/byte of consensus minus the best single agent, {len(rows)} teams: {words}",
        combined(*(below(r["minus_best_single"]) for r in rows)), "python -m benchmarks.consensus",
    )  # fmt: skip


def resonance_escapes(evidence: Evidence) -> Finding:
    row = evidence.row("phase_slip", protocol="strict", arm="stochastic resonance")
    return Finding(*_escapes(row), "evaluate.py phase-slip")


def _escapes(row: dict) -> tuple[str, str]:
    escaped = row["escaped"]
    return f"{shown(escaped, 2)} of greedy loops escaped", decided(escaped[1] > 0.5)


def gate_saves(evidence: Evidence) -> Finding:
    """Fewer layers at no more than 1 % of the best bits per byte; and does depth vary?"""
    rows = evidence.rows("gating")
    best = min(r["bits_per_byte"][0] for r in rows)
    cheap = min((r for r in rows if r["bits_per_byte"][0] <= 1.01 * best),
                key=lambda r: r["layers"][0])  # fmt: skip
    share = cheap["layers"][0] / cheap["num_layers"]
    return Finding(
        f"within 1 % of the best bits/byte it uses {shown(cheap['layers'], 2)} of "
        f"{cheap['num_layers']} layers (cut {cheap['skip_below']:g})",
        HOLDS if share < 0.9 else NOT, "evaluate.py gating --data FILE",
    )  # fmt: skip


def oracles(group: str) -> Callable[[Evidence], Finding]:
    """All rows of one group of the dynamics task."""

    def decide(evidence: Evidence) -> Finding:
        rows = [r for r in evidence.rows("dynamics", group=group) if r["holds"] is not None]
        right = sum(r["holds"] for r in rows)
        return Finding(f"{right} of {len(rows)} oracles within their tolerance",
                       decided(right == len(rows)), "evaluate.py dynamics")  # fmt: skip

    return decide


def factorises(evidence: Evidence) -> Finding:
    """Computed now: every token of the default tokenizer in one bag, multiplied and factorised."""
    tokenizer = create_default_tokenizer()
    ids = list(range(tokenizer.vocab_size))
    distinct = len(set(first_primes(tokenizer.vocab_size))) == len(ids)
    same = tokenizer.factorise(tokenizer.bag(ids)) == ids
    return Finding(f"the bag of all {len(ids):,} tokens factorises into them",
                   decided(distinct and same), "pytest tests/test_tokenizer.py")  # fmt: skip


def autograd(evidence: Evidence) -> Finding:
    """Computed now: gradients of one training loss of a small model with all stages."""
    config = replace(small_config(), dim=64, vocab_size=64, max_seq_len=32, num_layers=2)
    torch.manual_seed(0)
    model = ResoLLMModel(config)
    ids = torch.randint(64, (2, 33))
    model.loss(ids[:, :-1], ids[:, 1:], goal=torch.randn(2, 64)).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    got = [g for g in gradients if g is not None and g.isfinite().all()]
    return Finding(f"{len(got)} of {len(gradients)} parameters get a finite gradient",
                   decided(len(got) == len(gradients)), "pytest tests/test_model.py")  # fmt: skip


def off_by_default(evidence: Evidence) -> Finding:
    """Read from the configuration now."""
    config = ResoLLMConfig()
    enabled = {"entanglement": config.entanglement.enabled,
               "stochastic_resonance": config.stochastic_resonance.enabled}  # fmt: skip
    words = ", ".join(f"{name} {'on' if value else 'off'}" for name, value in enabled.items())
    return Finding(words, decided(not any(enabled.values())), "ResoLLMConfig()")


CLAIMS = (
    Claim("v2 is an improved language model", f"{README}, introduction", better_model),
    Claim("Agency layer: the model sets goals and tracks them; goals guide attention",
          f"{README}, what's new", goals_steer),
    Claim("PRSC: prime interference composes meaning", f"{README}, what's new", brings("prsc")),
    Claim("Temporal SMF: better long-term context", f"{README}, what's new", memory_helps),
    Claim("Temporal SMF: what attention cannot see is remembered", f"{README}, architecture",
          beyond_window),
    Claim("Temporal SMF: natural forgetting", f"{README}, what's new", forgets),
    Claim("Predictive stability warns early and prevents hallucination", f"{README}, what's new",
          warns),
    Claim("Lyapunov stability measures when generation becomes unstable", f"{README}, key concepts",
          chaotic),
    Claim("Multi-agent: models share state non-locally", f"{README}, what's new", share_state),
    Claim("Multi-agent coordination (consensus)", f"{README}, multi-agent", coordinates),
    Claim("Stochastic resonance escapes repetitive patterns", f"{README}, what's new",
          resonance_escapes),
    Claim("Prime token embedding", f"{README}, architecture", brings("prime_embedding")),
    Claim("Tokens map to primes, with unique factorisation", f"{README}, key concepts", factorises),
    Claim("Kuramoto synchronisation modulates attention", f"{README}, architecture",
          brings("kuramoto")),
    Claim("Phase oscillators synchronise", f"{README}, key concepts", oracles("kuramoto")),
    Claim("Golden-ratio-weighted resonant attention", f"{README}, architecture",
          brings("resonant_attention")),
    Claim("Coherence gating: adaptive computation", f"{README}, architecture", gate_saves),
    Claim("Sedenion memory is a 16-dimensional algebra", f"{README}, key concepts",
          oracles("sedenion")),
    Claim("Agency and PRSC add ~10 % overhead during inference", f"{README}, performance notes",
          overhead),
    Claim("Stability monitoring is lightweight", f"{README}, performance notes", lightweight),
    Claim("Entanglement and stochastic resonance are off by default",
          f"{README}, performance notes", off_by_default),
    Claim("Fully compatible with PyTorch autograd", f"{README}, training", autograd),
    Claim("Semantic axes of the memory mean truth, consciousness, beauty, ...",
          f"{README}, key concepts",
          untested("nothing in the definition ties an axis to its name, so no measurement could "
                   "come out against it")),
)  # fmt: skip
