"""Training: one loop from a configuration to a run directory.

    RUN/config.yaml  environment.json  metrics.jsonl  loss.png  best.json  checkpoints/  wandb/

A checkpoint holds everything the next step depends on: weights, optimizer state, generators,
position in the data, counters, configuration and tokenizer. So a run killed at any moment and
resumed ends with the same weights, bit for bit, on the same CPU (with a budget in steps or
tokens; a budget in minutes makes the schedule follow the clock).
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from reso_llm.data.conversation import Message
from reso_llm.data.token_cache import TokenData
from reso_llm.data.windows import Batch, BatchStream
from reso_llm.generation.engine import Engine
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training.calibration import goal_calibration
from reso_llm.training.config import RESUMABLE, TrainConfig
from reso_llm.training.evaluation import LanguageModelScore, head_of, score_split
from reso_llm.training.objective import training_loss
from reso_llm.training.optim import make_optimizers, match_layout, set_learning_rate
from run_core import checkpoint, run
from run_core.hardware import autocast, keep_freed_memory
from run_core.run import Report, TrainingError, catch_signals, changed_keys
from run_core.runlog import RunLog, read_metrics
from run_core.saved_state import flatten_state, rng_state, set_rng_state, unflatten_state

LN2 = math.log(2)


@dataclass
class Counters:
    """How far a run is; all of it is saved."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    position: int = 0
    skipped_steps: int = 0
    bad_steps_in_a_row: int = 0
    best_bits_per_byte: float = math.inf
    best_step: int | None = None


@dataclass(frozen=True)
class TrainSummary:
    """How a run ended: all of the validation data scored, or the signal that stopped it."""

    step: int
    seconds: float
    validation: LanguageModelScore | None
    stopped_by: str | None


@dataclass
class _Recent:
    """Sums since the last row of metrics."""

    started: float
    loss: float = 0.0
    steps: int = 0
    tokens: int = 0


# --- before the first step ------------------------------------------------------------------------


# --- the loop -------------------------------------------------------------------------------------


class Trainer:
    """Model, optimizers, data and counters of one run."""

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: ResoTokenizer,
        data: TokenData,
        device: torch.device,
        report: Report,
    ) -> None:
        keep_freed_memory()
        torch.manual_seed(config.seed)
        self.config, self.tokenizer, self.data = config, tokenizer, data
        self.device, self.report = device, report
        self.model = ResoLLMModel(config.model).to(device)
        self.optimizers = make_optimizers(self.model, config.optim)
        self.counters = Counters()
        self.model.fit_bindings(data.train.tokens)
        if config.compile:
            self.model.loss = torch.compile(self.model.loss)
        self.stream = self._stream_at(0)

    def run(self) -> TrainSummary:
        """Train until the budget is used up, or until SIGINT or SIGTERM."""
        self.clock_zero = time.perf_counter() - self.counters.seconds
        signals = catch_signals(self.report)
        with signals as caught, self._open_log() as self.log, self._progress_bar() as bar:
            self.recent = _Recent(time.perf_counter())
            while not caught and self._progress() < 1:
                self.train_step()
                self._after_step(bar)
            return self._finish(caught)

    def train_step(self) -> None:
        """One optimizer step, or none where the loss or a gradient is not finite."""
        c, config = self.counters, self.config
        set_learning_rate(self.optimizers, config.optim.schedule(self._progress()))
        loss = sum(self._backward() for _ in range(config.grad_accumulation))
        problem = self._clip(loss)
        if problem is None:
            for optimizer in self.optimizers.values():
                optimizer.step()
            c.bad_steps_in_a_row = 0
            self.recent.loss += loss
            self.recent.steps += 1
        self.model.zero_grad(set_to_none=True)
        c.step += 1
        c.position = self.stream.position
        c.seconds = self._seconds()
        if problem is not None:
            self._skip(problem)

    def _backward(self) -> float:
        """Gradient of one pass; its share of the step's mean loss in nats per token."""
        # Seeded by the place in the data, so that a resumed run draws the same. 32 bits are all
        # that torch reads of a seed.
        place = self.config.seed * 2654435761 + self.stream.position
        generator = torch.Generator().manual_seed(place % 2**32)
        progress = self._progress()
        batch = Batch(*(t.to(self.device) for t in self.stream.next()))
        self.counters.tokens += batch.inputs.numel()
        self.recent.tokens += batch.inputs.numel()
        with autocast(self.device):
            replies_only = self.config.replies_only
            loss = training_loss(self.model, batch, generator, replies_only, progress)
        loss = loss / self.config.grad_accumulation
        loss.backward()
        return loss.item()

    def _clip(self, loss: float) -> str | None:
        """Clip the gradients; what is not finite, and then they are left as they are."""
        if not math.isfinite(loss):
            return "the loss"
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm):
            return f"the gradient of {_first_bad_gradient(self.model)}"
        clip = self.config.optim.grad_clip
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), clip, norm)
        return None

    def _skip(self, problem: str) -> None:
        c = self.counters
        c.skipped_steps += 1
        c.bad_steps_in_a_row += 1
        message = f"step {c.step} skipped: {problem} is not finite"
        if c.bad_steps_in_a_row >= self.config.max_bad_steps:
            self._log_training(None)
            raise TrainingError(
                f"{message}, {c.bad_steps_in_a_row} in a row; nothing of them was learnt or saved: "
                "--resume with lower learning rates (optim.*_lr), or look at the data"
            )
        self.report(message)

    def _after_step(self, bar: tqdm) -> None:
        c, config = self.counters, self.config
        bar.update(round(self._progress() * bar.total) - bar.n)
        if self._progress() >= 1:
            return  # what is due after the last step is done once, by _finish
        validate = c.step % config.validate_every == 0
        save = c.step % config.save_every == 0
        if save or validate or c.step % config.log_every == 0:
            self._log_training(bar)
        if validate:
            self._validate()
            c.seconds = self._seconds()
        if save or c.best_step == c.step:
            self._save()

    def _finish(self, caught: list[str]) -> TrainSummary:
        c = self.counters
        self._log_training(None)
        if caught:
            self._save()
            self.report(f"stopped by {caught[0]} at step {c.step}; --resume goes on")
            return TrainSummary(c.step, c.seconds, None, caught[0])
        if not self._is_logged("validation_bits_per_byte"):
            self._validate()
        self._save()
        self.report(f"scoring all {self.data.val.num_tokens:,} validation tokens")
        score = self._final_score(caught)
        if score is None:
            return TrainSummary(c.step, c.seconds, None, caught[0])
        if not self._is_logged("final_bits_per_byte"):
            final = {f"final_{name}": value for name, value in score.to_dict().items()}
            self.log.log({"step": c.step, **final})
        return TrainSummary(c.step, c.seconds, score, None)

    def _final_score(self, caught: list[str]) -> LanguageModelScore | None:
        """All of the validation data scored; None where a signal comes first: all is saved."""

        def tell(count: int) -> None:
            bar.update(count)
            if caught:
                raise KeyboardInterrupt

        with tqdm(total=self.data.val.num_tokens, desc="scoring", unit="token", leave=False) as bar:
            try:
                return score_split(self.model, self.data.val, progress=tell)
            except KeyboardInterrupt:
                self.report("not all of the validation data was scored; --resume does it")
                return None

    def _is_logged(self, name: str) -> bool:
        """Whether this step has `name` already: a finished run that is resumed repeats no row."""
        rows = read_metrics(self.log.path)
        return any(name in row for row in rows if row["step"] == self.counters.step)

    # --- records

    def _log_training(self, bar: tqdm | None) -> None:
        c, recent = self.counters, self.recent
        if not recent.tokens:
            return
        now = time.perf_counter()
        loss = recent.loss / recent.steps if recent.steps else math.nan
        row = {
            "step": c.step,
            "tokens": c.tokens,
            "seconds": c.seconds,
            "loss_nats": loss,
            "bits_per_byte": self._bits_per_byte(loss),
            "tokens_per_second": recent.tokens / (now - recent.started),
            "learning_rate_factor": self.config.optim.schedule(self._progress()),
            "epoch": self.stream.epoch,
            "skipped_steps": c.skipped_steps,
        }
        self.log.log(row)
        self.recent = _Recent(now)
        if bar is not None:
            bar.set_postfix_str(
                f"loss {loss:.3f}, {row['bits_per_byte']:.3f} bits/byte, "
                f"{row['tokens_per_second']:,.0f} tok/s"
            )

    def _validate(self) -> None:
        """Score the head of the validation data, note the best step, and show a sample."""
        started = time.perf_counter()
        c = self.counters
        score = score_split(self.model, head_of(self.data.val, self.config.validate_tokens))
        row = {
            "step": c.step,
            "tokens": c.tokens,
            "seconds": c.seconds,
            "validation_bits_per_byte": score.bits_per_byte,
            "validation_nats_per_token": score.nats_per_token,
            "sample": self._sample(),
        }
        self.log.log(row)
        self.log.plot()
        self.report(f"step {c.step:,}: validation {score.bits_per_byte:.4f} bits/byte")
        if row["sample"]:
            self.report(f"  {self.config.sample_prompt!r} -> {row['sample']!r}")
        self.recent.started += time.perf_counter() - started  # tokens/s is of training alone
        # All text is scored, which says little about a run that learns replies alone: its newest
        # checkpoint is the one to use.
        if self.config.replies_only or score.bits_per_byte < c.best_bits_per_byte:
            c.best_bits_per_byte, c.best_step = score.bits_per_byte, c.step

    def _sample(self) -> str:
        if not self.config.sample_prompt:
            return ""
        engine = Engine(self.model, self.tokenizer, self.config.model)
        prompt = [Message("user", self.config.sample_prompt)]
        length = self.config.sample_length
        result = engine.generate(prompt, length, temperature=0.7, seed=0, metrics=False)
        self.model.train()
        return result.text

    def _save(self) -> None:
        try:
            self._save_checkpoint()
        except ValueError as error:  # non-finite weights after a finite loss
            raise TrainingError(
                f"step {self.counters.step}: {error}; --resume from the checkpoint before it with "
                "lower learning rates (optim.*_lr)"
            ) from error
        self._record_best()
        run.prune(self.config.out, self.config.keep_last, keep_best=True)

    def _record_best(self) -> None:
        c = self.counters
        if c.best_step == c.step:
            run.record_best(self.config.out, c.step, c.best_bits_per_byte)

    def _save_checkpoint(self) -> None:
        state = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state["generators"] = rng_state({})
        tensors, document = flatten_state(state)
        c = self.counters
        run.save_checkpoint(
            self.config.out,
            c.step,
            tensors={"model": self.model.state_dict(), "optimizer": tensors},
            documents={
                "config.json": self.config.model.to_dict(),
                "tokenizer.json": self.tokenizer.to_json(),
                "training.json": {
                    "counters": vars(c) | {"best_bits_per_byte": _or_none(c.best_bits_per_byte)},
                    "tokenizer_fingerprint": self.tokenizer.fingerprint,
                    "goal_calibration": self._goal_calibration(),
                    "data": self.data.path.name,
                    "config": self.config.to_dict(),
                    "state": document,
                },
            },
        )

    def _goal_calibration(self) -> dict[str, float] | None:
        if self.model.goal is None:
            return None
        with torch.no_grad():
            found = goal_calibration(self.data.train, self.model.embedding.weight)
        return found and found._asdict()

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint; TrainingError naming what differs from this run."""
        tensors, documents = checkpoint.load_checkpoint(path, parts=("model", "optimizer"))
        training = documents["training.json"]
        changed = changed_keys(training["config"], self.config.to_dict(), RESUMABLE)
        if changed:
            raise TrainingError(
                f"{path} was trained with another configuration: {', '.join(changed)}; resume "
                "without these options, or start a new run with another --out"
            )
        if training["data"] != self.data.path.name:
            raise TrainingError(f"the content of {self.config.data} changed since {path} was saved")
        self.model.load_weights(tensors["model"], path)
        state = unflatten_state(tensors["optimizer"], training["state"])
        for name, optimizer in self.optimizers.items():
            for own, saved in zip(optimizer.param_groups, state[name]["param_groups"], strict=True):
                saved["peak_lr"] = own["peak_lr"]  # the learning rates may be lowered on the way
            optimizer.load_state_dict(state[name])
            match_layout(optimizer)
        set_rng_state(state["generators"], {})
        counters = training["counters"]
        if counters["best_bits_per_byte"] is None:
            counters["best_bits_per_byte"] = math.inf
        self.counters = Counters(**counters)
        self.stream = self._stream_at(self.counters.position)
        self._record_best()  # a kill may have come between saving it and noting that it is best
        self.report(f"resuming from {path} at step {self.counters.step:,}")

    # --- small questions

    def _seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.perf_counter() - self.clock_zero

    def _progress(self) -> float:
        c = self.counters
        return self.config.progress(c.step, c.tokens, c.seconds)

    def _bits_per_byte(self, loss: float) -> float:
        """Of training text; NaN where the loss is of its replies only, whose bytes are unknown."""
        if self.config.replies_only:
            return math.nan
        return loss / LN2 * self.data.train.num_tokens / self.data.train.num_bytes

    def _stream_at(self, position: int) -> BatchStream:
        context, seed = self.config.model.max_seq_len, self.config.seed
        return BatchStream(self.data.train, context, self.config.batch_size, seed, position)

    def _open_log(self) -> RunLog:
        step = self.counters.step
        return RunLog(
            self.config.out,
            resume_step=step or None,
            wandb=self.config.wandb,
            config=self.config.to_dict(),
            report=self.report,
        )

    def _progress_bar(self) -> tqdm:
        return tqdm(
            desc="training",
            total=1000,
            initial=round(self._progress() * 1000),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            file=sys.stderr,
        )


def _first_bad_gradient(model: ResoLLMModel) -> str:
    names = (n for n, p in model.named_parameters() if not _is_finite(p.grad))
    return next(names, "all parameters together")


def _is_finite(grad: Tensor | None) -> bool:
    return grad is None or bool(torch.isfinite(grad).all())


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
