"""The chat in a terminal: lines in, streamed replies out, and the commands in between.

A line is a command when its first word is one of COMMANDS, with or without a slash before it. A
command without an argument must stand alone: `help me` is said to the model. A backslash before a
line says it to the model as it is: `\\goal keepers are tall`.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from entropy_core.checks import nearest
from reso_llm.chat.panel import meanings, panel
from reso_llm.chat.session import ChatSession, OnEvent, OnText, Reply
from reso_llm.decoding.row import Event
from reso_llm.generation import axes
from reso_llm.session.foci import summary
from run_core import terminal
from run_core.terminal import Screen

MAX_LINE = 10_000
"""Characters of a line that are read."""
MAX_QUOTE = 60
"""Characters of a text that a note quotes, at most."""
ARGUMENT_COLUMN = 17
"""Width of a command and its argument in `help`."""

STATUS_COLUMN = 9
"""Where the values of `status` begin."""


class Chat:
    """A conversation on a screen. `take` answers a line or carries out its command."""

    def __init__(
        self,
        session: ChatSession,
        screen: Screen,
        show_metrics: bool = True,
        file: str | Path | None = None,
    ) -> None:
        self.session, self.screen, self.show_metrics = session, screen, show_metrics
        self.file = file
        self.ended = False
        self._events: list[Event] = []  # of the reply being written, not shown yet
        self._axes: Mapping[str, float] = {}  # of the last reply

    def run(self, lines: Iterable[str]) -> None:
        """Take every line until the lines end or one says exit; Ctrl-C stops the current line.

        After each line the conversation is saved, where the chat has a file.
        """
        for line in lines:
            try:
                self.take(line)
            except KeyboardInterrupt:
                self.session.drop_goal()
                self.screen.note("[stopped; this line had no effect]")
            self._save()
            if self.ended:
                return

    def _save(self) -> None:
        if self.file is not None:
            try:
                self.session.save(self.file)
            except OSError as error:
                self._note(f"not saved: {error.filename}: {error.strerror}")

    def take(self, line: str) -> None:
        """Carry out the command in a line, or reply to the line."""
        text = line.strip()
        if len(text) > MAX_LINE:
            self._note(f"line cut: the first {MAX_LINE:,} of {len(text):,} characters are read")
            text = text[:MAX_LINE]
        name, argument = parse_line(text)
        if name in COMMANDS:
            self._run_command(name, argument)
        elif name is not None:
            hint = nearest(name, list(COMMANDS)) or ";"
            self._note(
                f"there is no command /{name[:20]}{hint} help lists them; "
                "a backslash before a line says it to the model"
            )
        elif text.removeprefix("\\").strip():
            self._show(self.session.reply(text.removeprefix("\\"), *self._listener))

    @property
    def _listener(self) -> tuple[OnText, bool, OnEvent | None]:
        """Who receives a reply's text, whether it is measured, who receives its events."""
        return self._write, self.show_metrics, self._events.append if self.show_metrics else None

    def _write(self, text: str) -> None:
        """Show more of a reply; events in between stand behind the word that they fell into."""
        if not text[:1].isalnum():
            self._mark_events()
        self.screen.write(text)

    def _mark_events(self) -> None:
        for event in self._events:
            self.screen.mark(f" [{event.controller}: {event.cause}]")
        self._events.clear()

    def _show(self, reply: Reply) -> None:
        """End the line of a streamed reply; show its notes and its panel."""
        self._mark_events()
        self.screen.write("\n")
        for note in reply.notes:
            self._note(note)
        self._axes = reply.result.axes
        if reply.result.goals_achieved:
            self._note(f"goal achieved: {', '.join(reply.result.goals_achieved)}")
        if self.show_metrics:
            num_layers = self.session.engine.num_layers
            for row in panel(reply.result, num_layers, self.screen.columns):
                self.screen.note(row)

    def _run_command(self, name: str, argument: str) -> None:
        try:
            COMMANDS[name].method(self, argument)
        except ValueError as error:  # the model lacks the stage, or there is no reply yet
            self._note(f"{name}: {error}")

    def _note(self, text: str) -> None:
        self.screen.note(f"[{' '.join(text.split())}]")

    # --- commands

    def end(self, _: str) -> None:
        """Leave the chat after this line."""
        self.ended = True

    def retry(self, _: str) -> None:
        """Replace the last reply by another one."""
        self._show(self.session.retry(*self._listener))

    def extend(self, _: str) -> None:
        """Write on where the last reply ends."""
        self._show(self.session.extend(*self._listener))

    def undo(self, _: str) -> None:
        """Take the last question and its reply back."""
        self._note(f"taken back: {_quoted(self.session.undo().question)}")

    def toggle_metrics(self, _: str) -> None:
        """Show the panel under replies, or hide it."""
        self.show_metrics = not self.show_metrics
        self._note(f"metrics {'on' if self.show_metrics else 'off'}")

    def set_goal(self, description: str) -> None:
        """Set the goal of the next reply; without a description, drop it."""
        old = self.session.goal
        if description:
            self.session.set_goal(description)
            self._note(f"goal of the next reply: {description}")
        elif old is None:
            self._note("no goal; goal <text> sets one for the next reply")
        else:
            self.session.drop_goal()
            self._note(f"goal dropped: {old.description}")

    def remember(self, text: str) -> None:
        """Put a text into episodic memory."""
        if not text:
            self._note("remember what? remember <text>")
            return
        self.session.engine.update_memory(terminal.encodable(text))
        self._note(f"remembered; {_num_memories(self.session)}")

    def recall(self, query: str) -> None:
        """Show the memories that resonate with a text."""
        if not query:
            self._note("recall what? recall <text>")
            return
        recollections = self.session.engine.recall(terminal.encodable(query))
        for r in recollections:
            age = _num_texts(r.age)
            told = f", told by {r.moment.source}" if r.moment.source else ""
            self._note(f"{age} ago{told}, resonance {r.resonance:.2f}: {_quoted(r.moment.text)}")
        if not recollections:
            self._note("nothing in memory resonates with that")

    def show_status(self, _: str) -> None:
        """Show what the chat and the model's session hold."""
        for line in status(self.session):
            for part in wrap(line, self.screen.columns, subsequent_indent=" " * STATUS_COLUMN):
                self.screen.note(part)

    def show_axes(self, _: str) -> None:
        """Show the sixteen semantic axes of the last reply."""
        if not self._axes:
            self._note("no reply was measured yet; metrics shows whether replies are")
            return
        self._table(axes.described(self._axes))

    def show_help(self, topic: str) -> None:
        """List the commands, or what the panel shows."""
        if topic.lower() == "metrics":
            self._table(meanings())
            return
        rows = [(f"{name} {c.argument}", c.description) for name, c in COMMANDS.items()]
        rows += [
            ("\\...", "say a line to the model that would be a command"),
            ("Ctrl-C", "stops a reply; twice at the prompt, leaves"),
        ]
        self._table(rows)

    def _table(self, rows: Iterable[tuple[str, str]]) -> None:
        for left, right in rows:
            self.screen.note(left.ljust(ARGUMENT_COLUMN) + right)


class Command(NamedTuple):
    """A command: its argument ("" without one), its line in `help`, the method of `Chat`.

    An argument in brackets may be left out, and is that word.
    """

    argument: str
    description: str
    method: Callable[[Chat, str], None]

    def takes(self, argument: str) -> bool:
        """Whether a line with this argument is the command, and not said to the model."""
        return not argument or self.argument in ("<text>", f"[{argument.lower()}]")


COMMANDS = {
    "exit": Command("", "leave; so do quit and the end of input", Chat.end),
    "quit": Command("", "leave", Chat.end),
    "retry": Command("", "replace the last reply by another one", Chat.retry),
    "continue": Command("", "write on where the last reply ends", Chat.extend),
    "undo": Command("", "take the last question and its reply back", Chat.undo),
    "goal": Command("<text>", "what the next reply is to be about; alone: drop it", Chat.set_goal),
    "remember": Command("<text>", "put a text into memory", Chat.remember),
    "recall": Command("<text>", "the memories that resonate with a text", Chat.recall),
    "status": Command("", "model, context, goal, memory, clock", Chat.show_status),
    "axes": Command("", "the sixteen semantic axes of the last reply", Chat.show_axes),
    "metrics": Command("", "show or hide the panel under replies", Chat.toggle_metrics),
    "help": Command("[metrics]", "list the commands, or what the panel shows", Chat.show_help),
}


def parse_line(line: str) -> tuple[str | None, str]:
    """(name, argument) of a command, known or not; (None, line) of a line for the model."""
    first, _, rest = line.partition(" ")
    name, argument = first.removeprefix("/").lower(), rest.strip()
    has_slash = first.startswith("/")
    known = COMMANDS.get(name)
    is_command = known is not None and known.takes(argument)
    return (name, argument) if has_slash or is_command else (None, line)


def status(session: ChatSession) -> list[str]:
    """The lines of `status`."""
    engine, turns = session.engine, session.turns
    kept = engine.session
    foci = summary(kept.agency.foci) if kept.agency else ""
    return [
        f"model    {engine.description}",
        f"context  {session.context_used} of {engine.context_length} tokens, "
        f"{len(turns)} turns, {len(turns) - len(session.turns_read)} left out",
        f"system   {_quoted(session.system[0].content) if session.system else '-'}",
        f"goal     {session.goal.description if session.goal else '-'}",
        f"foci     {foci or '-'}",
        f"memory   {_num_memories(session)}",
        f"clock    {_num_texts(kept.clock)}",
    ]


def _num_memories(session: ChatSession) -> str:
    episodes = session.engine.session.episodes
    if episodes is None:
        return "-"
    return f"{len(episodes)} of at most {_num_texts(episodes.config.max_moments)}"


def _num_texts(count: float) -> str:
    """A number of texts, which is also the unit of the session's clock."""
    return f"{count:.0f} text{'' if count == 1 else 's'}"


def _quoted(text: str) -> str:
    """The text on one line, shortened to MAX_QUOTE characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTE else f"{line[: MAX_QUOTE - 1]}…"


def run_in_terminal(
    session: ChatSession, show_metrics: bool = True, file: str | Path | None = None
) -> None:
    """Hold a conversation on this process's terminal or through its pipes until it ends.

    With a file, go on with the conversation in it, and save there after each line.
    """
    if file is not None and Path(file).exists():
        session.load(file)
    screen = Screen.of(sys.stdout)
    with terminal.undecodable_replaced():
        if terminal.is_interactive():
            screen.note(session.engine.description)
            screen.note("help lists the commands, exit leaves")
            if session.exchanges:
                screen.note(f"going on after {len(session.exchanges)} exchanges")
        Chat(session, screen, show_metrics, file).run(terminal.lines(screen))
