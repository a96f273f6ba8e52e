"""RUN/loss.png: the training loss and the validation of a run, along its steps or tokens."""

import gc
import io
import itertools
from typing import NamedTuple

Curve = tuple[list[float], list[float]]  # tokens or steps, values


class Curves(NamedTuple):
    """The numbers of the rows that loss.png shows, and the labels of their axes."""

    along: str
    training: str
    validation: str
    labels: tuple[str, str, str]


LANGUAGE_MODEL = Curves(
    along="tokens",
    training="loss_nats",
    validation="validation_bits_per_byte",
    labels=(
        "tokens seen in training", "training loss\n(nats per token)", "validation\n(bits per byte)"
    ),
)  # fmt: skip


def smoothed(values: list[float]) -> list[float]:
    """Mean over a centred twentieth of the curve: unlike a running mean, it does not lag."""
    sums = [0.0, *itertools.accumulate(values)]
    half = len(values) // 40
    smooth = []
    for i in range(len(values)):
        left = min(half, i)
        right = min(left, len(values) - 1 - i)  # no wider than left: the first drop stays sharp
        smooth.append((sums[i + right + 1] - sums[i - left]) / (left + right + 1))
    return smooth


def draw_losses(
    training: Curve, validation: Curve, labels: tuple[str, str, str], title: str
) -> bytes:
    """A PNG of training loss above validation; ImportError without matplotlib, naming the extra."""
    picture = _picture(training, validation, labels, title)
    gc.collect()  # a figure is a ring of references: left to itself, each picture grows the run
    return picture


def _picture(training: Curve, validation: Curve, labels: tuple[str, str, str], title: str) -> bytes:
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ImportError('matplotlib is missing, pip install "reso-llm[plots]"') from error
    # A Figure of its own, not pyplot: no backend, window or style of the caller is touched.
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    figure.suptitle(f"{title}: lower is better")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_training(upper, *training)
    _draw_validation(lower, *validation)
    for axes, label in ((upper, labels[1]), (lower, labels[2])):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    lower.set_xlabel(labels[0])
    lower.xaxis.set_major_formatter(EngFormatter(sep=""))
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_training(axes, places: list[float], loss: list[float]) -> None:
    if not loss:
        return
    smooth = smoothed(loss)
    label = f"training, as logged (first {loss[0]:.2f})"
    last = f"training, smoothed (last {smooth[-1]:.3f})"
    axes.plot(places, loss, color="#56B4E9", linewidth=0.8, alpha=0.6, label=label)
    axes.plot(places, smooth, color="#0072B2", linewidth=2, label=last)
    low, high = min(loss), max(smooth[len(loss) // 50 :])  # the first drop would flatten the rest
    axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3)
    axes.legend(frameon=False)


def _draw_validation(axes, places: list[float], scores: list[float]) -> None:
    if not scores:
        return
    best = min(range(len(scores)), key=scores.__getitem__)
    last = f"validation (last {scores[-1]:.4f})"
    axes.plot(places, scores, color="#D55E00", linewidth=2, marker="o", markersize=4, label=last)
    label = f"best validation ({scores[best]:.4f})"
    axes.plot(places[best], scores[best], "*", color="black", markersize=14, label=label)
    axes.legend(frameon=False)
