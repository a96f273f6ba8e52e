"""The claims of the Coherent Entropy Reactor's README."""

from benchmarks.claims import Claim, untested
from benchmarks.claims.cer_mirror import (
    TABLE,
    above_because_of_attention,
    brake_works,
    control_converges,
    diffusers,
    escape_rare,
    mirror_row,
    navigates,
    oscillator,
    parameters,
    trajectory_log,
)
from benchmarks.claims.cer_others import cage, convergence, mass_limits, order_matters, zombie

README = "CER README"
FOUND = f"{README}, core finding"

CLAIMS = (
    *(
        Claim(f"{name}: input {given} nats, final state {mean:.2f} ± {std} nats, {brake} BRAKE, "
              f"{escape} ESCAPE", f"{README}, mirror test", mirror_row(name))
        for name, (given, mean, std, brake, escape) in TABLE.items()
    ),
    Claim("1.6M parameters; 2-layer recursive refinement (3 steps per layer)",
          f"{README}, key specs", parameters),
    Claim("Full trajectory logging (entropy, mass, phase, control actions)",
          f"{README}, key specs", trajectory_log),
    Claim("ESCAPE almost never triggers; it is structural backup", f"{README}, key observation",
          escape_rare),
    Claim("Attention mechanisms naturally spread probability mass — they are entropy diffusers. "
          "Transformers want to be free", FOUND, diffusers),
    Claim("The attention layers diffuse entropy so aggressively that by the time control engages, "
          "the system is already above target", f"{README}, key observation",
          above_because_of_attention),
    Claim("The brake works", f"{README}, deeper insight", brake_works),
    Claim("The trajectory converges; symmetric control validated", f"{README}, deeper insight",
          control_converges("published")),
    Claim("(ours) The corrected control converges", "cer.reactor", control_converges("corrected")),
    Claim("Controllable entropy dynamics: navigation of the full entropy landscape is possible",
          f"{README}, deeper insight", navigates),
    Claim("Kuramoto Phase Modulation ← oscillatory control", f"{README}, architecture", oscillator),
    Claim("Feed-forward architecture shows higher robustness (smaller Δ PPL than state-space)",
          f"{README}, zombie test", zombie("delta_ppl")),
    Claim("... and lower commutation cost", f"{README}, zombie test", zombie("commutation_nats")),
    Claim("Diffusion is a different robustness mechanism than integration",
          f"{README}, zombie test",
          untested("no quantity is defined that tells the two mechanisms apart")),
    Claim("M(z): near 0 when peaked, near 1-1/K when uniform", f"{README}, theory", mass_limits),
    Claim("Commutation cost measures whether perturbation order matters", f"{README}, theory",
          order_matters),
    Claim("Resistance to perturbation emerges from information density across all domains",
          f"{README}, theory",
          untested("neither the density nor the domains are defined, so no measurement could come "
                   "out against it")),
    Claim("Multi-CER training infrastructure (convergence)", f"{README}, project structure",
          convergence),
    Claim('The "2.9 nat cage" observed in RLHF-trained models', FOUND, cage),
    Claim("The cage is imposed, not natural", f"{README}, last line",
          untested("it takes one model before and after such training; we have no such pair")),
    Claim('A caged system "has already answered"; one that navigates "might actually choose"',
          f"{README}, deeper insight", untested("choosing is not defined by anything measurable")),
)  # fmt: skip
