"""The dialogues that the shipped model is trained on: well formed and right."""

import re

import pytest

from benchmarks.kit import told
from benchmarks.kit.first_questions import CHATS, FIRST
from benchmarks.making import dialogues
from benchmarks.making.dialogues import facts, reasoning, sample, talk
from benchmarks.making.dialogues.grammar import OPENINGS, WORDS, Slots, expand
from benchmarks.making.dialogues.reflection import said_back
from reso_llm.data.conversation import Message

OWN = {"my": ("my",), "i": ("I",), "topic": tuple(talk.TOPICS), "nth": ("2nd",)}
QUESTIONS = {*FIRST, *(turn for chat in CHATS for turn in chat)}


@pytest.fixture(scope="module")
def made():
    return list(dialogues.make(3000, seed=5))


def templates():
    """Every template of a user's turn."""
    for opening in OPENINGS:
        yield from (*opening["ask"], *(ask for ask, _ in opening.get("more", ())))
    for relation in facts.RELATIONS:
        yield from (relation["told"], *relation["asks"])
    yield from (*facts.OPEN_QUESTIONS, *talk.NAMED, *talk.ANYTHING, *talk.GO_ON)


def as_pattern(template):
    """A regular expression of all that a template can say."""
    return re.compile("".join(_part(part) for part in re.split(r"(\[[^\]]*\])", template)))


def _part(part):
    choices = part[1:-1].split("|") if part.startswith("[") else [part]
    said = ("".join(map(_piece, re.split(r"(\{\w+\})", choice))) for choice in choices)
    return f"(?:{'|'.join(said)})"


def _piece(piece):
    """A slot says its words, or a name; other text says itself."""
    if not piece.startswith("{"):
        return f"(?i:{re.escape(piece)})"
    slot = piece[1:-1].lower().removesuffix("2")
    names = [r"(?:[Mm]y \w+)?(?: ?[A-Z][a-z]+){0,2}"] if slot in ("who", "name", "town") else []
    words = map(re.escape, (*WORDS.get(slot, ()), *OWN.get(slot, ())))
    return f"(?i:{'|'.join(words)}|[0-9]+)" if not names else f"(?:{'|'.join([*words, *names])})"


# --- apart from the tests


def test_no_question_of_the_scores_is_said_by_a_template():
    patterns = {template: as_pattern(template) for template in templates()}
    assert len(patterns) > 200
    shared = [(q, t) for q in QUESTIONS for t, pattern in patterns.items() if pattern.fullmatch(q)]
    assert shared == []


def test_the_pattern_of_a_template_sees_what_it_says():
    slots = Slots(dialogues.random.Random(0))
    for template in templates():
        slots |= {"who": "my aunt Bo", "my": "my", "I": "I", "name": "Bo", "age": "3", "hour": "4",
                  "nth": "2nd", "code": "12", "topic": "bread"}  # fmt: skip
        said = re.sub(r"\b([Aa])n ", r"\1 ", expand(template, slots))
        pattern = as_pattern(re.sub(r"\b([Aa])n ", r"\1 ", template))
        assert pattern.fullmatch(said), (template, said)


def test_no_name_of_the_facts_to_be_told_is_in_the_dialogues(made):
    words = set(re.findall(r"\w+", str(made)))
    assert words.isdisjoint(told.names())
    unseen = {fact.questions[2] for fact in told.facts()}
    assert unseen.isdisjoint(message["content"] for messages in made for message in messages)


# --- form


def test_a_seed_gives_the_same_dialogues_and_few_are_said_twice(made):
    assert list(dialogues.make(3000, seed=5)) == made
    assert next(dialogues.make(1, seed=6)) != made[0]
    assert len({str(messages) for messages in made}) > 0.95 * len(made)


def test_turns_alternate_and_are_whole_sentences(made):
    for messages in made:
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        for message in messages:
            assert not re.search(r"[\[\]{}|]|  ", message["content"])
            if message["role"] == "assistant":
                assert re.fullmatch(r"[A-Z0-9].*[.?!]", message["content"]), message


def test_remembered_facts_have_the_agreed_wording(made):
    systems = [m["content"] for messages in made for m in messages if m["role"] == "system"]
    assert sum(text.startswith("The user told you: ") for text in systems) > 0.8 * len(systems)


# --- content


def test_an_answer_repeats_the_words_of_its_fact():
    rng = dialogues.random.Random(1)
    for _ in range(300):
        fact = facts.draw_fact(rng)
        words = re.findall(r"\w+", fact.fact.lower())
        kept = [word for word in re.findall(r"\w+", fact.told.lower()) if word not in ("my", "i")]
        assert [word for word in words if word not in ("your", "you")] == kept


@pytest.mark.parametrize(("sign", "combine"), [("plus", int.__add__), ("minus", int.__sub__)])
def test_sums_are_right(sign, combine):
    rng = dialogues.random.Random(2)
    answers = [reasoning.question(rng)[1] for _ in range(600)]
    found = [re.search(rf"(\d+) {sign} (\d+) is (-?\d+)", answer) for answer in answers]
    sums = [tuple(map(int, match.groups())) for match in found if match]
    assert len(sums) > 20
    assert all(combine(a, b) == c for a, b, c in sums)


def test_comparisons_and_successors_are_right():
    rng = dialogues.random.Random(3)
    answers = " ".join(reasoning.question(rng)[1] for _ in range(900))
    larger = re.findall(r"(\d+) is larger than (\d+)", answers)
    after = re.findall(r"(\d+) comes after (\d+)", answers)
    assert len(larger) > 10 < len(after)
    assert all(int(a) > int(b) for a, b in larger)
    assert all(int(a) == int(b) + 1 for a, b in after)
    assert ("Monday", "Sunday") in re.findall(r"(\w+day) comes after (\w+day)", answers)


def test_a_line_of_sample_becomes_sentences_or_is_left_out():
    common = {"im", "so", "glad", "you", "came", "dont", "go"}
    assert sample.tidy(Message("user", "im so glad you came\ndont go?"), common) == (
        "I'm so glad you came. Don't go?"
    )
    assert sample.tidy(Message("user", "im so glaaad you came"), common) is None
    assert sample.tidy(Message("user", "im so glad :) you came"), common) is None


@pytest.mark.parametrize(
    ("asked", "reply", "back"),
    [
        ("My dog ate my shoes.", "Oh no! What happened?", "your dog ate your shoes"),
        ("I was ill!", "Get well soon! Do you feel better?", "you were ill"),
        ("Are you my friend?", "How nice. Thank you.", "Am I your friend? How nice. Thank you."),
    ],
)
def test_what_is_said_back_is_turned_round(asked, reply, back):
    said = {said_back(asked, reply, dialogues.random.Random(seed)) for seed in range(20)}
    assert all(back.lower() in text.lower() for text in said)
    assert all(text.endswith(reply.split(". ")[-1].split("! ")[-1]) for text in said)


@pytest.mark.parametrize("asked", ["I like you.", "Goodbye!", "Who are you?", "I want a joke."])
def test_what_makes_no_sense_said_back_is_left_alone(asked):
    assert said_back(asked, "Hello. Well.", dialogues.random.Random(0)) == "Hello. Well."
