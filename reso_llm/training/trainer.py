"""Training: one loop over optimizer steps, with logging, validating and saving between them.

    RUN/config.yaml  environment.json  metrics.jsonl  loss.png  best.json  checkpoints/  wandb/

`learner.py` takes the steps, `saving.py` keeps the checkpoints, `validation.py` scores the model,
`meter.py` measures loss and speed.
"""

import math
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from reso_llm.data.token_cache import TokenData
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training import saving
from reso_llm.training.config import TrainConfig
from reso_llm.training.evaluation import LanguageModelScore
from reso_llm.training.initial import Initial
from reso_llm.training.learner import Learner, StepResult
from reso_llm.training.meter import Meter
from reso_llm.training.optim import learning_rate_factor
from reso_llm.training.saving import Counters
from reso_llm.training.validation import final_score, quick_score, sample
from run_core.hardware import release_freed_memory
from run_core.run import Report, TrainingError
from run_core.runlog import RunLog, read_metrics
from run_core.signals import Abandoned, StopRequests, catch_signals
from run_core.terminal import progress_bar
from run_core.world import ALONE, World

LN2 = math.log(2)
PICTURE = "loss.png"
RELEASE_EVERY = 100  # steps


@dataclass(frozen=True)
class TrainSummary:
    """End of a run: the score on all validation data, or the signal that stopped it."""

    step: int
    seconds: float
    validation: LanguageModelScore | None
    stopped_by: str | None

    def told(self, out: str) -> str:
        """The last lines of a finished run in `out`: score, picture, and what to do next."""
        picture = Path(out, PICTURE)
        score = self.validation.bits_per_byte
        lines = [
            f"{out}: {self.step:,} steps in {self.seconds / 60:.1f} minutes",
            f"validation: {score:.4f} bits/byte on all of its text, lower is better",
            f"picture: {picture}" if picture.is_file() else "",
            f"next: reso chat --checkpoint {out}",
        ]
        return "\n".join(filter(None, lines))


class Trainer:
    """A learner, its counters and the records of one run.

    In a `world` of several processes all train, and count alike; the first alone validates, logs
    and saves, and its clock is that of all.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: ResoTokenizer,
        data: TokenData,
        device: torch.device,
        report: Report,
        initial: Initial | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.tokenizer, self.data = config, tokenizer, data
        self.report, self.world = report, world
        self.learner = Learner(config, data, device, initial, world)
        self.learner.model.embedding.read_names(tokenizer.names)
        self.counters, self.stops = Counters(), StopRequests()

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; TrainingError naming what differs from this run."""
        self.counters = saving.restore(self.learner, path)
        self.report(f"resuming from {path} at step {self.counters.step:,}")

    def run(self) -> TrainSummary:
        """Train until the budget is used up, or until a signal asks to stop."""
        self.clock_zero = time.perf_counter() - self.counters.seconds
        signals, log = catch_signals(self.report), nullcontext()
        if self.world.is_first:
            log = self._open_log()
        with signals as self.stops, log as self.log, self._progress_bar() as bar:
            self.learner.abandonable = self.stops.abandonable
            self.meter = Meter(self.report)
            self._catch_up()
            if self._progress() >= 1:
                self.report(self.config.finished_at(self.counters.step))
            while self._signal() is None and self._progress() < 1:
                before = self.counters.step
                self.train_step()
                if self.counters.step == before:
                    break  # given up for a signal
                bar.update(round(self._progress() * bar.total) - bar.n)
                if self._progress() < 1:  # _finish logs, validates and saves after the last step
                    self._after_step(bar)
            return self._finish()

    def train_step(self) -> None:
        """One optimizer step and its counters; a step that is not finite is counted as skipped.

        A step that takes too long after a signal is abandoned and changes nothing.
        """
        c = self.counters
        try:
            result = self.learner.step(self._progress())
        except Abandoned:
            self.learner.go_to(c.position)
            return
        c.step += 1
        c.tokens += result.tokens
        c.position = self.learner.stream.position
        c.seconds = self._seconds()
        self.meter.add(result)
        if result.problem is not None:
            self._skip(result)
        else:
            c.bad_steps_in_a_row = 0

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
        if validate and self._validate():
            c.seconds = self._seconds()
        if save or c.best_step == c.step:
            self._save()
        if c.step % RELEASE_EVERY == 0:
            release_freed_memory()

    def _catch_up(self) -> None:
        """Do the validation that was due at this step, where a signal came before it."""
        c = self.counters
        if not c.step or c.step % self.config.validate_every or self._progress() >= 1:
            return
        logged = self._logged("validation_bits_per_byte")
        if logged is None:
            self._validate()
        else:
            self._note_best(logged)
        if self.world.is_first:
            saving.record_best(self.config.out, c)

    def _finish(self) -> TrainSummary:
        """Save the last step; score all of the validation data unless a signal came."""
        c = self.counters
        if self._signal() is not None:
            return self._stop()
        self._log_training(None)
        if self._logged("validation_bits_per_byte") is None and not self._validate():
            return self._stop()
        self._save()
        model = self.learner.whole_model()
        score = self.world.first_does(lambda: self._final_score(model))
        return TrainSummary(c.step, c.seconds, score, self._signal() if score is None else None)

    def _final_score(self, model: ResoLLMModel) -> LanguageModelScore | None:
        """Score all of the validation data, and log it; None where a signal comes first."""
        score = final_score(model, self.data.val, self.stops, self.report)
        if score is not None and self._logged_here("final_bits_per_byte") is None:
            final = {f"final_{name}": value for name, value in score.to_dict().items()}
            self.log.log({"step": self.counters.step, **final})
        return score

    def _stop(self) -> TrainSummary:
        """Save for a signal."""
        c = self.counters
        self._log_training(None)
        self._save()
        signal = self._signal()
        self.report(f"stopped by {signal} at step {c.step}; --resume goes on")
        return TrainSummary(c.step, c.seconds, None, signal)

    def _signal(self) -> str | None:
        """The signal that asked a process of the run to stop; None before one came."""
        return next(filter(None, self.world.gather(self.stops.first)), None)

    def _logged(self, name: str) -> Any:
        """Logged value of `name` at this step: a finished run that is resumed repeats no row."""
        return self.world.first_does(lambda: self._logged_here(name))

    def _logged_here(self, name: str) -> Any:
        rows = [row for row in read_metrics(self.log.path) if row["step"] == self.counters.step]
        return next((row[name] for row in rows if name in row), None)

    def _save(self) -> None:
        saving.save(self.learner, self.tokenizer, self.counters)

    def _validate(self) -> bool:
        """Score the head of the validation data, note the best step, and show a sample.

        False where a signal cut it short; then nothing of it is logged.
        """
        started = time.perf_counter()
        model = self.learner.whole_model()
        bits_per_byte = self.world.first_does(lambda: self._bits_per_byte_of_validation(model))
        if bits_per_byte is None:
            return False
        self.meter.leave_out(time.perf_counter() - started)
        self._note_best(bits_per_byte)
        return True

    def _bits_per_byte_of_validation(self, model: ResoLLMModel) -> float | None:
        """The score, logged with a sample; None where a signal cut it short."""
        c = self.counters
        try:
            with self.stops.abandonable():
                score = quick_score(model, self.data.val, self.config)
                text = sample(model, self.tokenizer, self.config)
        except Abandoned:
            model.train()
            return None
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
        with suppress(Abandoned), self.stops.abandonable():
            self.log.plot()
        self.report(
            f"step {c.step:,}: {score.bits_per_byte:.4f} bits/byte on the first "
            f"{score.tokens:,} validation tokens"
        )
        if text:
            self.report(f"  {self.config.sample_prompt!r} -> {text!r}")
        return score.bits_per_byte

    def _note_best(self, bits_per_byte: float) -> None:
        # All text is scored, which says little about a run that learns replies alone: its newest
        # checkpoint is the one to use.
        c = self.counters
        if self.config.replies_only or bits_per_byte < c.best_bits_per_byte:
            c.best_bits_per_byte, c.best_step = bits_per_byte, c.step

    def _log_training(self, bar: tqdm | None) -> None:
        """A row of metrics over the steps since the last one, shown beside the bar as well."""
        c = self.counters
        if not self.meter.tokens or not self.world.is_first:
            return
        rates = self.meter.rates()
        row = {
            "step": c.step,
            "tokens": c.tokens,
            "seconds": c.seconds,
            "bits_per_byte": self._bits_per_byte(rates["loss_nats"]),
            "learning_rate_factor": learning_rate_factor(self.config.optim, self._progress()),
            "epoch": self.learner.stream.epoch,
            "skipped_steps": c.skipped_steps,
        }
        self.log.log(row | rates)
        self.meter.restart()
        if bar is not None:
            self.meter.show(bar, row | rates)

    def _bits_per_byte(self, loss: float) -> float:
        """Of training text; NaN where the loss is of its replies only, whose bytes are unknown."""
        if self.config.replies_only:
            return math.nan
        return loss / LN2 * self.data.train.num_tokens / self.data.train.num_bytes

    def _seconds(self) -> float:
        """Seconds of training so far by the first process's clock, those before a resume too."""
        return self.world.first_does(lambda: time.perf_counter() - self.clock_zero)

    def _progress(self) -> float:
        c = self.counters
        return self.config.progress(c.step, c.tokens, c.seconds, self.learner.stream.epoch)

    def _open_log(self) -> RunLog:
        return RunLog(
            self.config.out,
            resume_step=self.counters.step or None,
            wandb=self.config.wandb,
            config=self.config.to_dict(),
            report=self.report,
        )

    def _progress_bar(self) -> tqdm:
        return progress_bar(
            "training",
            silent=not self.world.is_first,
            total=1000,
            initial=round(self._progress() * 1000),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )
