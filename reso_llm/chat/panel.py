"""The panel under a reply: what was measured while it was written, in at most four lines.

    entropy ▃▅▂▇▄ 0 to 5.2 nats, mean 4.12
    stable  order 0.62  Lyapunov +0.02  layers 2.4 of 4  goal 43%  used: She lives in Oslo.
    48 tokens  61/s  ended by end  phase_slip 2
    ! token 12: 83% of the last 12 tokens are repeated (+1 more)

DIALS holds every value with its meaning. One that is not defined, or did not move, is left out. In
a narrow terminal the last ones are; the first line and the warning stay.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from reso_llm.generation.results import GenerationResult
from run_core.terminal import finite_mean, formatted, sparkline

MAX_LINES = 4
MAX_USED = 48
"""Characters of a stored text that are shown, at most."""
ENTROPY = "doubt before each token, 0 is sure; a bar may be several tokens"
WARNING = "the first warning of this reply, and how many more"


class Dial(NamedTuple):
    """A value of the panel: its line in `help metrics`, and its text for a result of a model.

    text takes the result and the model's number of layers; "" where there is nothing to show.
    """

    meaning: str
    text: Callable[[GenerationResult, int], str]


def _with(name: str, value: str) -> str:
    return f"{name} {value}" if value else ""


def _mean(values: Sequence[float], spec: str) -> str:
    """The mean of the finite values; "" without any."""
    mean = finite_mean(values)
    return format(mean, spec) if math.isfinite(mean) else ""


def _range(trace: Sequence[float]) -> str:
    """The lowest and the highest value; "" where they are printed alike."""
    low, high = (formatted(f(trace)) for f in (min, max)) if trace else ("", "")
    return f"{low}..{high}" if low != high else ""


def _tokens(result: GenerationResult, _: int) -> str:
    count = result.tokens_generated
    return f"{count} token{'' if count == 1 else 's'}"


def _speed(result: GenerationResult, _: int) -> str:
    milliseconds = result.generation_time_ms
    return f"{result.tokens_generated / milliseconds * 1000:.0f}/s" if milliseconds > 0 else ""


def _events(result: GenerationResult, _: int) -> str:
    counts = Counter(event.controller for event in result.events)
    return "  ".join(f"{name} {count}" for name, count in counts.items())


def _lyapunov(result: GenerationResult, _: int) -> str:
    measured = math.isfinite(result.lyapunov) and result.lyapunov != 0  # 0 until the first
    return _with("Lyapunov", f"{result.lyapunov:+.2f}" if measured else "")


def _goal(result: GenerationResult, _: int) -> str:
    known = (p for p in result.goal_progress.values() if math.isfinite(p))
    return _with("goal", "/".join(f"{p:.0%}" for p in known))


def _used(result: GenerationResult, _: int) -> str:
    if not result.memories_used:
        return ""
    first, *others = (" ".join(text.split()) for text in result.memories_used)
    return f"used: {_shortened(first, MAX_USED)}{f' (+{len(others)} more)' if others else ''}"


def _layers(result: GenerationResult, num_layers: int) -> str:
    mean = _mean(result.layers_trace, ".1f")
    return f"layers {mean} of {num_layers}" if mean else ""


DIALS = {
    "stability": Dial(
        "class: stable, periodic (a loop), chaotic or divergent",
        lambda r, _: r.stability,
    ),
    "order": Dial(
        "how far the oscillators' phases agree, 0 to 1 (Kuramoto)",
        lambda r, _: _with("order", _mean(r.coherence_trace, ".2f")),
    ),
    "Lyapunov": Dial(
        "growth of a small disturbance, nats a token, where measured",
        _lyapunov,
    ),
    "T": Dial(
        "lowest and highest temperature, where a controller moved it",
        lambda r, _: _with("T", _range(r.temperature_trace)),
    ),
    "layers": Dial("layers that a token went through, on average (coherence gate)", _layers),
    "goal": Dial("share of the goal's words that were said; a quarter is 100%", _goal),
    "used": Dial("what you told that the question asked for, the first in words", _used),
    "tokens": Dial("tokens written", _tokens),
    "/s": Dial("tokens a second, the reading of the prompt included", _speed),
    "ended by": Dial("why the reply ended", lambda r, _: f"ended by {r.stop_reason}"),
    "events": Dial("decisions of each controller, by its name; [...] in the reply", _events),
}


def panel(result: GenerationResult, num_layers: int, columns: int) -> list[str]:
    """The lines for a reply of a model of that many layers, at most `columns` characters each."""
    first = [_entropy_line(result.entropy_trace, columns)] if result.entropy_trace else []
    last = [_warning_line(result.warnings, columns)] if result.warnings else []
    facts = (dial.text(result, num_layers) for dial in DIALS.values())
    middle = _wrapped((fact for fact in facts if fact), columns)
    return [*first, *middle[: MAX_LINES - len(first) - len(last)], *last]


def meanings() -> list[tuple[str, str]]:
    """Name and meaning of everything that a panel may show, in its order."""
    dials = [(name, dial.meaning) for name, dial in DIALS.items()]
    return [("entropy", ENTROPY), *dials, ("!", WARNING)]


def _entropy_line(trace: Sequence[float], columns: int) -> str:
    """Entropy along the reply, from 0 to its highest value, which is named."""
    highest = max((h for h in trace if math.isfinite(h)), default=0.0)
    words = f" 0 to {highest:.1f} nats, mean {formatted(finite_mean(trace))}"
    room = columns - len("entropy ") - len(words)
    return _shortened(f"entropy {sparkline(trace, highest or 1.0, room)}{words}", columns)


def _warning_line(warnings: Sequence[str], columns: int) -> str:
    """The first warning, and how many more there are."""
    rest = f" (+{len(warnings) - 1} more)" if len(warnings) > 1 else ""
    return _shortened(f"! {warnings[0]}", columns - len(rest)) + rest


def _wrapped(facts: Iterable[str], columns: int) -> list[str]:
    """Lines of whole facts, two spaces between them; a fact wider than a line is shortened."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + 2 + len(fact) <= columns:
            lines[-1] += f"  {fact}"
        else:
            lines.append(_shortened(fact, columns))
    return lines


def _shortened(text: str, columns: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= columns else f"{text[: max(0, columns - 1)]}…"
