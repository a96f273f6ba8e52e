"""What a reply may use of the stored texts, and how it is told."""

import math

import pytest

from reso_llm.data.conversation import Message
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.remembered import (
    MOST,
    NOTHING,
    is_statement,
    memories_of,
    memory_limit,
    query_of,
    replies_of,
    said_back,
    with_memories,
)
from reso_llm.inference import ResoLLMInference

TIMES = 4.0
SISTER, PETER, KEY = (
    "My sister Olga lives in Oslo",
    "Peter lives in Rome!",
    "The key is in the pot.",
)


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    """It has room for a system message; its field is one of the stages that memory acts by."""
    model = tiny_model(stages=("echo", "temporal_smf"), vocab_size=261, max_seq_len=256)
    return ResoLLMInference(model, byte_tokenizer, model.config)


def told(engine, query, room=1000):
    return memories_of(engine.model.session, query, list, TIMES, room)


def remember(engine, *texts):
    for text in texts:
        engine.model.update_memory(text)


# --- which ---------------------------------------------------------------------------------------


def test_only_what_is_asked_for_is_used(engine):
    assert told(engine, "Where is Olga?") is NOTHING
    remember(engine, SISTER, PETER, KEY)
    assert told(engine, "Where is Olga?").texts == (SISTER,)
    assert told(engine, "Olga and Peter").texts == (SISTER, PETER), "in the order they were stored"
    assert told(engine, "How are you?") == NOTHING


def test_weights_are_importance_and_age(engine):
    engine.model.update_memory(SISTER, importance=3.0)
    engine.model.session.advance(7)
    rate = engine.config.temporal_smf.memory_decay_rate
    ((ids, weight),) = told(engine, "Olga").echo
    assert ids == tuple(SISTER)
    assert weight == pytest.approx(TIMES * 3 * math.exp(-7 * rate))


def test_at_most_a_few_and_those_that_fit_are_told(engine):
    remember(engine, *(f"Olga has tulip {i}." for i in range(MOST + 2)))
    assert len(told(engine, "Olga").texts) == MOST
    some = told(engine, "Olga", room=2 * len("Olga has tulip 0.") + 2)
    assert some.told == some.texts[:2]
    assert len(some.echo) == MOST


def test_what_asks():
    chat = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert query_of(chat) == "c"
    assert query_of([*chat, Message("assistant", "begun")]) == "c"
    assert query_of([Message("system", "s")]) == ""
    assert query_of("Once. Twice?\nOlga lives in") == "Olga lives in"
    assert query_of("All said. ") == "All said."


# --- what was said earlier in the same conversation ----------------------------------------------


def test_a_question_finds_what_the_user_said_earlier(engine):
    chat = [
        ("user", f"Hello! {SISTER}. Do you know Olga?"), ("assistant", "Olga lives in Rome."),
        ("user", "I like tea."), ("assistant", "Good."), ("user", "Where does Olga live?"),
    ]  # fmt: skip
    assert told(engine, chat).texts == (f"{SISTER}.",), "no question, and no reply of the model"
    assert told(engine, [*chat[:4], ("user", "Tell me about Olga.")]).texts == (f"{SISTER}.",)
    assert told(engine, [*chat[:4], ("user", "Olga is here.")]) is NOTHING, "asks nothing"
    assert told(engine, [*chat[:4], ("user", "How are you?")]) is NOTHING
    assert told(engine, chat[-1:]) is NOTHING
    assert told(engine, f"{SISTER}. Where does Olga live?") is NOTHING, "a text reads itself"


def test_a_question_finds_what_its_own_message_says_before_it(engine):
    """By the question alone: the message's statements would always match themselves."""
    chat = [("user", "Olga likes tulips."), ("user", f"{SISTER}. Where does my sister Olga live?")]
    found = told(engine, chat)
    assert f"{SISTER}." in found.texts
    assert found.told == ()
    assert dict(zip(found.texts, found.echo, strict=True))[f"{SISTER}."][1] == TIMES, "just now"
    assert told(engine, [("user", f"{SISTER}. What is the capital of France?")]) is NOTHING
    assert told(engine, [("user", f"Where does my sister Olga live? {SISTER}.")]) is NOTHING, (
        "after"
    )


def test_what_was_said_stands_beside_what_is_stored(engine):
    """Stored texts come first; the same text counts once, and a newer one more."""
    remember(engine, "Olga likes tulips.")
    said = [("user", SISTER), ("user", "Olga likes tulips."), ("user", "What of Olga?")]
    found = told(engine, said)
    assert found.texts == ("Olga likes tulips.", SISTER)
    rate = engine.config.temporal_smf.memory_decay_rate
    assert [weight for _, weight in found.echo] == pytest.approx(
        [TIMES, TIMES * math.exp(-2 * rate)]
    )
    many = [("user", f"Olga has tulip {i}.") for i in range(MOST + 2)]
    newest = tuple(text for _, text in many[-MOST:])
    engine.session = type(engine.session)(engine.session.config)
    assert told(engine, [*many, ("user", "Olga?")]).texts == newest
    twice = told(engine, [many[0], many[1], many[0], ("user", "Olga?")])
    assert twice.texts == (many[1][1], many[0][1])
    assert twice.echo[1][1] == pytest.approx(TIMES * math.exp(-rate)), "as old as the last time"


def test_a_session_that_keeps_no_texts_asks_for_none(tiny_model, byte_tokenizer):
    model = tiny_model(stages=(), vocab_size=261, max_seq_len=256)
    plain = ResoLLMInference(model, byte_tokenizer, model.config)
    assert told(plain, [("user", SISTER), ("user", "Where is Olga?")]) is NOTHING


def test_a_reply_uses_what_was_said(engine):
    chat = [("user", f"{SISTER}."), ("assistant", "I see."), ("user", "Where is Olga?")]
    job = engine.start([chat], *_greedy())
    assert job.rows[0].ids == engine.prompt_ids(chat), "it is in the conversation already"
    assert [list(ids) for ids, _ in job.rows[0].memories.echo] == [engine.reply_ids(f"{SISTER}.")]
    assert engine.finish(job)[0].memories_used == (f"{SISTER}.",)


@pytest.mark.parametrize(
    ("sentence", "tells"),
    [("My dog is called Rex.", True), ("I have a dog", True), ("What is my dog called", False),
     ("Who's that?", False), ("You like tea?", False), ("Tell me more.", False), ("", False)],
)  # fmt: skip
def test_a_statement_asks_nothing(sentence, tells):
    assert is_statement(sentence) == tells


# --- how -----------------------------------------------------------------------------------------


def test_the_wording():
    question = Message("user", "Where?")
    line = "The user told you: My sister Olga lives in Oslo. Peter lives in Rome!"
    assert with_memories([question], [SISTER, PETER]) == [Message("system", line), question]
    system = Message("system", "Be kind.")
    assert with_memories([system, question], [SISTER, PETER]) == [
        Message("system", f"Be kind.\n{line}"), question,
    ]  # fmt: skip
    assert with_memories([system, question], []) == [system, question]
    assert with_memories([], ["two\n lines"])[0].content == "The user told you: two lines."
    assert with_memories("A text", [SISTER]) == "A text"


@pytest.mark.parametrize(
    ("text", "back"),
    [("My sister likes me. I am glad", "Your sister likes you. You are glad"),
     ("I’m Otto and this is mine", "You're Otto and this is yours"),
     ("Mia is in India", "Mia is in India"), ("ah! i was", "ah! You were")],
)  # fmt: skip
def test_a_text_is_said_back_to_who_told_it(text, back):
    assert said_back(text) == back


def test_replies_that_say_a_text_back():
    assert replies_of("The key is mine.") == (
        "The key is yours.", "You told me that the key is yours.", "You said: The key is yours.",
    )  # fmt: skip
    assert replies_of(PETER)[1] == f"You told me that {PETER}"


# --- in the engine -------------------------------------------------------------------------------


def test_a_conversation_is_told_and_its_echo_reads_replies(engine):
    remember(engine, SISTER, PETER)
    t = engine.tokenizer
    job = engine.start([[("user", "Where is Olga?")]], *_greedy())
    asked = [Message("system", f"The user told you: {SISTER}."), Message("user", "Where is Olga?")]
    assert job.rows[0].ids == t.encode_prompt(asked)
    replies = replies_of(SISTER)
    assert replies[0] == "Your sister Olga lives in Oslo"
    ((ids, weight),) = job.rows[0].memories.echo
    assert list(ids) == [i for r in replies for i in (t.assistant_id, *t.encode(r), t.end_id)]
    assert weight == engine.echo_times
    assert engine.finish(job)[0].memories_used == (SISTER,)


def test_a_plain_text_has_an_echo_alone(engine):
    remember(engine, PETER)
    job = engine.start(["Once. Peter l"], *_greedy())
    assert job.rows[0].ids == engine.prompt_ids("Once. Peter l")
    assert job.rows[0].memories.echo == (
        (tuple(engine.tokenizer.encode(PETER)), engine.echo_times),
    )


def test_rows_of_a_batch_use_their_own(engine):
    """And a row writes what it would alone."""
    remember(engine, SISTER, PETER)
    prompts = [[("user", q)] for q in ("Where is Olga?", "And Peter?", "Hello", "Where is Olga?")]
    together = engine.generate_batch(prompts, 12, seed=0, temperature=0)
    assert [r.memories_used for r in together] == [(SISTER,), (PETER,), (), (SISTER,)]
    for prompt, result in zip(prompts, together, strict=True):
        engine.model.session.clock = 0.0
        assert engine.generate(prompt, 12, seed=0, temperature=0).text == result.text


def test_an_unrelated_question_is_left_alone(tiny_model, byte_tokenizer):
    """Token for token: of a model without a field, which all stored texts would reach."""
    model = tiny_model(stages=("echo",), vocab_size=261, max_seq_len=256)
    engine = ResoLLMInference(model, byte_tokenizer, model.config)
    before = engine.generate([("user", "How are you?")], 12, seed=3)
    remember(engine, SISTER, PETER)
    after = engine.generate([("user", "How are you?")], 12, seed=3)
    assert (after.token_ids, after.memories_used) == (before.token_ids, ())
    asked = engine.generate([("user", "How is Olga?")], 12, seed=3)
    assert asked.memories_used == (SISTER,)


def test_texts_longer_than_their_room_are_heard_and_not_told(engine):
    long = "Olga " + "x" * memory_limit(engine.config.max_seq_len)
    remember(engine, long)
    job = engine.start([[("user", "Olga?")]], *_greedy())
    assert job.rows[0].memories.texts == (long,)
    assert job.rows[0].ids == engine.prompt_ids([("user", "Olga?")])


def _greedy():
    return GenerationOptions(max_length=2, temperature=0.0), [0]
