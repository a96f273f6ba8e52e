"""Loss and speed of the steps since the last row of metrics, in a bar or as lines."""

import math
import time
from typing import Any

from tqdm import tqdm

from reso_llm.training.learner import StepResult
from run_core.run import Report

SECONDS_BETWEEN_LINES = 10.0  # where there is no progress bar


class Meter:
    """Sums over training steps; `report` receives a line now and then where no bar is shown."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.shown = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """Begin the sums anew."""
        self.started = time.perf_counter()
        self.loss_nats, self.tokens = 0.0, 0
        self.steps = 0  # that moved the parameters

    def add(self, result: StepResult) -> None:
        """Count a step; the loss of a step that is not finite is left out."""
        self.tokens += result.tokens
        if result.problem is None:
            self.loss_nats += result.loss_nats
            self.steps += 1

    def leave_out(self, seconds: float) -> None:
        """Leave time out of the tokens per second: it was not training."""
        self.started += seconds

    def rates(self) -> dict[str, float]:
        """Mean loss per target (NaN where no step moved the parameters) and tokens per second."""
        seconds = time.perf_counter() - self.started
        loss = self.loss_nats / self.steps if self.steps else math.nan
        return {"loss_nats": loss, "tokens_per_second": self.tokens / seconds}

    def show(self, bar: tqdm, row: dict[str, Any]) -> None:
        """Show a row beside the bar; without a bar, now and then as a line."""
        if not bar.disable:
            bar.set_postfix_str(_postfix(row))
        elif time.perf_counter() - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = time.perf_counter()
            self.report(f"step {row['step']:,}: {_postfix(row)}")


def _postfix(row: dict[str, Any]) -> str:
    """Loss, bits per byte and speed of a row; a number that is not known is left out."""
    shown = {
        f"loss {row['loss_nats']:.3f}": row["loss_nats"],
        f"{row['bits_per_byte']:.3f} bits/byte": row["bits_per_byte"],
        f"{row['tokens_per_second']:,.0f} tok/s": row["tokens_per_second"],
    }
    return ", ".join(text for text, value in shown.items() if math.isfinite(value))
