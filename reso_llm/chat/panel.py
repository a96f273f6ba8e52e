"""The panel under a reply: what was measured while it was written, in at most four lines.

    entropy ▃▅▂▇▄  mean 4.12 of 8.3 nats
    order 0.62  Lyapunov -  unknown  T 0.70  layers 2.4/4  goal 43%  memories 1
    48 tokens  61/s  ended by end
    ! token 12: 83% of the last 12 tokens are repeated (+1 more)

A dash stands for a value that is not defined. In a narrow terminal the last facts are left out;
the first line and the warning stay.
"""

import math
from collections.abc import Sequence

from reso_llm.generation.results import GenerationResult
from run_core.terminal import finite_mean, formatted, sparkline

MAX_LINES = 4


def panel(result: GenerationResult, vocab_size: int, num_layers: int, columns: int) -> list[str]:
    """The lines for a reply of a model of that size, at most `columns` characters each."""
    first = [_entropy_line(result, vocab_size, columns)]
    last = [_warning_line(result.warnings, columns)] if result.warnings else []
    facts = _wrapped(_facts(result, num_layers), columns)
    return [*first, *facts[: MAX_LINES - len(first) - len(last)], *last]


def _entropy_line(result: GenerationResult, vocab_size: int, columns: int) -> str:
    """Entropy along the reply, from 0 to the ln V of a uniform distribution."""
    highest = math.log(vocab_size)
    words = f"  mean {formatted(finite_mean(result.entropy_trace))} of {highest:.1f} nats"
    room = columns - len("entropy ") - len(words)
    return _shortened(f"entropy {sparkline(result.entropy_trace, highest, room)}{words}", columns)


def _warning_line(warnings: Sequence[str], columns: int) -> str:
    """The first warning, and how many more there are."""
    rest = f" (+{len(warnings) - 1} more)" if len(warnings) > 1 else ""
    return _shortened(f"! {warnings[0]}", columns - len(rest)) + rest


def _facts(result: GenerationResult, num_layers: int) -> list[str]:
    """Facts about a reply, the most important first."""
    milliseconds = result.generation_time_ms
    speed = result.tokens_generated / milliseconds * 1000 if milliseconds > 0 else math.nan
    progress = "/".join(formatted(p, ".0%") for p in result.goal_progress.values())
    facts = [
        f"order {formatted(finite_mean(result.coherence_trace))}",
        f"Lyapunov {formatted(result.lyapunov, '+.2f')}",
        result.stability,
        f"T {_temperature(result.temperature_trace)}",
        f"layers {formatted(finite_mean(result.layers_trace), '.1f')}/{num_layers}",
        f"goal {progress or '-'}",
        f"memories {len(result.memories_used)}",
        f"{result.tokens_generated} tokens",
        f"{formatted(speed, '.0f')}/s",
        f"ended by {result.stop_reason}",
    ]
    if result.events:
        facts.append(f"events {len(result.events)}")
    return facts


def _temperature(trace: Sequence[float]) -> str:
    """The one temperature of a reply, or the lowest and the highest."""
    if not trace:
        return "-"
    low, high = formatted(min(trace)), formatted(max(trace))
    return low if low == high else f"{low}..{high}"


def _wrapped(facts: list[str], columns: int) -> list[str]:
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
