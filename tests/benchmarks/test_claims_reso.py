"""The claims of the Reso-LLM v2 README turn when their rows, or the package, turn."""

import dataclasses

import pytest
import torch
from claim_rows import assert_turns, evidence_of, the_claim

from benchmarks.claims import HOLDS, MIXED, NOT, UNTESTED, reso, reso_now
from reso_llm.config import ResoLLMConfig, StochasticResonanceConfig, small_config, with_stage
from reso_llm.decoding.controllers import StochasticResonance
from reso_llm.generation.axes import AXES

STAGES = ("prsc", "agency", "prime_embedding", "kuramoto", "resonant_attention", "temporal_smf")
UP, DOWN, FLAT = [2.0, 1.0, 3.0], [-2.0, -3.0, -1.0], [0.1, -1.0, 1.0]


def ablation(seed, full, without):
    row = {"task": "shakespeare", "steps": 80, "seconds": 0.0, "seed": seed, "decode_ms": 1.0,
           "budget": "tokens", "paced": False, "device": "cpu"}  # fmt: skip
    rows = [row | {"variant": "full", "bits_per_byte": full, "decode_ms": 1.05}]
    return rows + [row | {"variant": f"full - {s}", "bits_per_byte": without} for s in STAGES]


def quality(task, model, seed, seconds, bits):
    return {"task": task, "variant": model, "seed": seed, "seconds": seconds, "bits_per_byte": bits}


def goals():
    about = {"checkpoint": "c", "seed": 0}
    losses = [about | {"measure": "loss", "case": case, "matching - none": DOWN}
              for case in ("whole reply", "first half, second scored", "prompt")]  # fmt: skip
    achieved = about | {"measure": "achieved", "case": "prompt",
                        "true": [0.7, 0.6, 0.8], "false": [0.1, 0.0, 0.2],
                        "auc": [0.9, 0.8, 1.0]}  # fmt: skip
    return [*losses, achieved, about | {"measure": "generated", "goal": "own", "rise": UP}]


def memory(seed):
    gains = {"field alone, stored": [2.0, 1.5, 2.5], "field alone, control": [0.1, 0.0, 0.2]}
    for age, gain in ((0, 5.0), (10, 4.0), (100, 1.0)):
        gains |= {f"age {age}, stored": [gain, gain - 0.1, gain + 0.1],
                  f"age {age}, control": [0.1, 0.0, 0.2]}  # fmt: skip
    hits = {f"{kind}, {way}": [0.9, 0.8, 1.0] for kind in ("question", "three words", "typo")
            for way in ("memory", "bm25 words")}  # fmt: skip
    return {"checkpoint": "c", "seed": seed, "num_stored": 1000, "gain_nats_per_token": gains,
            "recall_hit_at_1": hits}  # fmt: skip


def stability(seed):
    scores = {"warning": {"auroc": [0.9, 0.8, 1.0]}, "entropy": {"auroc": [0.6, 0.5, 0.7]}}
    return {"checkpoint": "c", "data": "d", "seed": seed, "kind": "warning",
            "corrupt": [{"read": 8, **scores}], "loop": [{"read": 8, **scores}],
            "own loop": [{"read": -5, **scores}],
            "false_alarms": {"share_of_windows": 0.1}}  # fmt: skip


def stability_classes(accuracy, gain):
    forms = {"kept": accuracy, "refitted": accuracy, "with exponent": accuracy + gain}
    return {"checkpoint": "c", "data": "d", "seed": 0, "kind": "classes"} | {
        form: {"balanced_accuracy": [a, a - 0.01, a + 0.01]} for form, a in forms.items()
    }


def slips(arm, escaped, rep4):
    return {"model": "m", "weights": "w", "seeds": [0], "protocol": "strict", "arm": arm,
            "values": {"escaped": escaped, "rep-4": rep4}}  # fmt: skip


def gating(share, bits, layers):
    return {"checkpoint": "c", "data": "d", "share": share, "bits_per_byte": [bits, 0, 9],
            "layers": [layers, layers - 0.1, layers + 0.1], "num_layers": 4}  # fmt: skip


GOOD = {
    "ablation": [row for s, full in enumerate((2.0, 2.1, 2.2))
                 for row in ablation(s, full, full + 0.2 + 0.01 * s)],
    "quality": [quality(task, model, seed, seconds, bits)
                for task, seconds in (("shakespeare", 130.0), ("guanaco", 180.0))
                for model, bits in (("full", 2.0), ("control", 2.2)) for seed in (0, 1)],
    "goals": goals(),
    "memory": [memory(0), memory(1)],
    "recall": [{"memory": True, "tied": False, "filler": 32, "accuracy": 1.0, "window": 8,
                "accuracy_forgetting": 0.1, "chance": 0.1}],
    "stability": [stability(0), stability(1), stability_classes(0.9, 0.1)],
    "consensus": [
        {"way": way, "agents": ["a", agent], "minus_best_single": DOWN}
        for way in ("consensus", "one text", "relay") for agent in "bc"
    ],
    "hearsay": [{"fidelity": 1.0, "seed": 0, "listener": name, "told": UP,
                 "untold": [0.1, 0.0, 0.2]} for name in "ab"],
    "phase_slip": [slips("greedy", 0.0, 0.7), slips("stochastic resonance", 0.8, 0.2)],
    "dynamics": [{"group": group, "name": name, "holds": holds}
                 for group in ("kuramoto", "lyapunov", "sedenion")
                 for name, holds in (("a", True), ("b", None))],
    "gating": [gating(0.0, 2.0, 4.0), gating(0.4, 2.01, 3.0), gating(0.8, 3.0, 1.0)],
    "tracking": [{"what": "brackets", "form": "full", "seed": seed} | {
        f"{name}, {pairs}, mean": value for name in ("clocks", "phases")
        for pairs, value in (("partners", 0.8), ("others", 0.5))} for seed in (0, 1)],
    "speed": [{"work": "decoding", "tokens_per_second": {"full_unmeasured": 104.0, "full": 100.0}}],
}  # fmt: skip
TOLD = ("memory", 1, "gain_nats_per_token")
LEFT_OUT = {stage: [("ablation", i * 7 + 1 + STAGES.index(stage), "bits_per_byte")
                    for i in range(3)] for stage in STAGES}  # fmt: skip


def without(stage, bits):
    return dict.fromkeys(LEFT_OUT[stage], bits)


def warning(damage, **at):
    name, value = at.popitem()
    return {("stability", 1, damage, 0, name, "auroc"): value}


TURNS = [
    ("A next-generation", {("quality", 1, "bits_per_byte"): 2.3}, MIXED),
    ("A next-generation", {("quality", i, "seconds"): 60.0 for i in (6, 7)}, UNTESTED),
    ("Model can set and track", {("goals", 3, "true"): [0.3, 0.1, 0.5]}, NOT),
    ("Agency attention", {("goals", 4, "rise"): FLAT}, NOT),
    ("Goal-guided", {("goals", 2, "matching - none"): UP}, MIXED),
    ("PRSC Semantic Layer", without("prsc", 1.0), NOT),
    ("PRSC Semantic Layer", {(*LEFT_OUT["prsc"][0],): 9.0}, NOT),
    ("Temporal SMF: better", {(*TOLD, "age 0, control"): [5.0, 4.0, 6.0]}, NOT),
    ("16D holographic memory, in a small", {("recall", 0, "accuracy"): 0.15}, NOT),
    ("16D holographic memory, in a small", {("recall", 0, "accuracy_forgetting"): None}, UNTESTED),
    ("16D holographic memory, in the ship", {(*TOLD, "field alone, stored"): FLAT}, NOT),
    ("Temporal Sedenion", without("temporal_smf", 1.0), NOT),
    ("Natural forgetting", {(*TOLD, "age 10, stored", 0): 5.5}, NOT),
    ("Episodic tagging", {("memory", 0, "recall_hit_at_1", "question, memory", 1): 0.4}, NOT),
    ("Early warning of", warning("own loop", warning=[0.6, 0.4, 0.8]), MIXED),
    ("Early warning: better", warning("corrupt", entropy=[0.85, 0.8, 0.9]), MIXED),
    ("The stability class", {("stability", 2, "kept", "balanced_accuracy"): [0.8, 0.7, 0.9]},
     NOT),
    ("Chaos theory", {("stability", 2, "with exponent", "balanced_accuracy"): [0.9, 0.8, 1.0]},
     NOT),
    ("Multiple models", {("hearsay", 0, "told"): FLAT}, MIXED),
    ('coordination_strategy="consensus"', {("consensus", 0, "minus_best_single"): FLAT}, MIXED),
    ('coordination_strategy "parallel"', {("consensus", i, "minus_best_single"): UP
                                          for i in (2, 3)}, NOT),
    ('coordination_strategy "sequential"', {("consensus", i, "minus_best_single"): FLAT
                                            for i in (4, 5)}, NOT),
    ("Stochastic Resonance: escape", {("phase_slip", 1, "values", "escaped"): 0.4}, NOT),
    ("Stochastic Resonance: escape", {("phase_slip", 1, "values", "rep-4"): 0.8}, NOT),
    ("Stochastic Resonance: escape", {("phase_slip", 1, "values", "escaped"): None}, UNTESTED),
    ("Relevant tokens", {("tracking", 1, "phases, partners, mean"): 0.4}, MIXED),
    ("Relevant tokens", {("tracking", seed, f"{name}, others, mean"): 0.75
                         for seed in (0, 1) for name in ("clocks", "phases")}, NOT),
    ("Prime Token Embedding", without("prime_embedding", 1.0), NOT),
    ("Kuramoto Synchronization", without("kuramoto", 1.0), NOT),
    ("Resonant Attention", without("resonant_attention", 1.0), NOT),
    ("Kuramoto Model", {("dynamics", 0, "holds"): False}, NOT),
    ("Lyapunov Exponents", {("dynamics", 2, "holds"): False}, NOT),
    ("Sedenions", {("dynamics", 4, "holds"): False}, NOT),
    ("Coherence Gating", {("gating", 1, "layers"): [3.7, 3.5, 3.8]}, NOT),
    ("Coherence Gating", {("gating", 1, "bits_per_byte"): [2.1, 0, 9]}, NOT),
    ("Agency and PRSC", {(*LEFT_OUT["prsc"][i][:2], "decode_ms"): 0.8 for i in range(3)}, NOT),
    ("Stability monitoring", {("speed", 0, "tokens_per_second", "full"): 80.0}, UNTESTED),
]  # fmt: skip


@pytest.mark.parametrize(("start", "changes", "verdict"), TURNS)
def test_a_claim_turns_with_its_rows(start, changes, verdict):
    assert_turns(reso.CLAIMS, start, GOOD, changes, verdict)


def test_every_claim_with_rows_is_among_the_turns():
    starts = tuple(start for start, _, _ in TURNS)
    for claim in reso.CLAIMS:
        if not claim.rerun.startswith("pytest"):
            judged = claim.finding(evidence_of(**GOOD)).verdict != UNTESTED
            assert claim.text.startswith(starts) == judged, claim.text


def test_the_newest_row_of_a_seed_counts():
    claim = the_claim(reso.CLAIMS, "Kuramoto Model")
    old = {"group": "kuramoto", "name": "a", "holds": False}
    assert claim.finding(evidence_of(dynamics=[old, *GOOD["dynamics"]])).verdict == HOLDS
    claim = the_claim(reso.CLAIMS, "Coherence Gating")
    other = gating(0.0, 1.0, 4.0) | {"checkpoint": "older"}
    assert claim.finding(evidence_of(gating=[other, *GOOD["gating"]])).verdict == HOLDS


def test_the_axes_are_mixed_while_names_are_free_and_turn_with_their_tests():
    claim = the_claim(reso.CLAIMS, "Semantic axes")
    tied = [name for name, axis in AXES.items() if axis is not None]
    rows = [{"axis": name, "p": 0.01, "higher": 25, "texts": 30} for name in tied]
    found = claim.finding(evidence_of(axes=rows))
    assert found.verdict == MIXED
    assert (
        f"{len(tied)} of 16 names are tied to a signal of a text; {len(tied)} of" in found.measured
    )
    still = [row | {"p": 0.4} for row in rows]
    assert claim.finding(evidence_of(axes=still)).verdict == NOT
    assert claim.finding(evidence_of(axes=rows[1:])).verdict == UNTESTED


class LoudResonance(StochasticResonance):
    def decide(self, reading):
        return "noise"


NOW = [  # what is computed at once: what to put in the place of a name, and the verdict then
    ("Presets", "large_config", small_config, NOT),
    ("Every generation", "RESULT", (*reso_now.RESULT, "confidence"), NOT),
    ("Every generation", "TRACES", ("events",), NOT),
    ("The calls", "CALLS", {ResoLLMConfig: ("train",)}, NOT),
    ("Stochastic resonance only", "StochasticResonance", LoudResonance, NOT),
    ("Tokens map", "first_primes", lambda count: [2] * count, NOT),
    ("Stochastic Resonance (dis", "ResoLLMConfig", lambda: dataclasses.replace(
        ResoLLMConfig(), stochastic_resonance=StochasticResonanceConfig(enabled=True)), NOT),
    ("Default training", "TrainConfig",
     lambda steps: type("Config", (), {"data": "sample"})(), NOT),
]  # fmt: skip


@pytest.mark.parametrize(("start", "name", "value", "verdict"), NOW)
def test_what_is_computed_now_turns_with_the_package(start, name, value, verdict, monkeypatch):
    monkeypatch.setattr(reso_now, name, value)
    assert the_claim(reso.CLAIMS, start).finding(evidence_of()).verdict == verdict


def test_golden_ratios_everywhere_would_be_seen(monkeypatch):
    claim = the_claim(reso.CLAIMS, "Golden Ratio")
    monkeypatch.setattr(reso_now, "_is_golden", lambda number: True)
    assert claim.finding(evidence_of()).verdict != HOLDS, "resonant attention is off"
    golden = with_stage(ResoLLMConfig(), "resonant_attention", True)
    monkeypatch.setattr(reso_now, "small_config", lambda: golden)
    assert claim.finding(evidence_of()).verdict == HOLDS


@pytest.mark.parametrize("start", ["The enhanced model", "All enhanced features"])
def test_a_stage_that_breaks_the_loss_is_seen(start, monkeypatch):
    loss = reso_now.ResoLLMModel.loss
    broken = lambda self, *args, **goal: loss(self, *args, **goal).detach() * torch.nan  # noqa: E731
    cut = lambda self, *args, **goal: loss(self, *args).clamp(max=9.0)  # noqa: E731
    monkeypatch.setattr(reso_now.ResoLLMModel, "loss", cut if "model" in start else broken)
    assert the_claim(reso.CLAIMS, start).finding(evidence_of()).verdict == NOT


def test_concepts_that_do_not_come_apart_are_seen(monkeypatch):
    class Deaf(reso_now.ConceptSpace):
        def unbind(self, pattern, name, *, count=5):
            return super().unbind(pattern.roll(1), name, count=count)

    claim = the_claim(reso.CLAIMS, "Compositional semantics")
    assert claim.finding(evidence_of()).verdict == HOLDS
    monkeypatch.setattr(reso_now, "ConceptSpace", Deaf)
    assert claim.finding(evidence_of()).verdict == NOT
