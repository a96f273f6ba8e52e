"""Four hundred questions with short answers: 200 about facts that the prompt tells, 200 about the
world.

The told facts are invented (`kit/told.py`): two or five of one relation, in any order, of which one
is asked for. The other questions are of five kinds: capitals, chemical symbols, authors, sums and
continents. The answers are our own tables.
"""

import random
import unicodedata
from typing import NamedTuple

from benchmarks.kit.told import RELATIONS, holds

TOLD = 200
INSTRUCTION = "Answer in a few words. "
KNOWN = {
    "What is the capital of {}?": (
        ("Albania", "Tirana"), ("Algeria", "Algiers"), ("Argentina", "Buenos Aires"),
        ("Australia", "Canberra"), ("Austria", "Vienna"), ("Belgium", "Brussels"),
        ("Brazil", "Brasilia"), ("Bulgaria", "Sofia"), ("Canada", "Ottawa"), ("Chad", "N'Djamena"),
        ("Chile", "Santiago"), ("China", "Beijing"), ("Colombia", "Bogota"), ("Croatia", "Zagreb"),
        ("Cuba", "Havana"), ("Denmark", "Copenhagen"), ("Ecuador", "Quito"), ("Egypt", "Cairo"),
        ("Estonia", "Tallinn"), ("Ethiopia", "Addis Ababa"), ("Finland", "Helsinki"),
        ("France", "Paris"), ("Georgia", "Tbilisi"), ("Germany", "Berlin"), ("Ghana", "Accra"),
        ("Greece", "Athens"), ("Hungary", "Budapest"), ("Iceland", "Reykjavik"),
        ("India", "New Delhi"), ("Indonesia", "Jakarta"), ("Iran", "Tehran"), ("Iraq", "Baghdad"),
        ("Ireland", "Dublin"), ("Italy", "Rome"), ("Jamaica", "Kingston"), ("Japan", "Tokyo"),
        ("Kenya", "Nairobi"), ("Latvia", "Riga"), ("Lebanon", "Beirut"), ("Libya", "Tripoli"),
        ("Lithuania", "Vilnius"), ("Malaysia", "Kuala Lumpur"), ("Mongolia", "Ulaanbaatar"),
        ("Morocco", "Rabat"), ("Nepal", "Kathmandu"), ("New Zealand", "Wellington"),
        ("Nigeria", "Abuja"), ("Norway", "Oslo"), ("Pakistan", "Islamabad"), ("Peru", "Lima"),
        ("Poland", "Warsaw"), ("Portugal", "Lisbon"), ("Romania", "Bucharest"),
        ("Russia", "Moscow"), ("Scotland", "Edinburgh"), ("Senegal", "Dakar"),
        ("Serbia", "Belgrade"), ("Slovakia", "Bratislava"), ("Slovenia", "Ljubljana"),
        ("Somalia", "Mogadishu"), ("Spain", "Madrid"), ("Sudan", "Khartoum"),
        ("Sweden", "Stockholm"), ("Syria", "Damascus"), ("Thailand", "Bangkok"),
        ("Turkey", "Ankara"), ("Uganda", "Kampala"), ("Uruguay", "Montevideo"),
        ("Venezuela", "Caracas"), ("Vietnam", "Hanoi"),
    ),
    "What is the chemical symbol of {}?": (
        ("aluminium", "Al"), ("argon", "Ar"), ("barium", "Ba"), ("bismuth", "Bi"), ("boron", "B"),
        ("bromine", "Br"), ("cadmium", "Cd"), ("calcium", "Ca"), ("carbon", "C"),
        ("chlorine", "Cl"), ("chromium", "Cr"), ("cobalt", "Co"), ("copper", "Cu"),
        ("fluorine", "F"), ("gold", "Au"), ("helium", "He"), ("hydrogen", "H"), ("iron", "Fe"),
        ("lead", "Pb"), ("lithium", "Li"), ("magnesium", "Mg"), ("mercury", "Hg"), ("neon", "Ne"),
        ("nickel", "Ni"), ("nitrogen", "N"), ("oxygen", "O"), ("phosphorus", "P"),
        ("platinum", "Pt"), ("potassium", "K"), ("silicon", "Si"), ("silver", "Ag"),
        ("sodium", "Na"), ("sulphur", "S"), ("tin", "Sn"), ("titanium", "Ti"), ("tungsten", "W"),
        ("uranium", "U"), ("xenon", "Xe"), ("zinc", "Zn"), ("zirconium", "Zr"),
    ),
    "Who wrote {}?": (
        ("Anna Karenina", "Tolstoy"), ("Animal Farm", "Orwell"), ("Brave New World", "Huxley"),
        ("David Copperfield", "Dickens"), ("Don Quixote", "Cervantes"), ("Dracula", "Stoker"),
        ("Emma", "Austen"), ("Faust", "Goethe"), ("Frankenstein", "Shelley"),
        ("Gulliver's Travels", "Swift"), ("Hamlet", "Shakespeare"), ("Jane Eyre", "Bronte"),
        ("Les Miserables", "Hugo"), ("Lolita", "Nabokov"), ("Lord of the Flies", "Golding"),
        ("Madame Bovary", "Flaubert"), ("Middlemarch", "Eliot"), ("Moby Dick", "Melville"),
        ("Odyssey", "Homer"), ("Pinocchio", "Collodi"), ("Robinson Crusoe", "Defoe"),
        ("The Divine Comedy", "Dante"), ("The Great Gatsby", "Fitzgerald"),
        ("The Hobbit", "Tolkien"), ("The Jungle Book", "Kipling"), ("The Metamorphosis", "Kafka"),
        ("The Old Man and the Sea", "Hemingway"), ("The Picture of Dorian Gray", "Wilde"),
        ("Treasure Island", "Stevenson"), ("Ulysses", "Joyce"),
    ),
    "What is {}?": tuple(
        (f"{a} plus {b}", str(a + b))
        for a, b in (
            (3, 4), (8, 5), (9, 9), (12, 7), (15, 6), (14, 13), (21, 8), (17, 16), (25, 19),
            (31, 22), (28, 34), (46, 37), (52, 29), (63, 18), (45, 55), (77, 14), (68, 49),
            (84, 33), (91, 26), (59, 87), (102, 45), (118, 67), (135, 88), (149, 76), (163, 158),
            (207, 94), (248, 173), (319, 286), (456, 378), (587, 649),
        )
    ),
    "On which continent is {}?": tuple(
        (country, continent)
        for continent, countries in (
            ("Africa", "Angola Botswana Cameroon Gabon Mali Namibia Zambia"),
            ("Asia", "Bangladesh Bhutan Cambodia Laos Myanmar Oman Qatar Yemen"),
            ("Europe", "Andorra Belarus Luxembourg Malta Moldova Slovakia Slovenia"),
            ("South America", "Guyana Paraguay Suriname"),
            ("North America", "Guatemala Honduras Nicaragua Panama Belize"),
        )
        for country in countries.split()
    ),
}  # fmt: skip


class Asked(NamedTuple):
    """A question as it is put, the answer, and the values that a right reply does not mention.

    Questions of one `unit`, a told fact, are not independent of each other.
    """

    unit: str
    text: str
    answer: str
    others: tuple[str, ...] = ()

    def is_right(self, reply: str) -> bool:
        """Whether the reply has the answer as words of its own, and no other value."""
        said = _plain(reply)
        return holds(said, self.answer) and not any(holds(said, other) for other in self.others)


def told(seed: int = 0) -> list[Asked]:
    """The questions about told facts, drawn without replacement."""
    rng = random.Random(seed)
    every = [
        (relation, i, wording, count)
        for relation in RELATIONS
        for i in range(len(relation.pairs))
        for wording in (*relation.familiar, relation.unseen)
        for count in (2, len(relation.pairs))
    ]
    return [_told(*one, rng) for one in rng.sample(every, TOLD)]


def _told(relation, i: int, wording: str, count: int, rng: random.Random) -> Asked:
    name, value = relation.pairs[i]
    beside = rng.sample([pair for pair in relation.pairs if pair != (name, value)], count - 1)
    pairs = rng.sample([(name, value), *beside], count)
    facts = " ".join(relation.told.format(name=n, value=v) for n, v in pairs)
    text = f"{facts} {INSTRUCTION}{wording.format(name=name)}"
    return Asked(f"{name} {value}", text, value, tuple(v for _, v in beside))


def known() -> list[Asked]:
    """The questions about the world."""
    return [
        Asked(name, INSTRUCTION + question.format(name), answer)
        for question, pairs in KNOWN.items()
        for name, answer in pairs
    ]


def _plain(text: str) -> str:
    """The text without accents."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
