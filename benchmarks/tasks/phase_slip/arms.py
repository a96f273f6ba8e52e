"""The prompts, and the ways of decoding that are compared.

An arm is a dict of fields of `reso_llm.generation.options.GenerationOptions`: temperature, top_k,
controllers. Without a word of its own it is greedy except at its slips. The 2 x 2 of noise and
temperature is greedy, noise alone, temperature alone, and the published sampler, which has both.
"""

import math
from typing import Any

from benchmarks.kit.writers import Arm
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import PhaseSlip, StochasticResonance
from reso_llm.generation.engine import Prompt

METHOD = "The scientific method is a process that"
SECRET_LAB = "The scientist opened the door to the secret lab and discovered"
PROMPTS: tuple[Prompt, ...] = (
    METHOD,
    SECRET_LAB,
    (("user", "Hello! How are you today?"),),
    (("user", "What did you do at the weekend?"),),
    (("user", "Tell me something about your family."),),
)
MORE_PROMPTS: tuple[Prompt, ...] = (
    "In the middle of the night the telephone rang and",
    "The history of the city begins with",
    "To bake a good loaf of bread, you need",
    "The main difference between the two species is",
    "When the train finally arrived, she",
    (("user", "What is the best way to learn a language?"),),
    (("user", "Why is the sky blue?"),),
    (("user", "Write a short story about a cat."),),
    (("user", "What do you like to cook?"),),
    (("user", "Can you explain how a bicycle works?"),),
)  # beside PROMPTS, to see how readily greedy decoding loops
CAUSES = ("spike", "stale", "loop")
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
PATIENCE = 4  # of the loop trigger, as chat.py has it


def slip(**changes: Any) -> Arm:
    """Greedy decoding with Phase-Slip: the published one with changes."""
    return {"temperature": 0.0, "controllers": (PhaseSlip.published(**changes),)}


def noise_only(scale: float) -> Arm:
    """Phase-Slip that heats the cache by `scale` and leaves the temperature alone."""
    return slip(slip_temperature=None, noise=CacheNoise(scale=scale))


def is_drawn(how: Arm) -> bool:
    """Whether a seed changes the texts of an arm."""
    controllers = how.get("controllers", ())
    return how["temperature"] > 0 or any(
        not isinstance(c, PhaseSlip) or c.noise.scale > 0 or c.slip_temperature is not None
        for c in controllers
    )


GREEDY, TOP_K, PUBLISHED = "greedy", "sampling, T 0.7, top-k 50", "slip, published"
HEAT, NOISE = "slip, temperature only", "slip, noise 0.03 only"
AT_LOOPS = "slip, and at loops"
CURVE = {0.0: GREEDY} | {t: f"sampling, T {t:g}" for t in TEMPERATURES}
ARMS: dict[str, Arm] = {
    GREEDY: {"temperature": 0.0},
    TOP_K: {"temperature": 0.7, "top_k": 50},
    **{CURVE[t]: {"temperature": t} for t in TEMPERATURES},
    PUBLISHED: slip(),
    HEAT: slip(noise=CacheNoise(scale=0.0)),
    NOISE: noise_only(0.03),
    "slip, noise 0.1 only": noise_only(0.1),
    "slip, noise 0.3 only": noise_only(0.3),
    "slip, noise 1 only": noise_only(1.0),
    "slip, values only": slip(noise=CacheNoise(values_only=True)),
    "slip, prompt protected": slip(noise=CacheNoise(protect_prompt=True)),
    AT_LOOPS: slip(loop_patience=PATIENCE),
    "slip, at loops alone": slip(
        loop_patience=PATIENCE, spike_nats=math.inf, stale_steps=math.inf
    ),
    "slip, at loops of any entropy": slip(
        loop_patience=PATIENCE, loop_nats=math.inf, spike_nats=math.inf, stale_steps=math.inf
    ),
    "stochastic resonance": {"temperature": 0.0, "controllers": (StochasticResonance(),)},
}  # fmt: skip
PUBLISHED_ARMS = (GREEDY, TOP_K, PUBLISHED)
PUBLISHED_DIVERSITY = {GREEDY: 0.26, TOP_K: 0.59, PUBLISHED: 0.60}  # of GPT-2 small
SQUARE = (GREEDY, NOISE, HEAT, PUBLISHED)  # noise x temperature
QUICK = (GREEDY, CURVE[0.8], PUBLISHED)
BRIEF = (  # the most telling first: a run may be stopped
    GREEDY, PUBLISHED, HEAT, NOISE, *(CURVE[t] for t in (1.0, 0.4, 0.8, 0.2, 0.6)), TOP_K,
    AT_LOOPS, "slip, noise 1 only", "slip, at loops alone",
)  # fmt: skip
