"""A conversation in the terminal: lines in, streamed replies out, and commands in between.

A line is a command where it is `exit`, `quit`, `status`, `metrics` or `help` and nothing else, or
begins with `goal`, `remember` or `recall`; with a slash before it, too. A backslash before a line
says it to the model as it stands: `\\goal keepers are tall`.

Context policy. All turns are given to the model as long as they leave room for the reply; then
the oldest turns are forgotten, two by two, and the chat says so. Of a turn that alone is too long
the beginning is read, and the chat says so.
"""

import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

from entropy_core.checks import nearest
from reso_llm.chat.panel import panel
from reso_llm.chat.session import ChatSession
from reso_llm.generation.engine import describe
from run_core import terminal
from run_core.terminal import Screen

MAX_LINE = 10_000
"""Characters of a line that are read."""


class Chat:
    """A conversation on a screen: what is typed is answered, or done."""

    def __init__(self, session: ChatSession, screen: Screen, show_metrics: bool = True) -> None:
        self.session, self.screen, self.show_metrics = session, screen, show_metrics
        self.ended = False

    def run(self, lines: Iterable[str]) -> None:
        """Take every line until the lines end or one says exit; Ctrl-C stops what one does."""
        for line in lines:
            try:
                self.take(line)
            except KeyboardInterrupt:
                self.session.drop_goal()
                self.screen.note("[stopped; this line had no effect]")
            if self.ended:
                return

    def take(self, line: str) -> None:
        """Do what one line says: a command, or a turn to reply to."""
        text = line.strip()
        if len(text) > MAX_LINE:
            self._note(f"line cut: the first {MAX_LINE:,} of {len(text):,} characters are read")
            text = text[:MAX_LINE]
        name, rest = command_of(text)
        if name in COMMANDS:
            self._command(name, rest)
        elif name is not None:
            self._note(
                f"there is no command /{name[:20]}{nearest(name, list(COMMANDS))} help lists them; "
                f"a backslash before a line says it to the model"
            )
        elif text.removeprefix("\\").strip():
            self._say(text.removeprefix("\\"))

    def _say(self, text: str) -> None:
        result, notes = self.session.reply(text, self.screen.write, self.show_metrics)
        self.screen.write("\n")
        for note in notes:
            self._note(note)
        if result.goals_achieved:
            self._note(f"goal achieved: {', '.join(result.goals_achieved)}")
        config = self.session.engine.config
        if self.show_metrics:
            for row in panel(result, config.vocab_size, config.num_layers, self.screen.columns):
                self.screen.note(row)

    def _command(self, name: str, rest: str) -> None:
        try:
            COMMANDS[name].do(self, rest)
        except ValueError as error:  # of the model: no such stage, nothing to remember
            self._note(f"{name}: {error}")

    def _note(self, text: str) -> None:
        self.screen.note(f"[{' '.join(text.split())}]")

    # --- commands

    def end(self, _: str) -> None:
        self.ended = True

    def toggle_metrics(self, _: str) -> None:
        self.show_metrics = not self.show_metrics
        self._note(f"metrics {'on' if self.show_metrics else 'off'}")

    def set_goal(self, description: str) -> None:
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
        if not text:
            self._note("remember what? remember <text>")
            return
        self.session.engine.model.update_memory(terminal.encodable(text))
        self._note(f"remembered; {_memories(self.session)}")

    def recall(self, query: str) -> None:
        if not query:
            self._note("recall what? recall <text>")
            return
        found = self.session.engine.model.recall(terminal.encodable(query))
        for r in found:
            words = " ".join(r.moment.text.split())
            words = words if len(words) <= self.screen.columns else f"{words[:60]}…"
            self._note(f"{_texts(r.age)} ago, resonance {r.resonance:.2f}: {words}")
        if not found:
            self._note("nothing in memory resonates with that")

    def status(self, _: str) -> None:
        for line in status(self.session):
            self.screen.note(line)

    def help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            self.screen.note(f"{name} {command.takes}".ljust(17) + command.means)
        self.screen.note("\\...".ljust(17) + "say a line to the model that would be a command")
        self.screen.note("Ctrl-C".ljust(17) + "stops a reply; twice at the prompt, leaves")


class Command(NamedTuple):
    """What follows its name, what it means, and what does it."""

    takes: str
    means: str
    do: Callable[[Chat, str], None]


COMMANDS = {
    "exit": Command("", "leave, as do quit and the end of input", Chat.end),
    "quit": Command("", "leave", Chat.end),
    "goal": Command("<text>", "what the next reply is to be about; alone: drop it", Chat.set_goal),
    "remember": Command("<text>", "put a text into memory", Chat.remember),
    "recall": Command("<text>", "what in memory resonates with it, and its age", Chat.recall),
    "status": Command("", "model, context, goal, memory, clock", Chat.status),
    "metrics": Command("", "show or hide what was measured", Chat.toggle_metrics),
    "help": Command("", "this list", Chat.help),
}


def command_of(line: str) -> tuple[str | None, str]:
    """(name, what follows it) of a line that is a command, known or not; (None, line) of speech."""
    first, _, rest = line.partition(" ")
    name, rest = first.removeprefix("/").lower(), rest.strip()
    takes_text = name in COMMANDS and bool(COMMANDS[name].takes)
    if name in COMMANDS and (takes_text or not rest):
        return name, rest
    if first.startswith("/"):
        return name, rest
    return None, line


def status(session: ChatSession) -> list[str]:
    """What `status` shows."""
    engine = session.engine
    kept = engine.model.session
    foci = ", ".join(focus.target for focus in kept.agency.foci) if kept.agency else ""
    return [
        f"model    {describe(engine)}",
        f"context  {session.context_used} of {engine.config.max_seq_len} tokens, "
        f"{len(session.turns)} turns, {session.forgotten} forgotten",
        f"goal     {session.goal.description if session.goal else '-'}",
        f"foci     {foci or '-'}",
        f"memory   {_memories(session)}",
        f"clock    {_texts(kept.clock)}",
    ]


def _memories(session: ChatSession) -> str:
    memory = session.engine.model.session.episodes
    if memory is None:
        return "-"
    return f"{len(memory)} of at most {_texts(memory.config.max_moments)}"


def _texts(count: float) -> str:
    """A time of the memory's clock, or a number of texts."""
    return f"{count:.0f} text{'' if count == 1 else 's'}"


def run_in_terminal(session: ChatSession, show_metrics: bool = True) -> None:
    """The conversation on this process's terminal, or through its pipes, to its end."""
    screen = Screen.of(sys.stdout)
    with terminal.undecodable_replaced():
        if terminal.is_interactive():
            screen.note(describe(session.engine))
            screen.note("help lists the commands, exit leaves")
        Chat(session, screen, show_metrics).run(terminal.lines(screen))
