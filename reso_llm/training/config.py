"""Configuration of a training run: what to train on, for how long, and how to optimise."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from entropy_core.checks import require
from entropy_core.primes import GOLDEN_RATIO
from reso_llm.config import ResoLLMConfig

BUDGETS = ("minutes", "steps", "tokens", "epochs")
# Keys that may change when a run is resumed: its budget, its place, how it is watched. Every other
# key changes the weights.
RESUMABLE = {
    "kind", "data", "val_data", "columns", "out", *BUDGETS, "validate_every", "save_every",
    "log_every", "keep_last",
    "sample_prompt", "sample_length", "validate_tokens", "wandb", "device", "compile",
    "shard", "activation_checkpointing",
    # Lower learning rates let a run go on that stopped at steps that were not finite.
    "max_bad_steps", "optim.matrix_lr", "optim.embedding_lr", "optim.head_lr", "optim.scalar_lr",
}  # fmt: skip


@dataclass(frozen=True)
class OptimConfig:
    """Learning rates of Muon (matrices) and AdamW (the rest), and their shared schedule.

    `optim.learning_rate_factor` is the schedule: the rate rises for warmup_fraction of the budget,
    stays, and falls linearly to zero over the last decay_fraction. Gradients are clipped to
    grad_clip in global norm.
    """

    matrix_lr: float = 0.02
    embedding_lr: float = 0.01
    head_lr: float = 0.004
    scalar_lr: float = 0.01
    momentum: float = 0.95
    beta2: float = 0.95
    weight_decay: float = 0.0
    polar_steps: int = 5
    warmup_fraction: float = 0.01
    decay_fraction: float = 1 / GOLDEN_RATIO
    grad_clip: float = 1 / GOLDEN_RATIO

    def __post_init__(self) -> None:
        for name in ("matrix_lr", "embedding_lr", "head_lr", "scalar_lr", "grad_clip"):
            require(getattr(self, name) > 0, f"optim.{name}", getattr(self, name), "above 0")
        for name in ("momentum", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.{name}", value, "from 0 to below 1")
        for name in ("warmup_fraction", "decay_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"optim.{name}", value, "from 0 to 1")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        require(self.polar_steps in (3, 5), "optim.polar_steps", self.polar_steps, "3 or 5")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. At least one budget is needed; the first that is used up ends the run.

    Args:
        kind: what is trained; a configuration of kind reactor is cer's.
        data: guanaco, sample, a file, a directory, a glob, a hub id (:subset @split), or a+b.
        val_data: validation data; without it, val_fraction of the documents are held out.
        columns: what the data's columns hold, as in prompt=question,reply=answer,system=rules.
        val_fraction: share of the data held out for validation.
        on_bad_row: stop at a bad row, or skip it and list it.
        tokenizer: a tokenizer.json, or default; without it one is trained on the data.
        init_from: a run or checkpoint whose weights and tokenizer to start from.
        keep_memory: take over the binding memory of init_from instead of counting the new data.
        replies_only: take the loss on the assistant's tokens only.
        out: directory of the run.
        seed: of initialisation, dropout and the order of the data.
        minutes: budget in minutes from the first step on, with validating and saving in between.
        steps: budget in optimizer steps.
        tokens: budget in training tokens.
        epochs: budget in passes over the training data.
        batch_size: windows of max_seq_len tokens in one pass.
        grad_accumulation: passes for one optimizer step.
        validate_every: steps between validations.
        validate_tokens: validate on the first so many tokens; the end of a run uses all.
        save_every: steps between checkpoints.
        keep_last: checkpoints kept beside the best one.
        log_every: steps between rows of metrics.jsonl.
        sample_prompt: what the sample at each validation answers; empty for no sample.
        sample_length: tokens of that sample.
        max_bad_steps: stop after so many non-finite steps in a row.
        wandb: where the run is also logged.
        device: cpu, cuda, or auto.
        compile: compile the loss with torch.compile.
        shard: share weights, gradients and optimizers between processes (FSDP2).
        activation_checkpointing: compute the blocks again in the backward pass, for less memory.
        optim: optimizers and schedule.
        model: shape of the model.
    """

    kind: Literal["language_model"] = "language_model"
    data: str = "guanaco"
    val_data: str | None = None
    columns: str | None = None
    val_fraction: float = 0.05
    on_bad_row: Literal["error", "skip"] = "error"
    tokenizer: str | None = None
    init_from: str | None = None
    keep_memory: bool = False
    replies_only: bool = False
    out: str = "runs/latest"
    seed: int = 0
    minutes: float | None = None
    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    grad_accumulation: int = 1
    validate_every: int = 200
    validate_tokens: int = 20_000
    save_every: int = 200
    keep_last: int = 2
    log_every: int = 10
    sample_prompt: str = "Hello! How are you?"
    sample_length: int = 48
    max_bad_steps: int = 10
    wandb: Literal["offline", "online", "disabled"] = "offline"
    device: str = "auto"
    compile: bool = False
    shard: bool = False
    activation_checkpointing: bool = False
    optim: OptimConfig = field(default_factory=OptimConfig)
    model: ResoLLMConfig = field(default_factory=ResoLLMConfig)

    def __post_init__(self) -> None:
        counts = (
            "batch_size", "grad_accumulation", "validate_every", "validate_tokens", "save_every",
            "keep_last", "log_every", "max_bad_steps", "sample_length",
        )  # fmt: skip
        for name in counts:
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        budgets = {name: getattr(self, name) for name in BUDGETS}
        for name, value in budgets.items():
            require(value is None or value > 0, name, value, "above 0")
        if not any(budgets.values()):
            raise ValueError(f"no budget: give {', '.join(BUDGETS)}, for example --minutes 8")
        require(
            self.init_from is not None or not self.keep_memory,
            "keep_memory",
            self.keep_memory,
            "false without init_from",
        )
        given = self.init_from is not None and self.tokenizer is not None
        require(not given, "tokenizer", self.tokenizer, "nothing: init_from brings its tokenizer")
        for name in ("data", "out"):
            require(bool(getattr(self, name).strip()), name, getattr(self, name), "a name")
        known = re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device)
        require(bool(known), "device", self.device, "auto, cpu or cuda")
        require(0 < self.val_fraction < 1, "val_fraction", self.val_fraction, "between 0 and 1")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2^32 - 1")

    def progress(self, steps: int, tokens: int, seconds: float, epochs: float) -> float:
        """Share of the budget used, 1 when a budget is used up."""
        used = (seconds / 60, steps, tokens, epochs)
        budgets = (getattr(self, name) for name in BUDGETS)
        return min(1.0, max(u / budget for u, budget in zip(used, budgets, strict=True) if budget))

    def finished_at(self, step: int) -> str:
        """One line that a run which used its budget is finished, and how it goes on."""
        used = {name: getattr(self, name) for name in BUDGETS if getattr(self, name)}
        name, value = next(iter(used.items()))
        return (
            f"{self.out} is finished at step {step:,} "
            f"({', '.join(f'{n} = {v}' for n, v in used.items())}); "
            f"to go on give a larger budget, for example --resume --{name} {2 * value}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as nested plain values."""
        return dataclasses.asdict(self)


def completed(saved: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """A saved configuration with the defaults of the keys that came after it was saved."""
    defaults = TrainConfig(steps=1).to_dict() if defaults is None else defaults
    nested = {
        key: completed(saved.get(key, {}), value)
        for key, value in defaults.items()
        if isinstance(value, dict)
    }
    return defaults | saved | nested
