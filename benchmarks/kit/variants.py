"""The compared models by name: the full stack, the control, single stages, GPT-2."""

import functools

from benchmarks.kit.learners import Learner, Task, gpt2_learner, reso_learner
from reso_llm.config import NEEDS, TRAINED_STAGES, ResoLLMConfig, control_of, with_stage

GPT2 = {"gpt2": False, "gpt2 + echo": True}


def variants(config: ResoLLMConfig) -> dict[str, ResoLLMConfig]:
    """By name: full, control, full without each trained stage, control with each.

    full has every trained stage, those too that are off by default.
    """
    full = functools.reduce(lambda c, stage: with_stage(c, stage, True), TRAINED_STAGES, config)
    configs = {"full": full, "control": control_of(full)}
    for stage in TRAINED_STAGES:
        configs[f"full - {stage}"] = with_stage(full, stage, enabled=False)
        configs[f"control + {stage}"] = with_stage(control_of(full), stage, enabled=True)
    return configs


def learner_of(task: Task, variant: str, seed: int, device: str = "cpu") -> Learner:
    """A new learner of one of `variants`, or of GPT2."""
    if variant in GPT2:
        return gpt2_learner(task, seed, GPT2[variant], device)
    return reso_learner(task, variants(task.config)[variant], seed, device)


def reference_of(variant: str) -> str:
    """What a variant is compared with: the same but for its stage."""
    if variant.startswith("full - "):
        return "full"
    needed = NEEDS.get(variant.removeprefix("control + "))
    return f"control + {needed}" if needed else "control"
