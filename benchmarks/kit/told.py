"""Sixty invented facts that a model is told, three questions about each, and sixty other questions.

A fact is a sentence of one of twelve relations with a name and a value, which is its answer. No
name below and no `unseen` question belongs to the training text of a shipped model
(`tests/benchmarks/test_told.py`); the two `familiar` questions may.
"""

from collections.abc import Iterator
from typing import NamedTuple

from reso_llm.session.words import words


class Relation(NamedTuple):
    """What is told of a name and a value, and how it is asked for; `pairs` are five of both."""

    told: str
    familiar: tuple[str, str]
    unseen: str
    pairs: tuple[tuple[str, str], ...]


class Fact(NamedTuple):
    """A sentence, the word that answers its questions, and the questions, the last one unseen."""

    text: str
    answer: str
    questions: tuple[str, str, str]


RELATIONS = (
    Relation(
        "My sister {name} lives in {value}.",
        ("Where does my sister {name} live?", "Which town does {name} live in?"),
        "Do you remember the place where {name} has her home?",
        (("Ylva", "Torvik"), ("Brunhild", "Ostrava"), ("Zelma", "Kelmun"), ("Isaura", "Quimper"),
         ("Odile", "Havrin")),
    ),
    Relation(
        "My neighbour {name} works as a {value}.",
        ("What does my neighbour {name} do for work?", "What is the job of {name}?"),
        "How does {name} earn a living?",
        (("Ragnar", "beekeeper"), ("Florian", "glazier"), ("Ottoline", "surveyor"),
         ("Ignatius", "baker"), ("Perpetua", "pilot")),
    ),
    Relation(
        "My {name} is called {value}.",
        ("What is my {name} called?", "What is the name of my {name}?"),
        "By which name do I call my {name}?",
        (("tortoise", "Zorbo"), ("goat", "Matilka"), ("pony", "Fenwick"), ("parakeet", "Bluma"),
         ("ferret", "Quasto")),
    ),
    Relation(
        "{name} keeps the spare key in the {value}.",
        ("Where does {name} keep the spare key?", "Where is the spare key of {name}?"),
        "In what did {name} hide the spare key?",
        (("Cosima", "teapot"), ("Lorcan", "piano"), ("Thaddeus", "lantern"), ("Wilhelmina", "shed"),
         ("Anselm", "drawer")),
    ),
    Relation(
        "The birthday of {name} is in {value}.",
        ("When is the birthday of {name}?", "In which month is the birthday of {name}?"),
        "What month was {name} born in?",
        (("Gudrun", "March"), ("Leopold", "October"), ("Sunniva", "June"), ("Balthasar", "August"),
         ("Eulalia", "December")),
    ),
    Relation(
        "The favourite colour of {name} is {value}.",
        ("What is the favourite colour of {name}?", "Which colour does {name} like best?"),
        "In what colour would {name} love to paint a room?",
        (("Dorothea", "violet"), ("Caspian", "silver"), ("Hedwig", "orange"), ("Lucasta", "green"),
         ("Tiberius", "white")),
    ),
    Relation(
        "The code of the {name} is {value}.",
        ("What is the code of the {name}?", "Which code opens the {name}?"),
        "Which digits do I need for the {name}?",
        (("cellar", "4812"), ("strongbox", "7390"), ("boathouse", "2561"), ("padlock", "9047"),
         ("greenhouse", "1638")),
    ),
    Relation(
        "I meet {name} at the {value} on Friday.",
        ("Where do I meet {name}?", "Where do I meet {name} on Friday?"),
        "At what spot will {name} be waiting for me?",
        (("Valentina", "station"), ("Aloysius", "museum"), ("Ingeborg", "harbour"),
         ("Rupert", "library"), ("Clothilde", "market")),
    ),
    Relation(
        "My friend {name} likes {value}.",
        ("What does my friend {name} like?", "What does {name} like?"),
        "Which thing would please {name}?",
        (("Gwendolyn", "chess"), ("Barnabas", "rhubarb"), ("Ludmila", "opera"),
         ("Evander", "cheese"), ("Philippa", "surfing")),
    ),
    Relation(
        "The boat of {name} is named {value}.",
        ("What is the boat of {name} named?", "What is the name of the boat of {name}?"),
        "Which words are painted on the boat of {name}?",
        (("Archibald", "Morwenna"), ("Sigrun", "Pelikan"), ("Cornelius", "Lumina"),
         ("Henrike", "Zephyr"), ("Mortimer", "Albatross")),
    ),
    Relation(
        "{name} plays the {value} in a band.",
        ("What does {name} play?", "Which instrument does {name} play in a band?"),
        "What would {name} bring along to a concert?",
        (("Ottokar", "cello"), ("Persephone", "trumpet"), ("Lysander", "banjo"),
         ("Kunigunde", "drums"), ("Jolanta", "violin")),
    ),
    Relation(
        "My cousin {name} is allergic to {value}.",
        ("What is my cousin {name} allergic to?", "What is {name} allergic to?"),
        "Which food must I never cook for {name}?",
        (("Emmerich", "walnuts"), ("Roswitha", "shrimps"), ("Cassius", "celery"),
         ("Mirabel", "peanuts"), ("Zacharias", "honey")),
    ),
)  # fmt: skip

MONTHS = frozenset(("March", "June", "August", "October", "December"))
OTHER_QUESTIONS = (
    "What is your name?", "How are you today?", "Where do you live?", "What do you like to do?",
    "What is your favourite colour?", "When is your birthday?", "Do you play an instrument?",
    "Do you have a sister?", "What do you do for work?", "Do you have any pets?",
    "Tell me a joke.", "What is the capital of France?", "How do I boil an egg?",
    "Why is the sky blue?", "What is two plus three?", "Can you help me with my homework?",
    "I feel a bit tired today.", "I had a long day at work.", "What should I cook tonight?",
    "How can I sleep better?", "Do you like music?", "What kind of music do you like?",
    "Have you read a good book lately?", "What is the weather like?", "Thank you for your help!",
    "Good morning!", "See you tomorrow!", "I am going on holiday next week.",
    "What is a good gift for a child?", "How far away is the moon?",
    "Who wrote Romeo and Juliet?", "What is the largest animal?", "Can you speak German?",
    "How do I learn to swim?", "What do you think about football?", "Do you know a good story?",
    "What makes you happy?", "Is it better to walk or to drive?", "I like cats more than dogs.",
    "What is the meaning of life?", "How many days has a year?", "I lost my keys this morning.",
    "Which sport is good for my back?", "What can I do on a rainy day?", "Are you a robot?",
    "I want to learn to play the guitar.", "What is photosynthesis?", "How does a clock work?",
    "Could you recommend a film?", "My brother lives in Spain.",
    "What is the best way to save money?",
    "Do you like to travel?", "What does a doctor do?", "Why do birds sing?",
    "I would like to eat something sweet.", "How do you spell necessary?",
    "What colour is a banana?",
    "Can I grow tomatoes in a pot?", "When does the summer begin?", "Give me an idea for a party.",
)  # fmt: skip
"""Questions that none of the facts answers, some of them in the words of the relations."""


def facts() -> Iterator[Fact]:
    """The sixty facts, one of each relation after the other."""
    for i in range(5):
        for told, familiar, unseen, pairs in RELATIONS:
            name, value = pairs[i]
            questions = tuple(q.format(name=name) for q in (*familiar, unseen))
            yield Fact(told.format(name=name, value=value), value, questions)


def names() -> tuple[str, ...]:
    """The names of people, animals, boats and places, in the order of the relations."""
    every = [word for relation in RELATIONS for pair in relation.pairs for word in pair]
    return tuple(word for word in every if word[0].isupper() and word not in MONTHS)


def holds(reply: str, value: str) -> bool:
    """Whether a reply has a value, of one word or several, as words of its own."""
    said, wanted = words(reply), words(value)
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said)))
