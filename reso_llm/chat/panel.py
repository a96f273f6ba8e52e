"""The panel under a reply: what was measured while it was written, in at most four lines.

    entropy ▃▅▂▇▄  mean 4.12 of 8.3 nats
    order 0.62  Lyapunov -  unknown  T 0.70  layers 2.4/4  goal 43%  memories 1
    48 tokens  61/s  ended by end
    ! token 12: 83% of the last 12 tokens are repeated (+1 more)

A value that is not defined is a dash. What does not fit is left out from the end, warnings last.
"""

import math
from collections.abc import Sequence

from reso_llm.generation.results import GenerationResult
from run_core.terminal import mean, number, sparkline

MAX_LINES = 4


def panel(result: GenerationResult, vocab_size: int, num_layers: int, columns: int) -> list[str]:
    """Lines of at most `columns` characters about a reply of a model of that size."""
    wrapped = _wrapped(_facts(result, num_layers), columns)
    room = MAX_LINES - 1 - bool(result.warnings)
    lines = [_entropy(result, vocab_size, columns), *wrapped[:room]]
    if result.warnings:
        more = len(result.warnings) - 1
        rest = f" (+{more} more)" if more else ""
        lines.append(_cut(f"! {result.warnings[0]}", columns - len(rest)) + rest)
    return lines


def _entropy(result: GenerationResult, vocab_size: int, columns: int) -> str:
    top = math.log(vocab_size)
    words = f"  mean {number(mean(result.entropy_trace))} of {top:.1f} nats"
    room = columns - len("entropy ") - len(words)
    return _cut(f"entropy {sparkline(result.entropy_trace, top, room)}{words}", columns)


def _facts(result: GenerationResult, num_layers: int) -> list[str]:
    """What is told of a reply, the most telling first."""
    milliseconds = result.generation_time_ms
    speed = result.tokens_generated / milliseconds * 1000 if milliseconds > 0 else math.nan
    progress = "/".join(number(p, ".0%") for p in result.goal_progress.values())
    facts = [
        f"order {number(mean(result.coherence_trace))}",
        f"Lyapunov {number(result.lyapunov, '+.2f')}",
        result.stability,
        f"T {_temperature(result.temperature_trace)}",
        f"layers {number(mean(result.layers_trace), '.1f')}/{num_layers}",
        f"goal {progress or '-'}",
        f"memories {len(result.memories_touched)}",
        f"{result.tokens_generated} tokens",
        f"{number(speed, '.0f')}/s",
        f"ended by {result.stop_reason}",
    ]
    return [*facts, f"events {len(result.events)}"] if result.events else facts


def _temperature(trace: Sequence[float]) -> str:
    """One number, or from the lowest to the highest."""
    if not trace:
        return "-"
    low, high = number(min(trace)), number(max(trace))
    return low if low == high else f"{low}..{high}"


def _wrapped(words: list[str], columns: int) -> list[str]:
    """Words in lines, two spaces between them; none is torn apart."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 2 + len(word) <= columns:
            lines[-1] += f"  {word}"
        else:
            lines.append(_cut(word, columns))
    return lines


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else f"{text[: max(0, columns - 1)]}…"
