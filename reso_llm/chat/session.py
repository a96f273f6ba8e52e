"""A conversation with a model: its messages, the part that the model reads, and the replies.

Context policy. The model reads the system message and the newest exchanges that leave room for the
reply. Older exchanges are left out of what it reads; they come back when newer ones are undone. A
question that is too long by itself is cut at its end. Every reply comes with notes on the messages
left out.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from entropy_core.checks import require
from reso_llm.data.conversation import Message
from reso_llm.decoding.row import Event
from reso_llm.generation.context import opening_limit
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.prompt_cache import PromptCache
from reso_llm.generation.remembered import with_memories
from reso_llm.generation.results import GenerationResult
from reso_llm.generation.text_engine import TextEngine
from reso_llm.session import saving
from reso_llm.session.agency import Goal
from reso_llm.session.session import Session
from run_core import terminal

SAMPLING = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
"""Default sampling options of a chat."""

OnText = Callable[[str], None]
OnEvent = Callable[[Event], None]


class Exchange(NamedTuple):
    """A question, its reply, and the description of the goal that the reply pursued."""

    question: str
    reply: str
    goal: str | None = None

    @property
    def turns(self) -> list[Message]:
        """The exchange as two messages."""
        return [Message("user", self.question), Message("assistant", self.reply)]


class Reply(NamedTuple):
    """The result of one reply, and sentences about what it left out or changed."""

    result: GenerationResult
    notes: list[str]


class ChatSession:
    """One conversation with `engine`; `options` go to its `generate`.

    With a seed, the i-th reply written uses seed + i. Raises ValueError for options out of range
    and for a system message that is blank or takes more than a quarter of the context.
    """

    def __init__(
        self,
        engine: TextEngine,
        max_length: int = 128,
        seed: int | None = None,
        system: str | None = None,
        **options: Any,
    ) -> None:
        self.engine, self.max_length, self.seed = engine, max_length, seed
        self.options = SAMPLING | options
        checked = GenerationOptions(max_length=max_length, **self.options)
        checked.require_known(engine.vocab_size)
        require(max_length >= 1, "max_length", max_length, "at least 1, for a reply to have a word")
        context = engine.context_length
        self.room = context - min(max_length, context // 2)
        """Tokens of a prompt, at most."""
        self.system = [] if system is None else [self._system_message(system)]
        self.exchanges: list[Exchange] = []
        self.num_replies = 0
        self.goal: Goal | None = None
        self.cache = PromptCache()

    # --- replies

    def reply(
        self, text: str, on_text: OnText, metrics: bool = True, on_event: OnEvent | None = None
    ) -> Reply:
        """Answer one question; `on_text` receives the reply piece by piece.

        A reply that Ctrl-C stops is kept as far as it went. It is not kept when it has no word
        yet. The goal is dropped afterwards. metrics: measure the text as it is written.
        on_event receives what a controller does, as it does it.
        """
        return self._answer(terminal.encodable(text), on_text, metrics, on_event, self.exchanges)

    def retry(
        self, on_text: OnText, metrics: bool = True, on_event: OnEvent | None = None
    ) -> Reply:
        """Replace the last reply by another one to the same question and towards the same goal.

        Raises ValueError before the first reply.
        """
        *earlier, last = self._exchanges_so_far()
        self._set_goal_again(last)
        return self._answer(last.question, on_text, metrics, on_event, earlier)

    def extend(
        self, on_text: OnText, metrics: bool = True, on_event: OnEvent | None = None
    ) -> Reply:
        """Write on where the last reply ends, towards its goal; `on_text` receives what is new.

        Raises ValueError before the first reply, and for a reply that fills the context.
        """
        *earlier, last = self._exchanges_so_far()
        self._set_goal_again(last)
        return self._answer(last.question, on_text, metrics, on_event, earlier, last.reply)

    def undo(self) -> Exchange:
        """Take the last exchange back and return it; the model's session keeps its notes.

        Raises ValueError before the first reply.
        """
        *self.exchanges, last = self._exchanges_so_far()
        return last

    def _answer(
        self,
        question: str,
        on_text: OnText,
        metrics: bool,
        on_event: OnEvent | None,
        earlier: list[Exchange],
        begun: str = "",
    ) -> Reply:
        """Write a reply that starts with `begun`; the exchange follows the earlier ones."""
        read, question, notes = self._fit(earlier, question, begun)
        prompt = [*self.system, *_turns(read), Message("user", question)]
        if begun:
            prompt.append(Message("assistant", begun))
        result = self.engine.generate(
            prompt,
            self.max_length,
            seed=None if self.seed is None else self.seed + self.num_replies,
            on_text=on_text,
            on_event=on_event,
            cache=self.cache,
            **({"metrics": metrics} | self.options),
        )
        self.num_replies += 1
        goal = self.goal.description if self.goal else None
        self.drop_goal()
        if result.stop_reason == "interrupted":
            if not result.text.strip():
                return Reply(
                    result, ["stopped before the first word; the conversation is as it was"]
                )
            notes.append("stopped; the reply is kept as far as it went")
        elif begun and not result.text.strip():
            notes.append("nothing to add: the model ends the reply where it ends")
        self.exchanges = [*earlier, Exchange(question, begun + result.text, goal)]
        return Reply(result, notes)

    def _exchanges_so_far(self) -> list[Exchange]:
        if not self.exchanges:
            raise ValueError("there is no reply yet")
        return self.exchanges

    # --- to a file and back

    def save(self, path: str | Path) -> None:
        """Write the conversation and the model's session to a file. Raises as `saving.save`."""
        extra = {
            "system": self.system[0].content if self.system else None,
            "exchanges": [list(exchange) for exchange in self.exchanges],
            "num_replies": self.num_replies,
            "goal": self.goal.description if self.goal else None,
            "tokenizer": self.engine.tokenizer.fingerprint,
        }
        saving.save(self.engine.session, path, extra)

    def load(self, path: str | Path) -> None:
        """Go on with the conversation of a file, and its goals, episodes and clock.

        The file's system message is taken where none was given. Raises as `saving.load`, and
        ValueError for a file that holds no conversation or belongs to another tokenizer.
        """
        session = Session(self.engine.session.config)
        extra = saving.load(session, path)
        if "exchanges" not in extra:
            raise ValueError(f"{path}: a session without a conversation; expected a chat's")
        if extra["tokenizer"] != self.engine.tokenizer.fingerprint:
            raise ValueError(
                f"{path}: saved with another tokenizer; use the model it was saved with"
            )
        if not self.system and extra["system"] is not None:
            self.system = [self._system_message(extra["system"])]
        self.engine.session = session
        self.exchanges = [Exchange(*values) for values in extra["exchanges"]]
        self.num_replies = extra["num_replies"]
        pending = [goal for goal in self._active_goals() if goal.description == extra["goal"]]
        self.goal = pending[-1] if pending else None

    def _active_goals(self) -> tuple[Goal, ...]:
        agency = self.engine.session.agency
        return () if agency is None else agency.active_goals

    # --- the goal of the next reply

    def set_goal(self, description: str) -> None:
        """Pursue a goal with the next reply, in place of one set before; see `create_goal`."""
        self.drop_goal()
        self.goal = self.engine.create_goal(terminal.encodable(description))

    def _set_goal_again(self, exchange: Exchange) -> None:
        """Pursue the goal of an exchange again, unless another one is set."""
        if exchange.goal is not None and self.goal is None:
            self.set_goal(exchange.goal)

    def drop_goal(self) -> None:
        """Pursue no goal with the next reply."""
        goal, self.goal = self.goal, None
        if goal is not None and goal in self._active_goals():
            self.engine.session.agency.drop_goal(goal)

    # --- what the model reads

    @property
    def turns(self) -> list[Message]:
        """All questions and replies, also those that the model no longer reads."""
        return _turns(self.exchanges)

    @property
    def turns_read(self) -> list[Message]:
        """The newest questions and replies that the context holds."""
        fitting = self._newest(self.exchanges, self.engine.context_length)
        return _turns(fitting or self.exchanges[-1:])

    @property
    def context_used(self) -> int:
        """Tokens of the conversation that the context holds."""
        return min(self._size(self.turns_read), self.engine.context_length)

    def _fit(
        self, earlier: list[Exchange], question: str, begun: str
    ) -> tuple[list[Exchange], str, list[str]]:
        """The exchanges to read, the question as far as it is read, and notes on the rest."""
        notes, begins = [], [Message("assistant", begun)] if begun else []
        if self._size([Message("user", ""), *begins]) > self.room:
            raise ValueError("the reply fills the context: it cannot go on")
        short = self._shortened(question, begins)
        newest = self._newest(earlier, self.room, [Message("user", short), *begins])
        if len(newest) < len(earlier):
            left_out = 2 * (len(earlier) - len(newest))
            notes.append(f"the context is full: the {left_out} oldest turns are left out")
        if len(short) < len(question):
            characters = f"{len(short):,} of {len(question):,} characters"
            notes.append(f"too long: the first {characters} are read")
        return newest, short, notes

    def _shortened(self, question: str, begins: list[Message]) -> str:
        """The longest beginning of a question that fits with the beginning of its reply."""
        while question and (size := self._size([Message("user", question), *begins])) > self.room:
            question = question[: min(len(question) - 1, len(question) * self.room // size)]
        return question

    def _newest(
        self, exchanges: list[Exchange], room: int, after: Sequence[Message] = ()
    ) -> list[Exchange]:
        """The newest exchanges that fit into `room` tokens together with the messages after."""

        def size(count: int) -> int:
            return self._size([*_turns(exchanges[len(exchanges) - count :]), *after])

        count = bisect_right(range(1, len(exchanges) + 1), room, key=size)
        return exchanges[len(exchanges) - count :]

    def _size(self, messages: list[Message]) -> int:
        """Tokens of a prompt: the system message and these after it; 0 for no message.

        Stored texts that the last question asks for are within it.
        """
        prompt = [*self.system, *messages]
        told = self.engine.memories_of(prompt).told
        return len(self.engine.prompt_ids(with_memories(prompt, told))) if prompt else 0

    def _system_message(self, text: str) -> Message:
        message = Message("system", terminal.encodable(text))
        context, question = self.engine.context_length, Message("user", "")
        size = len(self.engine.prompt_ids([message, question]))
        size -= len(self.engine.prompt_ids([question]))
        limit = opening_limit(context) - 1
        if not text.strip():
            raise ValueError("system is blank: give a text, or leave it out")
        if size > limit:
            raise ValueError(
                f"system has {size} tokens, but at most {limit} can stay in a context of "
                f"{context}: shorten it"
            )
        return message


def _turns(exchanges: list[Exchange]) -> list[Message]:
    return [turn for exchange in exchanges for turn in exchange.turns]
