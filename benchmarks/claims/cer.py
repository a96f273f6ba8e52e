"""The claims of the Coherent Entropy Reactor's README; their views of rows are in cer_views.py."""

from functools import partial

from benchmarks.claims import Claim, cer_ours, cer_views
from benchmarks.claims.rules import above, all_of, computed, equal, less, more, one, rows_of, truths
from cer.mirror import PUBLISHED as PUBLISHED_MIRROR
from cer.zombie import PUBLISHED

README = "CER README"
CORE, KEY = f"{README}, core finding", f"{README}, key observation"
DEEPER, SPECS = f"{README}, deeper insight", f"{README}, key specs"
THEORY, ZOMBIE_TEST = f"{README}, theory", f"{README}, zombie test"
MIRROR = "python evaluate.py mirror"
ABLATION = f"{MIRROR} --ablation"
SETPOINT = "python evaluate.py setpoint --mode published corrected"
TRAINING = "python -m benchmarks.studies.reactor_training"
MIRRORED, ABLATED = (partial(cer_views.published, kind) for kind in ("mirror", "ablate"))
CLOSE_NATS = 0.1
CAGE_NATS, CAGE_WIDTH = 2.9, 0.3
RARE = 0.05


def mirror_row(name: str) -> Claim:
    """A line of the published table: equal to its last digit, actions to the count."""
    given, mean, std, brake, escape = PUBLISHED_MIRROR[name]
    return Claim(
        f"{name}: input {given} nats, final state {mean:.2f} ± {std} nats, {brake} BRAKE, "
        f"{escape} ESCAPE", f"{README}, mirror test", MIRROR, MIRRORED,
        "input {input} nats, final state {mean:.2f} ± {std:.2f} nats; {brake} BRAKE, {escape} "
        "ESCAPE, {seeds} seeds",
        (all_of(equal("input", given), equal("mean", mean), equal("std", std),
                equal("brake", brake), equal("escape", escape)),),
        one(partial(cer_views.condition, name)),
    )  # fmt: skip


def converges(text: str, source: str, mode: str) -> Claim:
    """The control ends within .1 nats of every target, of every seed and condition."""
    return Claim(
        text, source, SETPOINT, rows_of("setpoint", "mode", mode=mode),
        "distance of the final entropy from targets of 1 to 5 nats: mean {mean:.2g}, worst "
        f"{{worst:.2g}} nats (holds below {CLOSE_NATS})", (less("worst", CLOSE_NATS),),
        one(cer_views.errors),
    )  # fmt: skip


def zombie(text: str, quantity: str) -> Claim:
    """The state-space model's quantity is the larger one, for both kinds of noise and all pairs.

    The published noise is of deviation 1 whatever the embeddings' length, so it depends on the
    units that a model is written in; the other does not.
    """
    published = "{} against {}".format(*PUBLISHED[quantity])
    return Claim(
        text, ZOMBIE_TEST, "python evaluate.py zombie --data data/tinyshakespeare.txt",
        partial(cer_views.noisy, quantity),
        "{forward:.2f} against {recurrent:.2f} with noise {case}", (more("recurrent", "forward"),),
        frame="feed-forward against state-space, pairs equal in size and loss, {num_seeds} seeds: "
        f"{{cases}} (published, an unequal pair: {published})", between=", ",
    )  # fmt: skip


CLAIMS = (
    *map(mirror_row, PUBLISHED_MIRROR),
    Claim("1.6M parameters; 2-layer recursive refinement (3 steps per layer)", SPECS, MIRROR,
          MIRRORED,
          "{metadata.num_parameters:,} parameters, {metadata.num_layers} layers, "
          "{metadata.num_refinement_steps} steps each",
          (all_of(lambda row: round(row["metadata"]["num_parameters"] / 1e6, 1) == 1.6,
                  equal("metadata.num_layers", 2), equal("metadata.num_refinement_steps", 3)),)),
    Claim("Full trajectory logging (entropy, mass, phase, control actions)", SPECS, MIRROR,
          MIRRORED, "{steps} steps of {seeds} seeds, each with {logged}",
          (all_of(equal("steps", 180), equal("all", True)),), one(cer_views.logged)),
    Claim("ESCAPE almost never triggers; it is structural backup", KEY, SETPOINT,
          rows_of("setpoint", "mode", mode="published"),
          "share of ESCAPE steps by target in nats: {words} (published: {target:g})",
          (less("at_target", RARE), less("highest", RARE)), one(cer_views.escapes)),
    Claim("Attention mechanisms naturally spread probability mass — they are entropy diffusers. "
          "Transformers want to be free", CORE, f"{ABLATION}; {TRAINING}",
          cer_views.ablation_and_training,
          "attention changes the final entropy at initialisation by, worst condition, its mixing "
          "{mixing:.2f}, the whole layer {layer:.2f} nats; its mixing when trained "
          "{trained:+.2f} with the control, {free:+.2f} without", (truths("truths"),),
          cer_views.diffusion),
    Claim("The attention layers diffuse entropy so aggressively that by the time control engages, "
          "the system is already above target", KEY, ABLATION, ABLATED,
          "{before_low:.2f} to {before_high:.2f} nats right after projection and LayerNorm, before "
          "any attention; the layers lower it to {after_low:.2f} to {after_high:.2f} when nothing "
          "is controlled", (equal("above", True),), one(cer_views.layers)),
    Claim("The brake works", DEEPER, ABLATION, cer_views.without_drift, "{case} {change:.2f}",
          (above("change"),), between=", ",
          frame="without it the final entropy is higher by {cases} nats"),
    converges("The trajectory converges; symmetric control validated", DEEPER, "published"),
    converges("(ours) The corrected control converges in untrained reactors", "cer.reactor",
              "corrected"),
    Claim("Controllable entropy dynamics: navigation of the full entropy landscape is possible",
          DEEPER, SETPOINT, rows_of("setpoint", "mode", mode="published"),
          "mean final entropy, nats: {words}", (equal("rises", True),),
          one(cer_views.targets_reached)),
    Claim("Kuramoto Phase Modulation ← oscillatory control", f"{README}, architecture", ABLATION,
          ABLATED,
          f"mean distance from the target of {cer_views.TARGET:g} nats: {{alone:.2f}} with the "
          "phase update alone, {neither:.2f} with no control at all", (less("alone", "neither"),),
          one(cer_views.oscillator)),
    zombie("Feed-forward architecture shows higher robustness (smaller Δ PPL than state-space)",
           "delta_ppl"),
    zombie("... and lower commutation cost", "commutation_nats"),
    Claim("Diffusion is a different robustness mechanism than integration", ZOMBIE_TEST,
          because="no quantity is defined that tells the two mechanisms apart"),
    Claim("M(z): near 0 when peaked, near 1-1/K when uniform", THEORY,
          "pytest tests/entropy_core/test_core_information.py", computed(cer_views.mass_limits),
          "M = {peaked:.3g} peaked, {uniform:.6f} uniform; 1 - 1/128 = {limit:.6f}",
          (lambda row: row["peaked"] < 1e-6 and abs(row["uniform"] - row["limit"]) < 1e-6,)),
    Claim("Commutation cost measures whether perturbation order matters", THEORY,
          "pytest tests/entropy_core/test_core_commutation.py", computed(cer_views.order_costs),
          "{same:g} nats where perturbing and evolving commute, {other:.2f} where they do not",
          (lambda row: row["same"] < 1e-9 and row["other"] > 1e-3,)),
    Claim("Resistance to perturbation emerges from information density across all domains", THEORY,
          because="neither the density nor the domains are defined, so no measurement could come "
          "out against it"),
    Claim("Multi-CER training infrastructure (convergence)", f"{README}, project structure",
          TRAINING, cer_views.pairs_of_reactors,
          "agreement of two reactors' outputs (1 is equal): {apart:.3f} trained apart, "
          "{coupled:.3f} coupled, {num_seeds} seeds", (more("coupled", "apart"),)),
    Claim('The "2.9 nat cage" observed in RLHF-trained models', CORE,
          "python evaluate.py srb --model DIR",
          rows_of("srb", "model", kind="study", model="SmolLM2-135M-Instruct"),
          "SmolLM2-135M-Instruct, the one tuned model we have: "
          "{arms.static.own_entropy_nats:.2f} nats a token on its own replies (holds within "
          f"{CAGE_WIDTH} of {CAGE_NATS})",
          (lambda row: abs(row["arms"]["static"]["own_entropy_nats"][0] - CAGE_NATS)
           <= CAGE_WIDTH,)),
    Claim("The cage is imposed, not natural", f"{README}, last line",
          because="it takes one model before and after such training; we have no such pair"),
    Claim('A caged system "has already answered"; one that navigates "might actually choose"',
          DEEPER, because="choosing is not defined by anything measurable"),
    *cer_ours.CLAIMS,
)  # fmt: skip
