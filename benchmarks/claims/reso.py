"""The claims of the Reso-LLM v2 README.

Decided by recorded rows in reso_model.py, reso_memory.py and reso_features.py, and by the package
itself in reso_now.py.
"""

from benchmarks.claims import Claim, reso_now, untested
from benchmarks.claims.reso_features import (
    chaotic,
    coordinates,
    goals_help,
    goals_move,
    resonance_escapes,
    share_state,
    tracks_goals,
    warns,
)
from benchmarks.claims.reso_memory import beyond_window, dates, forgets, remembers
from benchmarks.claims.reso_model import (
    better_model,
    brings,
    gate_saves,
    lightweight,
    oracles,
    overhead,
)

README = "Reso-LLM v2 README"
NEW = f"{README}, what's new"
DIAGRAM = f"{README}, architecture"
CONCEPTS = f"{README}, key concepts"
NOTES = f"{README}, performance notes"

CLAIMS = (
    Claim("A next-generation language model architecture", f"{README}, introduction", better_model),
    Claim("Model can set and track goals during generation", NEW, tracks_goals),
    Claim("Agency attention modulation (goal-guided)", DIAGRAM, goals_move),
    Claim("Goal-guided generation: do goals help the text?", f"{README}, quick start", goals_help),
    Claim("PRSC Semantic Layer (compositional bindings)", DIAGRAM,
          brings("prsc", "; the gain is of its memory of counted contexts")),
    Claim('Compositional semantics through prime interference: "mathematics" + "logic" → '
          "interference pattern", NEW, reso_now.composes),
    Claim("Temporal SMF: better long-term context", NEW, remembers("age 0", "all of the memory")),
    Claim("16D holographic memory, in a small model trained to recall", DIAGRAM, beyond_window),
    Claim("Temporal Sedenion Memory Field, as a stage", DIAGRAM, brings("temporal_smf")),
    Claim("16D holographic memory, in the shipped model", DIAGRAM,
          remembers("field alone", "the field alone")),
    Claim("Natural forgetting; memory automatically decays over time", NEW, forgets),
    Claim('Episodic tagging enables "when did I learn this?"', f"{README}, memory management",
          dates),
    Claim("Semantic axes: truth, consciousness, beauty, compassion, ...", CONCEPTS,
          untested("nothing in the definition ties an axis to its name, so no measurement could "
                   "come out against it")),
    Claim("Early warning of instability", NEW, warns(rival=False)),
    Claim("Early warning: better than plain surprise, entropy or probability", NEW,
          warns(rival=True)),
    Claim("Chaos theory measures when generation is becoming unstable", CONCEPTS, chaotic),
    Claim("Hallucination prevention, auto-correction", NEW,
          untested("no recorded run compares the facts or errors in texts with and without the "
                   "temperature adjustment")),
    Claim("Multiple models can share state non-locally", NEW, share_state),
    Claim('coordination_strategy="consensus"', f"{README}, quick start", coordinates("consensus")),
    Claim('coordination_strategy "parallel"', f"{README}, quick start",
          coordinates("one text", " (one of the agents' texts at random)")),
    Claim('coordination_strategy "sequential"', f"{README}, quick start",
          untested("sequential texts have no likelihood to compare, and nobody read them")),
    Claim("Stochastic Resonance: escape repetitive patterns", NEW, resonance_escapes),
    Claim("Stochastic resonance only activates when repetition detected", NOTES,
          reso_now.noise_in_loops_only),
    Claim("Prime Token Embedding", DIAGRAM, brings("prime_embedding")),
    Claim("Tokens map to primes, enabling unique factorization", CONCEPTS, reso_now.factorises),
    Claim("Kuramoto Synchronization (dynamic attention modulation)", DIAGRAM, brings("kuramoto")),
    Claim("Relevant tokens synchronize", CONCEPTS,
          untested("no recorded measurement says which tokens are relevant to which")),
    Claim("Kuramoto Model: phase synchronization", f"{README}, references", oracles("kuramoto")),
    Claim("Lyapunov Exponents: chaos detection", f"{README}, references", oracles("lyapunov")),
    Claim("Sedenions: 16-dimensional hypercomplex numbers", f"{README}, references",
          oracles("sedenion")),
    Claim("Resonant Attention (φ-weighted)", DIAGRAM, brings("resonant_attention")),
    Claim("Golden Ratio appears in attention weights, learning rates, thresholds, and gradient "
          "clipping", CONCEPTS, reso_now.golden),
    Claim("Coherence Gating (adaptive computation)", DIAGRAM, gate_saves),
    Claim("Agency and PRSC add ~10% overhead during inference", NOTES, overhead),
    Claim("Stability monitoring is lightweight", NOTES, lightweight),
    Claim("All enhanced features are optional and configurable, each with its own configuration "
          "dataclass", NOTES, reso_now.optional),
    Claim("Entanglement is disabled by default", NOTES, reso_now.off_by_default("entanglement")),
    Claim("Stochastic Resonance (disabled by default)", f"{README}, configuration",
          reso_now.off_by_default("stochastic_resonance")),
    Claim("Presets: 4 layers, 256 dim; 8 layers, 512 dim; 24 layers, 1024 dim",
          f"{README}, configuration", reso_now.presets),
    Claim("Every generation returns comprehensive metrics", f"{README}, generation result",
          reso_now.metrics),
    Claim("The calls of the quick start and the feature sections", f"{README}, quick start",
          reso_now.documented_calls),
    Claim("Default training dataset: openassistant-guanaco", f"{README}, introduction",
          reso_now.default_data),
    Claim("The enhanced model is fully compatible with PyTorch autograd", f"{README}, training",
          reso_now.autograd),
    Claim("Training works the same as v1", f"{README}, training",
          untested("no version 1 is among the documents, so there is nothing to compare with")),
)  # fmt: skip
