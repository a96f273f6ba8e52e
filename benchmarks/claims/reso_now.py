"""Claims of the Reso-LLM v2 README that the package itself decides at once, without rows.

Each is a rule about configurations, or runs a model of two layers and random weights, and can come
out the other way if the package changes. What they show is that a thing exists and acts, not that
it helps: that is in reso.py.
"""

import math
from dataclasses import fields, replace

import torch

from entropy_core.primes import GOLDEN_RATIO, first_primes
from entropy_core.signals import Signals
from reso_llm.config import (
    STAGES,
    PRSCConfig,
    ResoLLMConfig,
    control_of,
    large_config,
    medium_config,
    small_config,
    with_stage,
)
from reso_llm.decoding.controllers import RowView, StochasticResonance
from reso_llm.generation.results import GenerationResult
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.session.concepts import ConceptSpace
from reso_llm.tokenizer import create_default_tokenizer
from reso_llm.training.config import OptimConfig, TrainConfig

Judged = tuple[str | bool, ...]  # a sentence, and what has to be true for the claim to hold
SIZES = {"small": (4, 256), "medium": (8, 512), "large": (24, 1024)}  # layers, width
RESULT = (
    "text", "tokens_generated", "stability", "lyapunov", "entropy_trace", "lyapunov_trace",
    "temperature_trace", "coherence_trace", "goals_achieved", "attention_summary", "warnings",
    "generation_time_ms",
)  # fmt: skip
TRACES = ("entropy_trace", "lyapunov_trace", "temperature_trace", "coherence_trace")
CALLS = {
    ResoLLMModel: ("create_goal", "get_attention_foci", "get_active_goals", "bind_concept",
                   "get_stability", "get_suggested_temperature", "update_memory"),
    ResoLLMInference: ("generate", "generate_with_goal", "interactive_session",
                       "generate_multi_agent"),
}  # fmt: skip


def small_model(config: ResoLLMConfig | None = None) -> ResoLLMModel:
    """Two layers, 32 wide, random weights; the global generator is left as it was."""
    config = replace(config or small_config(), dim=32, num_layers=2, max_seq_len=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResoLLMModel(config)


def presets() -> Judged:
    configs = {"small": small_config(), "medium": medium_config(), "large": large_config()}
    sizes = {name: (c.num_layers, c.dim) for name, c in configs.items()}
    words = ", ".join("{} {} layers, {} dim".format(name, *size) for name, size in sizes.items())
    return words, sizes == SIZES


def documented_calls() -> Judged:
    """Whether the documented methods exist; the test runs them as written."""
    names = [(owner, name) for owner, some in CALLS.items() for name in some]
    present = [callable(getattr(owner, name, None)) for owner, name in names]
    words = f"{sum(present)} of the {len(present)} documented methods exist"
    return f"{words}; the test runs every snippet", all(present)


def metrics() -> Judged:
    """Generate now: every documented field, and a trace value for every token."""
    known = {field.name for field in fields(GenerationResult)}
    model, tokenizer = small_model(), create_default_tokenizer()
    engine = ResoLLMInference(model.eval(), tokenizer, model.config)
    result = engine.generate("Hello", max_length=8, seed=0)
    present = [name for name in RESULT if name in known]
    full = [t for t in TRACES if len(getattr(result, t, ())) == result.tokens_generated > 0]
    words = (
        f"{len(present)} of {len(RESULT)} documented fields, {len(full)} of {len(TRACES)} traces "
        "with one value for every token"
    )
    return words, (present, full) == ([*RESULT], [*TRACES])


def optional() -> Judged:
    """Switch off each stage in turn, and all: the loss of a text is finite."""
    full = replace(small_config(), vocab_size=64)
    configs = [with_stage(full, stage, enabled=False) for stage in STAGES]
    configs.append(control_of(full))
    with torch.no_grad():
        finite = [bool(small_model(c).eval().loss(*_text()).isfinite()) for c in configs]
    own = {type(getattr(full, stage)) for stage in STAGES}
    words = (
        f"{sum(finite)} of {len(finite)} models work: each of {len(STAGES)} stages switched off, "
        f"and all; {len(own)} configuration classes"
    )
    return words, all(finite) and len(own) == len(STAGES)


def autograd() -> Judged:
    """Gradients of one training loss of a model with all stages."""
    model = small_model(replace(small_config(), vocab_size=64))
    goal = torch.randn(2, model.config.dim, generator=torch.Generator().manual_seed(0))
    model.loss(*_text(), goal=goal).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    got = [g for g in gradients if g is not None and g.isfinite().all()]
    words = f"{len(got)} of {len(gradients)} parameters get a finite gradient"
    return words, len(got) == len(gradients)


def _text() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (2,32) of random ids below 64."""
    ids = torch.randint(64, (2, 33), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]


def off_by_default(stage: str) -> Judged:
    on = getattr(ResoLLMConfig(), stage).enabled
    return f"{stage}: {'on' if on else 'off'}", not on


def default_data() -> Judged:
    name = TrainConfig(steps=1).data
    return f"the default of train.py is `{name}`", "guanaco" in name


def golden() -> Judged:
    """Look for powers of the golden ratio in the defaults."""
    config, optim = small_config(), OptimConfig()
    rates = (optim.matrix_lr, optim.embedding_lr, optim.head_lr, optim.scalar_lr)
    thresholds = config.prsc.coherence_threshold, config.coherence_gate.deep_share
    places = {
        "attention": math.isclose(config.rotary_base, GOLDEN_RATIO ** (config.head_dim / 4)),
        "learning rates": _is_golden(optim.decay_fraction)
        or any(_is_golden(a / b) for a in rates for b in rates),
        "thresholds": any(map(_is_golden, thresholds)),
        "gradient clipping": _is_golden(optim.grad_clip),
    }
    words = ", ".join(f"{place} {'yes' if golden else 'no'}" for place, golden in places.items())
    return f"in our defaults: {words}", *places.values()


def _is_golden(number: float) -> bool:
    """One of the first powers of the golden ratio, or their inverses."""
    return any(math.isclose(number, GOLDEN_RATIO**k) for k in (-2, -1, 1, 2))


def factorises() -> Judged:
    """Every token of the default tokenizer in one bag, multiplied and factorised."""
    tokenizer = create_default_tokenizer()
    ids = list(range(tokenizer.vocab_size))
    distinct = len(set(first_primes(tokenizer.vocab_size))) == len(ids)
    same = tokenizer.factorise(tokenizer.bag(ids)) == ids
    words = f"the product of all {len(ids):,} tokens' primes factorises into them"
    return words, distinct and same


def composes() -> Judged:
    """Take one concept out of the pattern of two: is the nearest of 200 the other?"""
    space = ConceptSpace(PRSCConfig(), vocab_size=4096)
    for i in range(200):
        space.bind_concept(f"concept {i}", token_id=4 * i)
    pairs = [(i, 199 - 7 * i) for i in range(5)]
    right = []
    for a, b in pairs:
        pattern = space.compose([f"concept {a}", f"concept {b}"]).pattern
        nearest = space.unbind(pattern, f"concept {a}", count=1).nearest[0]
        right.append(nearest.name == f"concept {b}")
    words = (
        f"from {sum(right)} of {len(right)} patterns of two concepts, given the one, the other is "
        "found among 200 (an algebra of names: no row says that the network uses it)"
    )
    return words, all(right)


def noise_in_loops_only() -> Judged:
    """The controller at its defaults, over scores of repetition from 0 to 1."""
    controller = StochasticResonance()
    calm = Signals(*[1.0] * len(Signals._fields))
    scores = [i / 100 for i in range(101)]
    acts = [controller.decide(RowView(calm, score, 0.8)) is not None for score in scores]
    first = next((score for score, act in zip(scores, acts, strict=True) if act), None)
    only = acts == sorted(acts) and not acts[0] and acts[-1]
    words = f"acts from a repetition score of {first} on, of 0 to 1" if only else "acts otherwise"
    return words, only
