"""The part of a conversation that a model reads: the system message and the newest turns.

It leaves room for the reply, or for half of the context where the reply may be longer. A single
turn that is too long is cut by the context policy of `reso_llm.generation.context`.
"""

from bisect import bisect_left
from typing import Any

from reso_llm.generation.prompt import Prompt
from reso_llm.generation.text_engine import TextEngine


def fitted(engine: TextEngine, prompt: Prompt, max_new: int) -> tuple[Any, tuple[str, ...]]:
    """The prompt without its oldest turns, and a note where some are left out.

    Messages are left out up to a user's turn; the last one always stays. A plain text stays whole.
    """
    if isinstance(prompt, str):
        return prompt, ()
    room = engine.context_length - min(max_new, engine.context_length // 2)
    first = next((i for i, m in enumerate(prompt) if m.role != "system"), len(prompt) - 1)
    starts = [i for i in range(first, len(prompt)) if prompt[i].role == "user" or i == first]
    if len(engine.prompt_ids(prompt)) <= room:
        return prompt, ()

    def is_short(start: int) -> bool:
        return len(engine.prompt_ids([*prompt[:first], *prompt[start:]])) <= room

    chosen = bisect_left(starts, True, key=is_short)
    start = starts[min(chosen, len(starts) - 1)]
    left_out = start - first
    if not left_out:
        return prompt, ()
    note = f"the context is full: the {left_out} oldest turns are left out"
    return [*prompt[:first], *prompt[start:]], (note,)
