"""A conversation with a model: its turns and how the next reply is sampled."""

from collections.abc import Callable
from typing import Any

from reso_llm.data.conversation import Message
from reso_llm.generation.engine import Engine
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.results import GenerationResult
from reso_llm.session.agency import Goal
from run_core import terminal

SAMPLING = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
"""How a chat draws its tokens, unless told otherwise."""


class ChatSession:
    """The turns of one conversation with `engine`; `options` go to its `generate`.

    With a seed, reply i uses seed + i. Raises ValueError for options out of range.
    """

    def __init__(
        self,
        engine: Engine,
        max_length: int = 128,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        self.engine, self.max_length, self.seed = engine, max_length, seed
        self.options = SAMPLING | options
        GenerationOptions(max_length=max_length, **self.options)
        self.turns: list[Message] = []
        self.forgotten = self.num_replies = 0
        self.goal: Goal | None = None

    def reply(
        self, text: str, on_text: Callable[[str], None], metrics: bool = True
    ) -> tuple[GenerationResult, list[str]]:
        """Answer one user turn, streaming the text: the result, and notes on the conversation.

        A reply that Ctrl-C stopped is kept as far as it went, and not at all without a word. The
        goal is dropped afterwards. metrics: measure the text as it is written.
        """
        every = [*self.turns, Message("user", terminal.encodable(text))]
        turns, notes = self._fitting(every)
        seed = None if self.seed is None else self.seed + self.num_replies
        result = self.engine.generate(
            turns,
            self.max_length,
            seed=seed,
            on_text=on_text,
            **({"metrics": metrics} | self.options),
        )
        self.num_replies += 1
        self.drop_goal()
        if result.stop_reason == "interrupted" and not result.text.strip():
            return result, ["stopped before the first word; this turn is not kept"]
        self.turns = [*turns, Message("assistant", result.text)]
        self.forgotten += len(every) - len(turns)
        if result.stop_reason == "interrupted":
            notes.append("stopped; the reply is kept as far as it went")
        return result, notes

    def set_goal(self, description: str) -> None:
        """Pursue a goal with the next reply, in place of one set before; see `create_goal`."""
        self.drop_goal()
        self.goal = self.engine.model.create_goal(terminal.encodable(description))

    def drop_goal(self) -> None:
        """Pursue no goal any more."""
        goal, self.goal = self.goal, None
        if goal is not None and goal in self.engine.model.get_active_goals():
            self.engine.model.session.agency.drop_goal(goal)

    @property
    def context_used(self) -> int:
        """Tokens of the conversation that the context holds."""
        size = len(self.engine.tokenizer.encode_conversation(self.turns)[0])
        return min(size, self.engine.config.max_seq_len)

    def _fitting(self, turns: list[Message]) -> tuple[list[Message], list[str]]:
        """The newest turns that leave room for the reply, and notes on what is left out."""
        context, notes = self.engine.config.max_seq_len, []
        room = context - min(self.max_length, context // 2)
        before = len(turns)
        while len(turns) > 2 and self._size(turns) > room:
            turns = turns[2:]
        if before > len(turns):
            gone = self.forgotten + before - len(turns)
            notes.append(f"the context is full: the {gone} oldest turns are forgotten")
        whole = text = turns[-1].content
        while text and (size := self._size(turns)) > room:
            text = text[: min(len(text) - 1, len(text) * room // size)]
            turns = [*turns[:-1], Message("user", text)]
        if len(text) < len(whole):
            notes.append(f"too long: the first {len(text):,} of {len(whole):,} characters are read")
        return turns, notes

    def _size(self, turns: list[Message]) -> int:
        return len(self.engine.tokenizer.encode_prompt(turns))
