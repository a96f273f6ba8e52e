"""The claims of the Reso-LLM v2 README.

Their views of recorded rows are in reso_views.py; what the package itself decides, in reso_now.py.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.claims import Claim, Row, reso_now, reso_views
from benchmarks.claims.rules import (
    above,
    all_of,
    apart,
    below,
    computed,
    equal,
    less,
    more,
    rows_of,
    truths,
)
from benchmarks.tasks.gating import cheapest

README = "Reso-LLM v2 README"
NEW = f"{README}, what's new"
DIAGRAM = f"{README}, architecture"
CONCEPTS = f"{README}, key concepts"
NOTES = f"{README}, performance notes"
REFERENCES = f"{README}, references"
QUICK_START = f"{README}, quick start"
TEXT = "data/tinyshakespeare.txt"
ABLATION = "python evaluate.py ablation guanaco --data data/guanaco_900.jsonl --seconds 180"
STEP_TIMES = f"python evaluate.py ablation shakespeare --data {TEXT} --steps {reso_views.STEPS}"
CONSENSUS = "python -m benchmarks.studies.consensus"
HEARSAY = "python -m benchmarks.studies.hearsay"
GOALS = "python evaluate.py goals --data data/heldout.jsonl --train data/train.jsonl"
MEMORY = "python evaluate.py memory"
STABILITY = "python evaluate.py stability --data data/unseen.jsonl"
AUTO_TEMPERATURE = (
    "python -m benchmarks.studies.auto_temperature --words data/train.jsonl --questions 200 "
    "--length 80 --temperature 0.3"
)

MOMENTS = rows_of("memory", "seed", like_last=("checkpoint",))
HITS = ", ".join(
    f"{kind} {{recall_hit_at_1.{kind}, memory:.2f}} "
    f"(BM25 {{recall_hit_at_1.{kind}, bm25 words.0:.2f}})"
    for kind in ("question", "three words", "typo")
)


def brings(text: str, stage: str, note: str = "") -> Claim:
    """A stage is worth something to the model that was trained with it."""
    return Claim(
        text, DIAGRAM, ABLATION, partial(reso_views.stage_costs, stage), "{cost:.4f} ({case})",
        (above("cost"),),
        frame=f"taking it out costs, in bits/byte over paired seeds: {{cases}}{note}",
    )  # fmt: skip


def remembers(text: str, source: str, what: str, title: str) -> Claim:
    """A stored fact is likelier than one that was not stored, in every seed."""
    stored, control = (f"gain_nats_per_token.{what}, {kind}" for kind in ("stored", "control"))
    return Claim(
        text, source, MEMORY, MOMENTS,
        f"{title}: telling the model a fact makes it {{{stored}:.3f}} nats/token likelier, another "
        f"fact {{{control}:.3f}} ({{num_seeds}} seeds)",
        (apart(control, stored),),
    )  # fmt: skip


def coordinates(text: str, way: str, note: str = "") -> Claim:
    """Better than the best agent of the team alone, for every team."""
    return Claim(
        text, QUICK_START, CONSENSUS,
        rows_of("consensus", "agents", case="agents", way=way),
        "{minus_best_single:.3f}", (below("minus_best_single"),), between=", ",
        frame=f"bits/byte minus the best single agent's, {{num_cases}} teams: {{cases}}{note}",
    )  # fmt: skip


def oracles(text: str, group: str) -> Claim:
    """The numbers of the literature that are known of one group of the dynamics task."""
    return Claim(
        text, REFERENCES, "python evaluate.py dynamics", rows_of("dynamics", "name", group=group),
        "{met} of {of} numbers of the literature are met within their tolerance",
        (lambda row: row["met"] == row["of"],), reso_views.oracles_met,
    )  # fmt: skip


def now(text: str, source: str, test: str, judge: Callable[[], reso_now.Judged]) -> Claim:
    """A claim on the package itself, computed at once and tested by a file of tests."""

    def row() -> Row:
        words, *true = judge()
        return {"words": words, "truths": true}

    return Claim(text, source, f"pytest tests/{test}.py", computed(row), "{words}",
                 (truths("truths"),))  # fmt: skip


CLAIMS = (
    Claim("A next-generation language model architecture", f"{README}, introduction",
          "python -m benchmarks.studies.quality guanaco --data data/guanaco_900.jsonl",
          reso_views.equal_time,
          "{case} in {seconds} s {full:.3f} against {control:.3f}",
          (less("worst_full", "best_control"),),
          frame="bits/byte after equal training time, with all stages against with none: {cases} "
          "(3 seeds each; longer runs were not compared)"),
    Claim("Model can set and track goals during generation", NEW, GOALS,
          rows_of("goals", "checkpoint", "case", "seed", case="case", measure="achieved"),
          "{case} {true:.2f} and {false:.2f}, AUROC {auc:.2f}", (apart("false", "true"),),
          frame="share of texts that achieve a goal, their own and another's, by what the goal is: "
          "{cases}"),
    Claim("(ours) A goal shows in what is written", "reso_llm.generation.guidance",
          f"{GOALS} --guided",
          rows_of("goals", "checkpoint", "seed", case="seed", measure="guided", strength=1.5),
          "{own words, rise:.2f} and {nearness, rise:.2f}",
          (above("own words, rise"), above("nearness, rise")),
          frame="replies that speak of their goal, and cosine with it against others' goals, more "
          "than without it, by seed: {cases}"),
    Claim("Agency attention modulation (goal-guided)", DIAGRAM, GOALS,
          rows_of("goals", "checkpoint", "goal", "seed", case="goal", measure="generated"),
          "{case} {rise:.2f}", (above("rise"),), between=", ",
          frame="what a goal adds to the cosine of the generated text with it, the conversation's "
          "own goal or another's: {cases}"),
    Claim("Goal-guided generation: do goals help the text?", QUICK_START, GOALS,
          reso_views.goal_losses, "{case} {matching - none:.3f}", (below("matching - none"),),
          frame="nats/token of replies with a goal minus without, by what the goal is made of: "
          "{cases}"),
    brings("PRSC Semantic Layer (compositional bindings)", "prsc",
           "; the gain is of its memory of counted contexts"),
    now('Compositional semantics through prime interference: "mathematics" + "logic" → '
        "interference pattern", NEW, "reso_llm/session/test_concepts", reso_now.composes),
    remembers("Temporal SMF: better long-term context", NEW, "age 0", "all of the memory"),
    Claim("16D holographic memory, in a small model trained to recall", DIAGRAM,
          "python -m benchmarks.studies.recall",
          rows_of("recall", memory=True, tied=False, filler=32),
          "pairs told 32 tokens ago to attention that sees {window}: {accuracy:.0%} right, "
          "{accuracy_forgetting:.1%} with the field emptied, {chance:.1%} by chance",
          (lambda row: row["accuracy"] > 2 * row["accuracy_forgetting"],), reso_views.emptied),
    brings("Temporal Sedenion Memory Field, as a stage", "temporal_smf"),
    remembers("16D holographic memory, in the shipped model", DIAGRAM, "field alone",
              "the field alone"),
    Claim("Natural forgetting; memory automatically decays over time", NEW, MEMORY, MOMENTS,
          "a stored fact is likelier by {words} (nats/token; decay 0.01)",
          (equal("falls", True),), reso_views.aging),
    Claim('Episodic tagging enables "when did I learn this?"', f"{README}, memory management",
          MEMORY, MOMENTS,
          "share of queries that find their moment, and with it its time, first of "
          f"{{num_stored:,}}: {HITS}", (above("recall_hit_at_1.question, memory", 0.5),)),
    Claim("Semantic axes: truth, consciousness, beauty, compassion, ...", CONCEPTS,
          "python -m benchmarks.studies.axes --data data/unseen.jsonl", reso_views.axes,
          "{tied} of {names} names are tied to a signal of a text; {moved} of these are higher in "
          "the text of a pair that should have more of it (sign test, Holm; of {texts} pairs: "
          "{words}); free, so that nothing could come out against them: {free}",
          (truths("truths"),)),
    Claim("Early warning of instability", NEW, STABILITY, reso_views.warnings,
          "{case} {warning:.2f}", (above("warning", 0.5),),
          frame="AUROC of the warning, {num_seeds} seeds: {cases}; {alarms:.0%} of clean windows "
          "have a false warning, too"),
    Claim("Early warning: better than plain surprise, entropy or probability", NEW, STABILITY,
          reso_views.warnings, "{case} {warning:.2f}, best plain {best_plain:.2f}",
          (lambda row: row["warning"][1] > max(0.5, row["best_plain"]),),
          frame="AUROC of the warning, {num_seeds} seeds: {cases}"),
    Claim("(ours) The warning tells right answers from wrong ones, better than the probability of "
          "the answer", "benchmarks.studies.answers",
          "python -m benchmarks.studies.answers --model DIR --record",
          rows_of("answers", "model", "facts", case="facts"),
          "facts {case}: AUROC {auroc.warning:.2f}, less that of the best plain doubt, "
          "{best_plain}, {minus.warning:.2f}; right {accuracy:.2f}, of the surest fifth "
          "{kept_right.warning.0:.0%}", (above("auroc.warning", 0.5), above("minus.warning"))),
    Claim("The stability class is one of stable, periodic, chaotic and divergent", NEW, STABILITY,
          reso_views.classes, "{case} {accuracy:.2f}", (above("accuracy", 0.8),),
          frame="balanced accuracy on clean text, loops, half of the tokens replaced, and lost "
          "order: {cases}"),
    Claim("Chaos theory measures when generation is becoming unstable", CONCEPTS, STABILITY,
          reso_views.classes, "{case} {gain:+.3f}", (lambda row: row["gain"] > 0.02,),
          frame="what the exponent adds to the balanced accuracy of the class, which is read from "
          "surprise and repetition: {cases}"),
    Claim("Hallucination prevention, auto-correction", NEW, AUTO_TEMPERATURE,
          rows_of("auto_temperature", "temperature", case="temperature", model="shipped"),
          "T = {case} {difference.facts:+.3f}, repeated 4-grams "
          "{difference.rep-4:+.3f}, non-words {difference.non-words:+.3f}",
          (above("difference.facts"),),
          frame="share of the shipped model's answers that name the fact in the prompt, with the "
          "temperature adjustment less without: {cases}"),
    Claim("Multiple models can share state non-locally", NEW, HEARSAY,
          rows_of("hearsay", "listener", "seed", case="listener", fidelity=1.0),
          "{case} {told:.2f}, a fact nobody was told {untold:.2f}", (apart("untold", "told"),),
          frame="nats/token that another agent gains on a fact that the first was told, over a "
          "link of fidelity 1: {cases}"),
    coordinates('coordination_strategy="consensus"', "consensus"),
    coordinates('coordination_strategy "parallel"', "one text",
                " (one of the agents' texts at random)"),
    coordinates('coordination_strategy "sequential"', "relay",
                " (each agent writes its part of the text)"),
    Claim("Stochastic Resonance: escape repetitive patterns", NEW, "python evaluate.py phase-slip",
          reso_views.escapes, "{case} {noisy.escaped:.0%}, repeated 4-grams {noisy.rep-4:.2f} "
          "against {greedy.rep-4:.2f}",
          (all_of(more("noisy.escaped", 0.5), less("noisy.rep-4", "greedy.rep-4")),),
          frame="of greedy texts that end in a loop, no longer do: {cases}"),
    now("Stochastic resonance only activates when repetition detected", NOTES,
        "reso_llm/decoding/test_decoding_controllers", reso_now.noise_in_loops_only),
    brings("Prime Token Embedding", "prime_embedding"),
    now("Tokens map to primes, enabling unique factorization", CONCEPTS, "reso_llm/test_tokenizer",
        reso_now.factorises),
    brings("Kuramoto Synchronization (dynamic attention modulation)", "kuramoto"),
    Claim("Relevant tokens synchronize", CONCEPTS,
          "python -m benchmarks.studies.tracking brackets --steps 400", reso_views.synchrony,
          "{case} {partners:.2f}, {more:.3f} more", (above("more", reso_views.SYNCHRONY),),
          frame="mean resultant of brackets and their partners, and how much more it is than of "
          "other pairs of the same kinds, in a small model trained on brackets, {seeds} seeds "
          f"(holds from {reso_views.SYNCHRONY} more on): {{cases}}"),
    oracles("Kuramoto Model: phase synchronization", "kuramoto"),
    oracles("Lyapunov Exponents: chaos detection", "lyapunov"),
    oracles("Sedenions: 16-dimensional hypercomplex numbers", "sedenion"),
    brings("Resonant Attention (φ-weighted)", "resonant_attention"),
    now("Golden Ratio appears in attention weights, learning rates, thresholds, and gradient "
        "clipping", CONCEPTS, "reso_llm/stages/test_attention", reso_now.golden),
    Claim("Coherence Gating (adaptive computation)", DIAGRAM,
          "python evaluate.py gating --data data/heldout.jsonl",
          rows_of("gating", "share", like_last=("checkpoint", "data")),
          "of the shares within 1 % of the best bits/byte the cheapest uses {layers:.2f} of "
          "{num_layers} layers a token (holds below 90 %)",
          (lambda row: row["layers"][2] < 0.9 * row["num_layers"],), lambda rows: [cheapest(rows)]),
    Claim("Agency and PRSC add ~10% overhead during inference", NOTES, STEP_TIMES,
          reso_views.overhead,
          "time of a decoding step of the PyTorch path: agency {agency:+.0%}, prsc {prsc:+.0%} "
          "(medians over seeds, busy machine)",
          (lambda row: row["total"] <= 2 * reso_views.OVERHEAD,)),  # twice 10 % is still ~
    Claim("Stability monitoring is lightweight", NOTES, "python -m benchmarks.studies.speed",
          reso_views.monitors_cost, "a token takes {cost:.0%} longer with all monitors of the "
          "engine, stability among them",
          (lambda row: row["cost"] <= reso_views.OVERHEAD,)),
    now("All enhanced features are optional and configurable, each with its own configuration "
        "dataclass", NOTES, "reso_llm/test_config", reso_now.optional),
    now("Entanglement is disabled by default", NOTES, "reso_llm/test_config",
        partial(reso_now.off_by_default, "entanglement")),
    now("Stochastic Resonance (disabled by default)", f"{README}, configuration",
        "reso_llm/test_config", partial(reso_now.off_by_default, "stochastic_resonance")),
    now("Presets: 4 layers, 256 dim; 8 layers, 512 dim; 24 layers, 1024 dim",
        f"{README}, configuration", "reso_llm/test_config", reso_now.presets),
    now("Every generation returns comprehensive metrics", f"{README}, generation result",
        "reso_llm/test_inference", reso_now.metrics),
    now("The calls of the quick start and the feature sections", QUICK_START, "test_seed_readme",
        reso_now.documented_calls),
    now("Default training dataset: openassistant-guanaco", f"{README}, introduction",
        "reso_llm/training/test_training", reso_now.default_data),
    now("The enhanced model is fully compatible with PyTorch autograd", f"{README}, training",
        "reso_llm/test_model", reso_now.autograd),
    Claim("Training works the same as v1", f"{README}, training",
          because="no version 1 is among the documents, so there is nothing to compare with"),
)  # fmt: skip
