"""The terminal chat: what reaches the screen, what is remembered, how it ends."""

import io
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import FULL

from reso_llm.chat.commands import COMMANDS, MAX_LINE, Chat, parse_line, run_in_terminal
from reso_llm.chat.panel import DIALS, panel
from reso_llm.chat.session import ChatSession, Exchange
from reso_llm.decoding.controllers import Decision, PhaseSlip, StabilityTemperature
from reso_llm.decoding.row import Event
from reso_llm.generation.context import Context
from reso_llm.generation.results import GenerationResult
from reso_llm.inference import ResoLLMInference
from reso_llm.tokenizer import ResoTokenizer
from run_core import terminal
from run_core.terminal import Screen, printable, sparkline

FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
HOSTILE = "a\x1b[2Jb\x07c\x9bd\u202ee\u2066f\rg\x7fh\x00i\ud800j\u2028k\u061c"


@pytest.fixture
def make_session(tiny_model, byte_tokenizer):
    def make(stages=FULL, max_length=8, **options):
        model = tiny_model(stages=stages, vocab_size=261, max_seq_len=64)
        engine = ResoLLMInference(model, byte_tokenizer, model.config)
        return ChatSession(engine, max_length, seed=0, **options)

    return make


@pytest.fixture
def session(make_session):
    return make_session()


def chat(session, *lines, metrics=False):
    stream = io.StringIO()
    Chat(session, Screen(stream), metrics).run(lines)
    return stream.getvalue()


def says(session, monkeypatch, *texts):
    """Let the engine say these texts; what it was given is returned."""
    given, left = [], iter(texts)

    def generate(turns, max_length, on_text, **options):
        given.append((turns, options))
        text = next(left)
        on_text(text)
        return result_of(text=text)

    monkeypatch.setattr(session.engine, "generate", generate)
    return given


def result_of(**changes):
    plain = dict(
        text="", token_ids=(), tokens_generated=0, prompt_tokens=1, stop_reason="end", seed=0,
        generation_time_ms=0.0,
    )  # fmt: skip
    return GenerationResult(**(plain | changes))


# --- the conversation


def test_replies_are_streamed_and_remembered(session):
    text = chat(session, "hi\n", "more\n")
    roles = [turn.role for turn in session.turns]
    assert roles == ["user", "assistant"] * 2
    assert text == "".join(f"{printable(t.content)}\n" for t in session.turns[1::2])


def test_a_seed_repeats_a_conversation_whose_replies_differ(make_session, monkeypatch):
    assert chat(make_session(), "hi", "hi") == chat(make_session(), "hi", "hi")
    session = make_session()
    given = says(session, monkeypatch, "a", "b")
    chat(session, "hi", "hi")
    assert [options["seed"] for _, options in given] == [0, 1]


@pytest.mark.parametrize("word", ["exit", "quit", "EXIT", "/exit"])
def test_exit_and_blank_lines(session, word):
    assert chat(session, "\n", "  \n", f"{word}\n", "never read\n") == ""
    assert session.turns == []


def test_the_oldest_turns_are_left_out_and_the_chat_says_so(session, monkeypatch):
    """The prompt leaves room for the reply; it holds the newest turns and opens with a question."""
    given = says(session, monkeypatch, *["short"] * 6)
    questions = [f"question number {i}" for i in range(6)]
    text = chat(session, *questions)
    expected = [f"question number {i}" for i in (4, 5)]
    assert [turn.content for turn in given[-1][0] if turn.role == "user"] == expected
    assert [turn.role for turn in given[-1][0]] == ["user", "assistant", "user"]
    for turns, _ in given:
        assert len(session.engine.tokenizer.encode_prompt(turns)) <= 64 - 8
    assert "the 8 oldest turns are left out" in text
    assert len(session.turns) == 12


def test_as_many_turns_as_fit_are_read(session, monkeypatch):
    """Exactly full is not too full: two exchanges and a question of 56 tokens, then of 57."""
    for size, count in ((12, 5), (13, 3)):
        session.exchanges = [Exchange("a" * 10, "b" * 6), Exchange("c" * 10, "d" * 6)]
        given = says(session, monkeypatch, "e")
        chat(session, "f" * size)
        assert len(given[0][0]) == count


def test_the_system_message_stays_when_the_context_is_full(make_session, monkeypatch):
    session = make_session(system="be a pirate")
    given = says(session, monkeypatch, *["aye"] * 5)
    text = chat(session, *["x" * 9] * 4, "y" * 1000)
    assert [turns[0] for turns, _ in given] == [("system", "be a pirate")] * 5
    for turns, _ in given:
        assert len(session.engine.tokenizer.encode_prompt(turns)) <= 64 - 8
    assert "oldest turns are left out" in text
    assert "of 1,000 characters are read" in text
    assert "system   be a pirate" in chat(session, "status")
    assert all(turn.role != "system" for turn in session.turns)


@pytest.mark.parametrize(("system", "reason"), [(" ", "blank"), ("x" * 14, "16 tokens")])
def test_a_system_message_out_of_range(make_session, system, reason):
    make_session(system="x" * 13)  # 16 of 64 tokens, with <|bos|>
    with pytest.raises(ValueError, match=f"^system .*{reason}"):
        make_session(system=system)


def test_retry_replaces_the_last_reply(session, monkeypatch):
    given = says(session, monkeypatch, "one", "two", "three")
    chat(session, "hi", "and?", "retry")
    assert [turn.content for turn in session.turns] == ["hi", "one", "and?", "three"]
    assert given[2][0] == given[1][0]
    assert [options["seed"] for _, options in given] == [0, 1, 2]


def test_retry_and_continue_pursue_the_goal_again(session):
    chat(session, "goal kites", "hi")
    for write in (session.retry, session.extend, session.retry):
        result, _ = write(lambda text: None)
        assert list(result.goal_progress) == ["kites"]
    chat(session, "goal boats")
    result, _ = session.retry(lambda text: None)
    assert list(result.goal_progress) == ["boats"]
    assert session.engine.model.get_active_goals() == ()


def test_undo_takes_an_exchange_back_and_older_turns_return(session, monkeypatch):
    given = says(session, monkeypatch, *"abcd")
    text = chat(session, "first", "second", "x" * 50, "undo", "more")
    assert f"[taken back: {'x' * 50}]" in text
    assert [turn.content for turn in given[2][0]] == ["x" * 50]
    assert [turn.content for turn in given[3][0]] == ["first", "a", "second", "b", "more"]
    assert [turn.content for turn in session.turns] == ["first", "a", "second", "b", "more", "d"]


def test_continue_writes_on_where_the_reply_ends(session, monkeypatch):
    given = says(session, monkeypatch, "I went", " to the sea", "!")
    text = chat(session, "hi", "continue", "/continue")
    assert [turns for turns, _ in given] == [
        [("user", "hi")],
        [("user", "hi"), ("assistant", "I went")],
        [("user", "hi"), ("assistant", "I went to the sea")],
    ]
    assert session.turns == [("user", "hi"), ("assistant", "I went to the sea!")]
    assert text == "I went\n to the sea\n!\n"


def test_continue_says_so_where_the_model_adds_nothing(session, monkeypatch):
    says(session, monkeypatch, "I went.", "")
    assert "[nothing to add: the model ends the reply" in chat(session, "hi", "continue")
    assert session.turns == [("user", "hi"), ("assistant", "I went.")]


def test_the_panel_counts_one_token_as_one():
    assert "1 token " in "\n".join(panel(result_of(tokens_generated=1), 2, 80))


def test_continue_keeps_to_the_context(session, monkeypatch):
    session.exchanges = [Exchange("a" * 40, "b" * 40)]
    given = says(session, monkeypatch, "c")
    text = chat(session, "continue")
    assert len(session.engine.tokenizer.encode_prompt(given[0][0])) == 64 - 8
    assert "the first 12 of 40 characters are read" in text
    session.exchanges = [Exchange("hi", "b" * 60)]
    assert "continue: the reply fills the context" in chat(session, "continue")
    assert session.exchanges == [Exchange("hi", "b" * 60)]


@pytest.mark.parametrize("command", ["retry", "undo", "continue"])
def test_before_the_first_reply(session, command):
    assert chat(session, command) == f"[{command}: there is no reply yet]\n"


@pytest.mark.parametrize("command", ["retry", "continue"])
def test_a_reply_that_is_not_replaced_stays(session, monkeypatch, command):
    session.exchanges = [Exchange("hi", "well")]
    stopped_after(session, monkeypatch, " ")
    assert "as it was" in chat(session, command)
    assert session.turns == [("user", "hi"), ("assistant", "well")]


def test_a_turn_longer_than_the_context_is_cut_and_told(session):
    text = chat(session, "x" * 100)
    assert session.turns[0].content == "x" * 52  # 64 - 8, without bos, two openers and an end
    assert "the first 52 of 100 characters" in text


def test_a_line_of_a_megabyte_is_cut_before_anything_reads_it(session, monkeypatch):
    given = says(session, monkeypatch, "ok")
    text = chat(session, "y" * 1_000_000)
    assert f"first {MAX_LINE:,} of 1,000,000 characters" in text
    assert len(given[0][0][0].content) <= MAX_LINE
    assert "y" * 100 not in text
    told = []
    monkeypatch.setattr(session.engine, "update_memory", told.append)
    chat(session, "remember " + "z" * 1_000_000)
    assert len(told[0]) < MAX_LINE


def test_the_goal_is_that_of_the_next_reply_alone(session):
    model = session.engine.model
    assert "no goal" in chat(session, "goal")
    chat(session, "goal kites", "goal boats")
    assert [goal.description for goal in model.get_active_goals()] == ["boats"]
    assert "goal dropped: boats" in chat(session, "goal")
    chat(session, "goal kites")
    result, _ = session.reply("hi", lambda text: None)
    assert list(result.goal_progress) == ["kites"]
    assert model.get_active_goals() == ()
    assert session.goal is None


def test_recall_names_who_told(session):
    session.engine.model.update_memory("she lives in Oslo", source="beta")
    assert "ago, told by beta, resonance" in chat(session, "recall Oslo")


def test_remember_and_recall(session):
    text = chat(session, "recall oslo", "remember she lives in Oslo", "hi", "recall Oslo", "recall")
    assert "nothing in memory" in text
    assert "1 of at most" in text
    assert re.search(r"1 text ago, resonance 1\.00: she lives in Oslo", text)
    assert "recall what?" in text


def test_status_counts(session):
    text = chat(session, "hi", "goal kites", "remember this", "/status")
    used = len(session.engine.prompt_ids(session.turns))
    assert f"context  {used} of 64 tokens, 2 turns, 0 left out" in text
    assert "goal     kites" in text
    assert "memory   1 of at most" in text
    assert "clock    1 text\n" in text


def test_status_fits_its_lines(session, monkeypatch):
    description = "a model " * 20
    monkeypatch.setattr(type(session.engine), "description", description)
    first, second, *_ = chat(session, "status").splitlines()
    assert first.startswith("model    a model")
    assert len(first) <= 80
    assert second.startswith(" " * 9 + "a model")


def test_a_reply_of_no_token_is_refused(make_session):
    with pytest.raises(ValueError, match="max_length = 0: expected at least 1"):
        make_session(max_length=0)


def test_status_of_a_reply_longer_than_the_context(session):
    """The last exchange counts as read, and no more tokens than the context holds."""
    session.exchanges = [Exchange("hi", "b" * 9), Exchange("a" * 30, "b" * 60)]
    assert "context  64 of 64 tokens, 4 turns, 2 left out" in chat(session, "status")


def test_help_lists_every_command(session):
    text = chat(session, "help")
    for name in COMMANDS:
        assert f"\n{name} " in f"\n{text}"
    assert max(map(len, text.splitlines())) <= 80


def test_metrics_toggle(session, monkeypatch):
    given = says(session, monkeypatch, "a", "b", "c")
    text = chat(session, "1", "metrics", "2", "METRICS", "3", metrics=True)
    assert text.count("ended by") == 2
    assert [options["metrics"] for _, options in given] == [True, False, True]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("status", ("status", "")),
        ("/Status", ("status", "")),
        ("status of my order?", (None, "status of my order?")),
        ("help me", (None, "help me")),
        ("exit strategy", (None, "exit strategy")),
        ("goal keepers are tall", ("goal", "keepers are tall")),
        ("goals", (None, "goals")),
        ("\\goal keepers", (None, "\\goal keepers")),
        ("/recal x", ("recal", "x")),
        ("/help me", ("help", "me")),
        ("undo", ("undo", "")),
        ("undo it", (None, "undo it")),
        ("hi", (None, "hi")),
    ],
)
def test_what_is_a_command(line, expected):
    assert parse_line(line) == expected


def test_an_unknown_command_is_not_said_to_the_model(session):
    text = chat(session, "/stauts", "/\x1b[2J", "/" + "z" * 500)
    assert "there is no command /stauts; did you mean status? help lists them" in text
    assert f"there is no command /{'z' * 20}; help lists them" in text
    assert session.turns == []
    assert not FORBIDDEN.search(text)


def test_a_backslash_says_a_command_to_the_model(session, monkeypatch):
    given = says(session, monkeypatch, "a", "b", "c")
    chat(session, "\\goal keepers are tall", "\\exit", "\\\\", "\\")
    assert [turns[-1].content for turns, _ in given] == ["goal keepers are tall", "exit", "\\"]
    assert session.goal is None


def test_commands_of_a_plain_model_say_what_is_missing(make_session):
    text = chat(make_session(stages=()), "goal x", "remember x", "recall x", "status", "goal", "hi")
    assert "agency.enabled=true" in text
    assert text.count("temporal_smf.enabled=true") == 2
    assert "memory   -" in text


def test_options_are_checked_before_the_first_line(make_session):
    with pytest.raises(ValueError, match="temperature"):
        make_session(temperature=-1.0)


def test_controllers_work_with_metrics_off(make_session):
    """Guards a controller that follows a monitor which nobody started."""
    session = make_session(controllers=(StabilityTemperature(),))
    chat(session, "hi", metrics=False)
    assert len(session.turns) == 2


# --- Ctrl-C


def stopped_after(session, monkeypatch, text):
    def generate(turns, max_length, on_text, **options):
        on_text(text)
        return result_of(text=text, stop_reason="interrupted")

    monkeypatch.setattr(session.engine, "generate", generate)


def test_a_stopped_reply_is_kept_as_far_as_it_went(session, monkeypatch):
    stopped_after(session, monkeypatch, "half a rep")
    assert "kept as far as it went" in chat(session, "hi")
    assert session.turns[-1] == ("assistant", "half a rep")


def test_a_reply_stopped_before_its_first_word_is_no_turn(session, monkeypatch):
    stopped_after(session, monkeypatch, " ")
    assert "as it was" in chat(session, *["twenty characters..."] * 4)
    assert session.turns == []


def test_the_engine_stops_at_ctrl_c_and_the_chat_goes_on(make_session):
    """Guards a chat that dies with its reply, against the real engine."""
    session = make_session(temperature=5.0)  # hot, or replies of a random model end at once

    class Impatient(io.StringIO):
        left = 3

        def write(self, text):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().write(text)

    stream = Impatient()
    Chat(session, Screen(stream), False).run(["hi", "more"])
    assert len(session.turns) == 4
    assert len(session.turns[1].content) < len(session.turns[3].content)


def test_ctrl_c_while_the_full_context_is_read_again(make_session, monkeypatch):
    """Guards a traceback: the attention received was added up over two lengths of the context."""
    session = make_session(max_length=200, temperature=5.0, logit_bias={0: -100, 4: -100})
    read_alone, reads = Context._read_alone, []

    def interrupted_the_second_time(context, *args):
        reads.append(args)
        if len(reads) == 2:
            raise KeyboardInterrupt
        return read_alone(context, *args)

    monkeypatch.setattr(Context, "_read_alone", interrupted_the_second_time)
    assert "kept as far as it went" in chat(session, "hi", metrics=True)
    assert len(reads) == 2
    assert len(session.turns) == 2


def test_ctrl_c_anywhere_else_leaves_the_conversation_as_it_was(session, monkeypatch):
    def generate(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.engine, "generate", generate)
    text = chat(session, "goal kites", "hi", "status")
    assert "no effect" in text
    assert "goal     -" in text
    assert session.turns == []


# --- the screen


def test_no_control_character_reaches_the_terminal():
    """Guards against a reply that clears the screen, sets colours or reorders a line."""
    shown = printable(HOSTILE)
    assert not FORBIDDEN.search(shown)
    assert shown.replace("\ufffd", "") == "a[2Jbcdefghijk"
    assert printable("tab\tline\nümlaut 日本 🙂") == "tab\tline\nümlaut 日本 🙂"


@pytest.mark.parametrize(
    "line", ["{}", "goal {}", "remember {}", "recall {}", "/{}", "\\{}"], ids=repr
)
def test_hostile_text_is_harmless_on_every_way_to_the_screen(session, monkeypatch, line):
    reply = HOSTILE.replace("\ud800", "")  # which no tokenizer decodes to
    given = says(session, monkeypatch, reply, reply)
    text = chat(session, "remember " + HOSTILE, line.format(HOSTILE), "status", "goal", "hi")
    assert not FORBIDDEN.search(text)
    assert "surrogate" not in text  # what is no character is replaced, not refused
    for turns, _ in given:
        "".join(turn.content for turn in turns).encode()  # the tokenizer takes no lone surrogate


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def test_only_a_terminal_that_wants_it_is_dimmed(monkeypatch):
    def shown(stream):
        Screen.of(stream).note("x")
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert shown(Terminal()) == "\x1b[2mx\x1b[0m\n"
    assert shown(io.StringIO()) == "x\n"
    monkeypatch.setenv("TERM", "dumb")
    assert shown(Terminal()) == "x\n"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(Terminal()) == "x\n"


def test_notes_are_broken_between_words_in_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    note = "a note of some more characters than thirty"
    for stream, lines in ((Terminal(), 2), (io.StringIO(), 1)):
        Screen.of(stream).note(note)
        shown = stream.getvalue().splitlines()
        assert len(shown) == lines
        assert " ".join(line.strip() for line in shown) == note
        assert max(map(len, shown)) <= 30 or lines == 1


def test_a_screen_is_as_wide_as_its_terminal_is_now(monkeypatch):
    screen = Screen.of(Terminal())
    for told, columns in ((50, 50), (140, 140), (1000, 200), (3, 20)):
        monkeypatch.setenv("COLUMNS", str(told))
        assert screen.columns == columns
    assert Screen.of(io.StringIO()).columns == 80


@pytest.mark.parametrize("columns", [*range(20, 81), 120, 200])
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_a_panel_fits(columns, size):
    full = result_of(
        tokens_generated=size, generation_time_ms=12.5 * size, stability="divergent",
        lyapunov=-12.34, entropy_trace=(3.2, math.nan, 9.9)[:size] * 400,
        temperature_trace=(0.3, 1.5) * size, coherence_trace=(math.nan,) * size,
        layers_trace=(12,) * size, goal_progress={"kites": 0.431}, memories_used=("x",) * 100,
        warnings=("token 12: 83% of the last 12 tokens are repeated, and more of that kind",) * 3,
        stop_reason="srb_settled", events=(Event(1, "a", "b", "c"),) * size,
    )  # fmt: skip
    lines = panel(full, 24, columns)
    assert len(lines) <= 4
    assert max(map(len, lines)) <= columns
    assert "nan" not in "".join(lines)
    assert lines[-1].endswith("(+2 more)")


def test_a_panel_says_what_was_measured():
    result = result_of(
        tokens_generated=30, generation_time_ms=500.0, stability="periodic", lyapunov=0.25,
        entropy_trace=(1.0, math.nan, 3.0), temperature_trace=(0.7, 1.5, 0.7),
        coherence_trace=(0.5, 0.7),
        layers_trace=(2, 3), goal_progress={"kites": 0.43}, memories_used=("x\ny", "z"),
        stop_reason="length", events=(Event(1, "slip", "b", "c"),), warnings=("careful",),
    )  # fmt: skip
    text = "  ".join(panel(result, 4, 80))
    for fact in ("entropy ▃-█ 0 to 3.0 nats, mean 2.00", "order 0.60", "Lyapunov +0.25", "periodic",
                 "T 0.70..1.50", "layers 2.5 of 4", "goal 43%", "used: x y (+1 more)", "30 tokens",
                 "60/s",
                 "ended by length", "slip 1", "! careful"):  # fmt: skip
        assert fact in text


def test_what_is_not_defined_or_does_not_move_is_not_shown():
    calm = result_of(temperature_trace=(0.7, 0.7), goal_progress={"kites": math.nan}, lyapunov=0.0)
    assert panel(calm, 4, 80) == ["0 tokens  ended by end"]


def test_help_metrics_explains_every_value_of_the_panel_in_a_line(session):
    text = chat(session, "help metrics")
    assert [line.split("  ")[0] for line in text.splitlines()] == ["entropy", *DIALS, "!"]
    assert max(map(len, text.splitlines())) <= 80
    assert session.turns == []


def test_events_are_shown_where_they_happen(make_session):
    """Behind the word they fall into, a run of the same decision once; not without the panel."""
    slip = PhaseSlip.published(spike_nats=0.0, cooldown_steps=3, slip_temperature=None)
    session = make_session(controllers=(slip, Script()), temperature=5.0, max_length=7)
    text = chat(session, "hi", metrics=True)
    reply = text.split("entropy ")[0]
    assert 0 < reply.index(" [phase_slip: spike] [script: hot]") < 3
    assert reply.count("[script: hot]") == 2
    assert reply.count("[phase_slip: spike]") == 2
    assert "[" not in chat(make_session(controllers=(Script(),)), "hi")


class Script:
    """A controller that decides at every token but the third."""

    name = "script"

    def start(self):
        return Follow()


class Follow:
    step = -1

    def decide(self, view):
        self.step += 1
        return None if self.step == 2 else Decision("hot", temperature=5.0)


def test_sparkline_is_bounded_and_ordered():
    assert sparkline((0.0, 4.0, 8.0, 99.0), 8.0, 60) == "▁▅██"
    assert sparkline((0.0, math.nan, 7.0), 7.0, 60) == "▁-█"
    assert len(sparkline(tuple(range(1000)), 8.0, 60)) <= 60


# --- a process


ENDLESS = """
import signal
import torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from reso_llm.chat.commands import run_in_terminal
from reso_llm.chat.session import ChatSession
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer

class Endless(ResoLLMInference):
    def start(self, *args, **options):
        job = super().start(*args, **options)
        job.context.forbidden = torch.cat((job.context.forbidden, job.context.ends))
        return job

model = ResoLLMModel.from_pretrained("{0}/model")
engine = Endless(model, ResoTokenizer.load("{0}/tokenizer.json"), model.config)
run_in_terminal(ChatSession(engine, 100_000, seed=0), show_metrics=True)
"""


@pytest.fixture
def script(tmp_path, make_session):
    """A program that talks with a tiny model whose replies never end by themselves."""
    engine = make_session().engine
    engine.model.save_pretrained(tmp_path / "model")
    engine.tokenizer.save(tmp_path / "tokenizer.json")
    program = tmp_path / "talk.py"
    program.write_text(ENDLESS.format(tmp_path))
    return program


class Typist:
    """Types into a program in a pseudo-terminal, and reads its screen."""

    def __init__(self, program):
        import pty

        self.master, slave = pty.openpty()
        repository = str(Path(__file__).resolve().parents[3])
        environment = os.environ | {
            "TERM": "dumb", "NO_COLOR": "1", "INPUTRC": "/dev/null", "PYTHONPATH": repository
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", program],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.screen = b""

    def type(self, text):
        os.write(self.master, text)

    def cancel(self):
        """Press Ctrl-C in the middle of a line: in the instant before it waits for a key, Python's
        line editor notes a signal only at the next one."""
        self.type(b"never sent")
        self.wait_for(rb"never sent$")
        time.sleep(0.3)
        self.type(b"\x03")

    def wait_for(self, pattern, seconds=60):
        """Read until the pattern is new on the screen."""
        start, deadline = len(self.screen), time.monotonic() + seconds
        while not re.search(pattern, self.screen[start:]):
            ready = select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]
            try:
                piece = os.read(self.master, 65536) if ready else b""
            except OSError:  # how Linux says that the other side is gone
                piece = b""
            assert piece, f"{pattern} did not come: {self.screen[-2000:]}"
            self.screen += piece

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_in_a_terminal(script):
    """Line editing, Ctrl-C in a reply, Ctrl-C at the prompt, and nothing raw on the screen."""
    typist = Typist(script)
    try:
        typist.wait_for(rb"> $")
        typist.type(b"hexlp\x02\x02\x7f\n")  # back over l and p, and x deleted
        typist.wait_for(rb"Ctrl-C  [\s\S]*> $")
        typist.type(b"\x1b[A\n")  # the line before
        typist.wait_for(rb"Ctrl-C  [\s\S]*> $")
        typist.type(b"tell me\xff\n")
        typist.wait_for(rb"tell me[\s\S]{100}")
        typist.type(b"\x03")
        typist.wait_for(rb"ended by interrupted[\s\S]*> $")
        typist.cancel()
        typist.wait_for(rb"once more leaves[\s\S]*> $")
        typist.type(b"status\n")
        typist.wait_for(rb"2 turns[\s\S]*> $")
        typist.cancel()
        typist.wait_for(rb"once more leaves[\s\S]*> $")
        typist.cancel()
        assert typist.process.wait(60) == 0
    finally:
        typist.close()
    assert b"kept as far as it went" in typist.screen
    reply = re.search(rb"tell me[^\n]*\n([\s\S]*?)entropy ", typist.screen)[1]
    assert not FORBIDDEN.search(reply.decode().replace("\r\n", "\n"))


# --- pipes, and a stand-in for them


@pytest.fixture
def piped(monkeypatch, capsys):
    def run(session, data, **options):
        pipe = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", pipe)
        run_in_terminal(session, **options)
        return capsys.readouterr().out

    return run


def test_a_pipe_is_answered_line_by_line(session, piped):
    text = piped(session, b"hi\ncaf\xe9 \x00\n\nlast", show_metrics=False)
    users = [turn.content for turn in session.turns if turn.role == "user"]
    assert users[-1] == "last"
    assert "> " not in text.splitlines()[0][:2]
    assert not FORBIDDEN.search(text)


def test_undecodable_bytes_of_a_pipe(session, piped):
    piped(session, b"caf\xe9\n", show_metrics=False)
    assert session.turns[0].content == "caf\ufffd"


def test_a_byte_order_mark_is_not_speech(session, piped):
    assert piped(session, b"\xef\xbb\xbf\n\xef\xbb\xbf") == ""
    piped(session, b"\xef\xbb\xbfhi\n", show_metrics=False)
    assert session.turns[0].content == "hi"


def test_closed_streams(session, monkeypatch):
    """Python has None for a stream that was closed before it started: `chat.py <&- >&-`."""
    monkeypatch.setattr(sys, "stdin", None)
    run_in_terminal(session)
    monkeypatch.setattr(sys, "stdout", None)
    run_in_terminal(session)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    run_in_terminal(session)
    assert len(session.turns) == 2


def test_the_end_of_input_ends_it(session, piped, monkeypatch, capsys):
    assert piped(session, b"") == ""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))  # what a notebook or a test may have
    session.engine.interactive_session(show_metrics=True)
    assert capsys.readouterr().out == ""


def test_a_screen_that_knows_ascii_alone_shows_the_rest_as_question_marks(session, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    run_in_terminal(session, show_metrics=True)
    assert b"entropy ?" in shown.getvalue()
    assert sys.stdout.errors == "strict"


def test_lone_surrogates_are_replaced_and_pairs_joined():
    assert terminal.encodable("a\ud800b\ud83d\ude42") == "a\ufffdb🙂"


def test_signal_handlers_are_left_alone(session, piped):
    before = signal.getsignal(signal.SIGINT)
    piped(session, b"hi\n")
    assert signal.getsignal(signal.SIGINT) is before


# --- a conversation in a file ---------------------------------------------------------------------


def test_a_conversation_goes_on_from_its_file(make_session, tmp_path):
    """Turns, memories, clock, the goal of the next reply and the seed's place."""
    path = tmp_path / "talk.session"
    whole, first = make_session(), make_session()
    for session in (whole, first):
        session.reply("hello", str)
        session.engine.model.update_memory("Mara keeps the map.")
        session.set_goal("be kind")
    first.save(path)
    second = make_session()
    second.load(path)
    assert second.turns == whole.turns
    assert second.goal.description == "be kind"
    assert second.engine.model.session.clock == whole.engine.model.session.clock == 1.0
    ours, theirs = (s.reply("and then?", str).result.to_dict() for s in (second, whole))
    assert ours | {"generation_time_ms": 0} == theirs | {"generation_time_ms": 0}


def test_each_line_is_saved(make_session, tmp_path):
    path, shown = tmp_path / "talk.session", io.StringIO()
    talk = Chat(make_session(), Screen(shown), show_metrics=False, file=path)
    talk.run(["hello", "remember Mara keeps the map."])
    again = make_session()
    again.load(path)
    assert again.turns[0].content == "hello"
    assert len(again.engine.model.session.episodes) == 1
    talk.file = tmp_path / "gone" / "talk.session"
    talk.run(["again"])
    assert "[not saved: " in shown.getvalue()


def test_a_session_without_a_conversation_is_named(make_session, tmp_path):
    session = make_session()
    session.engine.model.session.save(tmp_path / "s")
    with pytest.raises(ValueError, match="without a conversation"):
        session.load(tmp_path / "s")


def test_a_conversation_of_another_tokenizer_is_refused(make_session, tmp_path):
    """Its ids would stand for other words."""
    session = make_session()
    session.save(tmp_path / "s")
    other = make_session()
    other.engine.tokenizer = ResoTokenizer.train(["zebras jump " * 9], 262)
    with pytest.raises(ValueError, match="another tokenizer"):
        other.load(tmp_path / "s")
