"""Training: one loop over optimizer steps, and what is due between them.

    RUN/config.yaml  environment.json  metrics.jsonl  loss.png  best.json  checkpoints/  wandb/

`learner.py` takes the steps, `saving.py` keeps the checkpoints, `validation.py` scores the model.
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from reso_llm.data.token_cache import TokenData
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training import saving
from reso_llm.training.config import TrainConfig
from reso_llm.training.evaluation import LanguageModelScore
from reso_llm.training.initial import Initial
from reso_llm.training.learner import Learner, StepResult
from reso_llm.training.saving import Counters
from reso_llm.training.validation import final_score, quick_score, sample
from run_core.run import Report, TrainingError, catch_signals
from run_core.runlog import RunLog, read_metrics

LN2 = math.log(2)


@dataclass(frozen=True)
class TrainSummary:
    """How a run ended: all of the validation data scored, or the signal that stopped it."""

    step: int
    seconds: float
    validation: LanguageModelScore | None
    stopped_by: str | None


@dataclass
class Recent:
    """Sums over the steps since the last row of metrics."""

    started: float
    loss: float = 0.0
    steps: int = 0  # that moved the parameters
    tokens: int = 0


class Trainer:
    """A learner, its counters and the records of one run."""

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: ResoTokenizer,
        data: TokenData,
        device: torch.device,
        report: Report,
        initial: Initial | None = None,
    ) -> None:
        self.config, self.tokenizer, self.data = config, tokenizer, data
        self.report = report
        self.learner = Learner(config, data, device, initial)
        self.counters = Counters()

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; TrainingError naming what differs from this run."""
        self.counters = saving.restore(self.learner, path)
        self.report(f"resuming from {path} at step {self.counters.step:,}")

    def run(self) -> TrainSummary:
        """Train until the budget is used up, or until SIGINT or SIGTERM."""
        self.clock_zero = time.perf_counter() - self.counters.seconds
        signals = catch_signals(self.report)
        with signals as caught, self._open_log() as self.log, self._progress_bar() as bar:
            self.recent = Recent(time.perf_counter())
            while not caught and self._progress() < 1:
                self.train_step()
                bar.update(round(self._progress() * bar.total) - bar.n)
                if self._progress() < 1:  # what is due after the last step, _finish does once
                    self._after_step(bar)
            return self._finish(caught)

    def train_step(self) -> None:
        """One optimizer step and its counters; a step that is not finite is counted as skipped."""
        result = self.learner.step(self._progress())
        c, recent = self.counters, self.recent
        c.step += 1
        c.tokens += result.tokens
        c.position = self.learner.stream.position
        c.seconds = self._seconds()
        recent.tokens += result.tokens
        if result.problem is not None:
            self._skip(result)
            return
        c.bad_steps_in_a_row = 0
        recent.loss += result.loss_nats
        recent.steps += 1

    def _skip(self, result: StepResult) -> None:
        c = self.counters
        c.skipped_steps += 1
        c.bad_steps_in_a_row += 1
        message = f"step {c.step} skipped: {result.problem} is not finite"
        if c.bad_steps_in_a_row >= self.config.max_bad_steps:
            self._log_training(None)
            raise TrainingError(
                f"{message}, {c.bad_steps_in_a_row} in a row; nothing of them was learnt or saved: "
                "--resume with lower learning rates (optim.*_lr), or look at the data"
            )
        self.report(message)

    def _after_step(self, bar: tqdm) -> None:
        """Log, validate and save where it is due after this step."""
        c, config = self.counters, self.config
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
        """Save the last step; score all of the validation data unless a signal came."""
        c = self.counters
        self._log_training(None)
        if caught:
            self._save()
            self.report(f"stopped by {caught[0]} at step {c.step}; --resume goes on")
            return TrainSummary(c.step, c.seconds, None, caught[0])
        if not self._is_logged("validation_bits_per_byte"):
            self._validate()
        self._save()
        score = final_score(self.learner.model, self.data.val, caught, self.report)
        if score is None:
            return TrainSummary(c.step, c.seconds, None, caught[0])
        if not self._is_logged("final_bits_per_byte"):
            final = {f"final_{name}": value for name, value in score.to_dict().items()}
            self.log.log({"step": c.step, **final})
        return TrainSummary(c.step, c.seconds, score, None)

    def _is_logged(self, name: str) -> bool:
        """Whether this step has `name` already: a finished run that is resumed repeats no row."""
        rows = read_metrics(self.log.path)
        return any(name in row for row in rows if row["step"] == self.counters.step)

    def _save(self) -> None:
        saving.save(self.learner, self.tokenizer, self.counters)

    def _validate(self) -> None:
        """Score the head of the validation data, note the best step, and show a sample."""
        started = time.perf_counter()
        c, model = self.counters, self.learner.model
        score = quick_score(model, self.data.val, self.config)
        text = sample(model, self.tokenizer, self.config)
        self.log.log(
            {
                "step": c.step,
                "tokens": c.tokens,
                "seconds": c.seconds,
                "validation_bits_per_byte": score.bits_per_byte,
                "validation_nats_per_token": score.nats_per_token,
                "sample": text,
            }
        )
        self.log.plot()
        self.report(f"step {c.step:,}: validation {score.bits_per_byte:.4f} bits/byte")
        if text:
            self.report(f"  {self.config.sample_prompt!r} -> {text!r}")
        self.recent.started += time.perf_counter() - started  # tokens/s is of training alone
        # All text is scored, which says little about a run that learns replies alone: its newest
        # checkpoint is the one to use.
        if self.config.replies_only or score.bits_per_byte < c.best_bits_per_byte:
            c.best_bits_per_byte, c.best_step = score.bits_per_byte, c.step

    def _log_training(self, bar: tqdm | None) -> None:
        """A row of metrics over the steps since the last one, shown beside the bar as well."""
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
            "epoch": self.learner.stream.epoch,
            "skipped_steps": c.skipped_steps,
        }
        self.log.log(row)
        self.recent = Recent(now)
        if bar is not None:
            bar.set_postfix_str(_postfix(row))

    def _bits_per_byte(self, loss: float) -> float:
        """Of training text; NaN where the loss is of its replies only, whose bytes are unknown."""
        if self.config.replies_only:
            return math.nan
        return loss / LN2 * self.data.train.num_tokens / self.data.train.num_bytes

    def _seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.perf_counter() - self.clock_zero

    def _progress(self) -> float:
        c = self.counters
        return self.config.progress(c.step, c.tokens, c.seconds)

    def _open_log(self) -> RunLog:
        return RunLog(
            self.config.out,
            resume_step=self.counters.step or None,
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


def _postfix(row: dict[str, float]) -> str:
    """What the bar shows of a row; a number that is not known is left out."""
    shown = {
        f"loss {row['loss_nats']:.3f}": row["loss_nats"],
        f"{row['bits_per_byte']:.3f} bits/byte": row["bits_per_byte"],
        f"{row['tokens_per_second']:,.0f} tok/s": row["tokens_per_second"],
    }
    return ", ".join(text for text, value in shown.items() if math.isfinite(value))
