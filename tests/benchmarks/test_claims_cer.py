"""The claims of the CER README turn when their rows turn."""

import pytest
from claim_rows import assert_turns, changed, evidence_of, the_claim

from benchmarks.claims import HOLDS, MIXED, NOT, UNTESTED, cer, cer_ours, cer_views
from cer.mirror import PUBLISHED

ENCODER, NO_DRIFT = "right after the encoder", "no drift control"
NOTHING = "no control, no phase modulation"
LAYER, MIXING = "attention output := 0", "attention matrix := identity (no mixing)"


def mirror():
    steps = [{"entropy": 4.0, "mass": 0.9, "phase": 0.1, "control": "BRAKE"} for _ in range(6)]
    seed = {"conditions": [{"name": name, "input_entropy": float(given), "steps": steps}
                           for name, (given, *_) in PUBLISHED.items()]}  # fmt: skip
    summary = {
        name: {"entropy_trajectory": {"step_0": {"mean": 9.0, "std": 9.0},
                                      "step_5": {"mean": mean + 0.004, "std": std}},
               "control_actions": {"brake": brake, "escape": escape}}
        for name, (_, mean, std, brake, escape) in PUBLISHED.items()
    }  # fmt: skip
    about = {"num_parameters": 1_645_952, "num_layers": 2, "num_refinement_steps": 3}
    return {"mode": "published", "kind": "mirror", "seeds": list(range(10)), "metadata": about,
            "seed_results": [seed] * 10, "summary": {"conditions": summary}}  # fmt: skip


def ablate():
    """Attention spreads, the brake works, and the phase update is a control."""

    def part(name, mean, difference, low, high):
        condition = {"mean": mean, "difference": difference, "difference_interval": [low, high],
                     "values": [mean - 0.1, mean + 0.1]}  # fmt: skip
        return {"variant": name, "conditions": {c: dict(condition) for c in PUBLISHED}}

    variants = [part(MIXING, 3, -1.0, -2.0, -0.5), part(LAYER, 3, -1.0, -2.0, -0.5),
                part(ENCODER, 2.0, -1.0, -2.0, -0.5), part(NO_DRIFT, 3.5, 1.0, 0.5, 2.0),
                part(NOTHING, 4.0, 0.0, -1.0, 1.0)]  # fmt: skip
    return {"mode": "published", "kind": "ablate", "seeds": list(range(10)), "variants": variants}


def setpoint(mode):
    rows = [{"target": t, "error": 0.01,
             "steps": [{"control": "BRAKE", "entropy": t} for _ in range(6)]}
            for t in (1.0, 3.0, 5.0)]  # fmt: skip
    return {"mode": mode, "rows": rows}


def zombie(seed):
    def model(value):
        noise = [{"scale": scale, "level": level, "delta_ppl": value, "commutation_nats": value}
                 for scale in ("norm", "absolute") for level in (0.5, 1.0)]  # fmt: skip
        return {"noise": noise}

    return {"data": "tinyshakespeare.txt", "quick": False, "seed": seed, "width": 96,
            "models": [model(1.0), model(2.0)]}  # fmt: skip


def training():
    rows = [{"arm": arm, "seed": s, "diffusion": [{"diffusion": 0.1}] * 2, "convergence": c,
             "kl_nats": [0.1, 0.2]}
            for s in (0, 1) for arm, c in (("reactor", 0.9), ("uncontrolled", 0.9))]  # fmt: skip
    coupled = [{"arm": "coupled", "seed": s, "convergence": 0.95, "kl_nats": [0.1]} for s in (1, 0)]
    return [*rows, *coupled, *({"arm": arm, "seed": s, "kl_nats": [0.3]}
            for s in (0, 1) for arm in ("mlp_pooled", "smoothed_views"))]  # fmt: skip


def of_bytes():
    minus = {"reactor": -0.3, "log_linear": 0.0, "mlp_pooled": 0.1, "smoothed_views": 0.2,
             "trigram": -0.5}  # fmt: skip
    return [{"arm": arm, "seed": seed, "nats_per_byte": [2.5 + x, 2.4 + x, 2.6 + x],
             "minus_bigram": [x, x - 0.04, x + 0.04]}
            for seed in (0, 1) for arm, x in minus.items()]  # fmt: skip


def trained():
    ends = {name: {"entropy_trajectory": {"step_5": {"mean": 3.01}}} for name in PUBLISHED}
    return {"kind": "trained", "metadata": {"target_entropy": 3.0},
            "summary": {"conditions": ends}}  # fmt: skip


def liquid(seed, arm, error):
    found = dict.fromkeys(cer_ours.CONTROL, error)
    return {"arm": arm, "seed": seed, "untrained": found, "trained": found | {"kl": error}}


GOOD = {
    "mirror": [mirror(), ablate(), trained()],
    "reactor_bytes": of_bytes(),
    "liquid_reactor": [liquid(seed, arm, error + seed) for seed in (0, 1)
                       for arm, error in (("liquid", 0.1), ("liquid, frozen", 0.2))],
    "setpoint": [setpoint("published"), setpoint("corrected")],
    "zombie": [zombie(0), zombie(1)],
    "reactor_training": training(),
    "srb": [{"kind": "study", "model": "SmolLM2-135M-Instruct",
             "arms": {"static": {"own_entropy_nats": [2.8, 2.75, 2.85]}}}],
}  # fmt: skip
PEAKED = ("mirror", 0, "summary", "conditions", "PEAKED")
PART = {name: i for i, name in enumerate((MIXING, LAYER, ENCODER, NO_DRIFT, NOTHING))}


def part(name, condition, *path):
    return ("mirror", 1, "variants", PART[name], "conditions", condition, *path)


TURNS = [
    ("PEAKED", {(*PEAKED, "entropy_trajectory", "step_5", "mean"): 3.85}, NOT),
    ("PEAKED", {(*PEAKED, "entropy_trajectory", "step_5", "std"): 0.5}, NOT),
    ("PEAKED", {(*PEAKED, "control_actions", "escape"): 0}, NOT),
    ("UNIFORM", {("mirror", 0, "seed_results", 0, "conditions", 1, "input_entropy"): 4.0}, NOT),
    ("RANDOM", {("mirror", 0, "seeds"): [0, 1]}, UNTESTED),
    ("1.6M", {("mirror", 0, "metadata", "num_parameters"): 1_700_000}, NOT),
    ("1.6M", {("mirror", 0, "metadata", "num_refinement_steps"): 2}, NOT),
    ("Full trajectory", {("mirror", 0, "seed_results"): [{"conditions": []}]}, NOT),
    ("Full trajectory", {("mirror", 0, "seed_results", 0, "conditions", 0, "steps", 0): {}}, NOT),
    ("ESCAPE", {("setpoint", 0, "rows", 2, "steps", 0, "control"): "ESCAPE"}, MIXED),
    ("ESCAPE", {("setpoint", 0, "rows", 1, "steps", 0, "control"): "ESCAPE"}, NOT),
    ("Attention mechanisms", {part(MIXING, "RANDOM", "difference_interval"): [-1, 0.1]}, MIXED),
    ("Attention mechanisms", {part(LAYER, "PEAKED", "difference_interval"): [-1, 0.1]}, MIXED),
    ("Attention mechanisms",
     {("reactor_training", 0, "diffusion", 1): {"diffusion": -0.1}}, MIXED),
    ("Attention mechanisms",
     {("reactor_training", 1, "diffusion", 0): {"diffusion": -0.1}}, MIXED),
    ("The attention layers", {part(ENCODER, "UNIFORM", "mean"): 5.0}, NOT),
    ("The brake", {part(NO_DRIFT, c, "difference_interval"): [-0.1, 1] for c in PUBLISHED}, NOT),
    ("The brake", {part(NO_DRIFT, "RANDOM", "difference_interval"): [-0.1, 1]}, MIXED),
    ("The trajectory", {("setpoint", 0, "rows", 0, "error"): 0.2}, NOT),
    ("(ours) The corrected", {("setpoint", 1, "rows", 0, "error"): 0.2}, NOT),
    ("Controllable", {("setpoint", 0, "rows", 2, "steps", 5, "entropy"): 2.0}, NOT),
    ("Kuramoto", {part(NO_DRIFT, c, "values"): [5.0, 5.1] for c in PUBLISHED}, NOT),
    ("Feed-forward", {("zombie", 1, "models", 1, "noise", 1, "delta_ppl"): 0.5}, MIXED),
    ("... and lower", {("zombie", 0, "models", 1, "noise", i, "commutation_nats"): 0.5
                       for i in (1, 3)}, NOT),
    ("Multi-CER", {("reactor_training", 4, "convergence"): 0.8}, NOT),
    ("Feed-forward",
     {("zombie", 1, "width"): 48, ("zombie", 1, "models", 1): zombie(0)["models"][0]}, MIXED),
    ("(ours) A reactor trained",
     {("reactor_bytes", 2, "minus_bigram"): [-0.2, -0.27, 0.0]}, NOT),
    ("(ours) A reactor trained",
     {("reactor_bytes", 8, "minus_bigram"): [-0.5, -1.0, 0.0]}, NOT),
    ("(ours) ... and than five", {("reactor_bytes", 1, "minus_bigram"): [-0.2, -0.3, -0.1]}, NOT),
    ("(ours) ... and restores", {("reactor_training", 1, "kl_nats"): [0.1],
                                 ("reactor_training", 0, "kl_nats"): [0.4, 0.3]}, NOT),
    ("(ours) A trained reactor ends", {("mirror", 2, "metadata", "target_entropy"): 2.0}, NOT),
    ("(ours) A liquid layer's", {("liquid_reactor", 1, "untrained", "weak_error"): 0.0}, MIXED),
    ("(ours) ... and make the", {("liquid_reactor", 1, "trained", "kl"): 0.1}, NOT),
    ('The "2.9 nat cage"', {("srb", 0, "arms", "static", "own_entropy_nats"): [1, 0.9, 1.1]}, NOT),
]  # fmt: skip


@pytest.mark.parametrize(("start", "changes", "verdict"), TURNS)
def test_a_claim_turns_with_its_rows(start, changes, verdict):
    assert_turns(cer.CLAIMS, start, GOOD, changes, verdict)


def test_every_claim_with_rows_is_among_the_turns():
    starts = tuple(start for start, _, _ in TURNS)
    for claim in cer.CLAIMS:
        if claim.finding(evidence_of()).verdict == UNTESTED:
            judged = claim.finding(evidence_of(**GOOD)).verdict != UNTESTED
            assert claim.text.startswith(starts) == judged, claim.text


def test_a_quick_or_small_row_that_is_newer_is_not_read():
    claim = the_claim(cer.CLAIMS, "PEAKED")
    newer = changed(mirror(), {("seeds",): [0], ("summary",): {}})
    assert claim.finding(evidence_of(mirror=[mirror(), newer])).verdict == HOLDS
    claim = the_claim(cer.CLAIMS, "Feed-forward")
    newer = changed(zombie(0), {("quick",): True, ("models",): []})
    assert claim.finding(evidence_of(zombie=[*GOOD["zombie"], newer])).verdict == HOLDS


def test_what_is_computed_now_can_come_out_otherwise(monkeypatch):
    limits, order = (the_claim(cer.CLAIMS, s) for s in ("M(z)", "Commutation cost"))
    assert {limits.finding(evidence_of()).verdict, order.finding(evidence_of()).verdict} == {HOLDS}
    monkeypatch.setattr(cer_views, "semantic_mass", lambda z: z.softmax(-1).max())
    assert limits.finding(evidence_of()).verdict == NOT
    monkeypatch.setattr(cer_views, "_towards_first", cer_views._towards_uniform)
    assert order.finding(evidence_of()).verdict == NOT
