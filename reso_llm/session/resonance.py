"""Which stored texts answer to a query: a match of words, weighed by what each word tells.

    resonance(q, m) = sum_{f in q and m} c_f w_f  /  sum_{f in q} w_f          in [0, 1]
    w_f = ln (N + B + 1) / (N_f + h_f B + 1)

f are the features of the query q: its content words by their stems, and who speaks, so that "my"
and "I" are one feature, and "your" another. w_f is the information in nats of finding f, which N_f
of N stored texts hold, and a share h_f of B = 100 texts that everybody has: a third of them for a
word such as "live", an eighth for "I", none for any other. So a memory of one text, too, knows that
a name tells more than a verb. c_f is 1 for the same stem. A word of five letters or more that no
text holds is taken for the most similar one, at one letter's distance behind the same first letter,
and counts c_f = .8. Sources: the inverse document frequency of Spärck Jones 1972; Damerau 1964.

A text is what the query asks for where they share at least 2.5 nats and either a quarter of the
query with a word that is not common, or three quarters of it: "What is my name?" asks for "My name
is Otto", and "Where do penguins live?" not for "My sister lives in Oslo".

A text speaks of a goal as far as it holds the goal's words by the same weights: `share_said`.
"""

import math
from collections import defaultdict
from typing import NamedTuple

from reso_llm.session.words import is_content, stem, words

BACKGROUND = 100  # B
COMMON_SHARE, SPEAKER_SHARE = 1 / 3, 1 / 8  # h_f
TYPO_CREDIT, TYPO_LETTERS = 0.8, 5
LEAST_NATS, LEAST_SHARE, COMMON_ONLY_SHARE = 2.5, 0.25, 0.75

SPEAKERS = {
    "i": "i", "my": "i", "mine": "i", "myself": "i", "your": "your", "yours": "your",
}  # fmt: skip
_COMMON = """
answer aunt bad big birthday boy bring brother buy call cat child children city close colour color
come cook country cousin dad daughter day dog drink drive eat evening family father favourite
favorite feel find first friend give girl good great happen hate hear help home house husband idea
job keep kind learn leave like listen live long look love man meet mom month morning mother mum name
neighbour neighbor new nice night number old open parents people person pet place play question read
remember run school see sell show sister sleep small son spend start stay stop talk time today
tomorrow town travel try turn uncle walk watch way wear week weekend wife woman word work write
year yesterday young
"""
COMMON = frozenset(stem(word) for word in _COMMON.split())
SYNONYMS = {stem("call"): stem("name")}


class Match(NamedTuple):
    """What a query and a text share: resonance in [0, 1], nats, and whether it is asked for."""

    resonance: float
    nats: float
    asked_for: bool


def features(text: str) -> frozenset[str]:
    """The content words of a text, by their stems, and its speakers ("i" and "your")."""
    found = set()
    for word in words(text):
        bare, first = stem(word.removesuffix("'s")), word.partition("'")[0]
        if first in SPEAKERS:
            found.add(SPEAKERS[first])
        elif is_content(word) or bare in COMMON:
            found.add(SYNONYMS.get(bare, bare))
    return frozenset(found)


def share_said(goal: str, text: str) -> float:
    """The share of a goal's information that a text says, in [0, 1]; who speaks counts nothing.

    The resonance of the goal with the text alone; 0 for a goal without a content word.
    """
    wanted = features(goal) - set(SPEAKERS.values())
    said = features(text)
    nats = {feature: _information(feature) for feature in wanted}
    return sum(_credit(f, said) * nats[f] for f in wanted) / (sum(nats.values()) or 1.0)


def _credit(feature: str, said: frozenset[str]) -> float:
    """c_f of a feature in a text of these features."""
    if feature in said or _share(feature):
        return float(feature in said)
    return TYPO_CREDIT if any(is_misspelling(feature, other) for other in said) else 0.0


class WordIndex:
    """The features of numbered texts, and the matches of a query among them."""

    def __init__(self) -> None:
        self._features: dict[int, frozenset[str]] = {}
        self._holders: dict[str, set[int]] = {}
        self._by_letter: defaultdict[str, set[str]] = defaultdict(set)  # features, by their first

    def add(self, number: int, text: str) -> None:
        """Index a text under a number that is not in use."""
        self._features[number] = features(text)
        for feature in self._features[number]:
            self._holders.setdefault(feature, set()).add(number)
            self._by_letter[feature[0]].add(feature)

    def remove(self, number: int) -> None:
        """Forget a text; nothing of it is left."""
        for feature in self._features.pop(number):
            self._holders[feature].remove(number)
            if not self._holders[feature]:
                del self._holders[feature]
                self._by_letter[feature[0]].remove(feature)

    def matches(self, query: str) -> dict[int, Match]:
        """The matches of all texts that share a feature with the query, by number."""
        nats: defaultdict[int, float] = defaultdict(float)
        telling: set[int] = set()
        total = 0.0
        for feature in features(query):
            held, credit = (feature, 1.0) if feature in self._holders else self._similar(feature)
            holders = self._holders.get(held, ())
            information = _information(held, len(self._features), len(holders))
            total += information
            for number in holders:
                nats[number] += credit * information
            if _share(held) == 0:
                telling.update(holders)
        return {n: _match(shared, total, n in telling) for n, shared in nats.items()}

    def _similar(self, feature: str) -> tuple[str, float]:
        """The feature that this one is a misspelling of, and its credit; itself without one.

        Of several it is the one that most texts hold, then the first by the alphabet.
        """
        if _share(feature):
            return feature, 1.0
        near = [f for f in self._by_letter.get(feature[0], ()) if is_misspelling(feature, f)]
        if not near:
            return feature, 1.0
        return min(near, key=lambda f: (-len(self._holders[f]), f)), TYPO_CREDIT


def _share(feature: str) -> float:
    """h_f: the share of all texts of the world that hold a feature, roughly."""
    if feature in SPEAKERS:
        return SPEAKER_SHARE
    return COMMON_SHARE if feature in COMMON else 0.0


def _information(feature: str, num_texts: int = 0, num_holders: int = 0) -> float:
    """w_f in nats, where so many of so many texts hold the feature."""
    held = num_holders + _share(feature) * BACKGROUND
    return math.log((num_texts + BACKGROUND + 1) / (held + 1))


def _match(nats: float, total: float, telling: bool) -> Match:
    resonance = nats / total
    enough = resonance >= (LEAST_SHARE if telling else COMMON_ONLY_SHARE)
    return Match(resonance, nats, nats >= LEAST_NATS and enough)


def is_misspelling(a: str, b: str) -> bool:
    """Whether one letter left out, added, changed or swapped with the next turns a into b.

    Words of fewer than five letters, and different first letters, are never taken for that.
    """
    if max(len(a), len(b)) < TYPO_LETTERS or abs(len(a) - len(b)) > 1 or a[0] != b[0] or a == b:
        return False
    if len(a) > len(b):
        a, b = b, a
    i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    if len(a) < len(b):
        return a[i:] == b[i + 1 :]
    swapped = a[i : i + 2] == b[i : i + 2][::-1] and a[i + 2 :] == b[i + 2 :]
    return swapped or a[i + 1 :] == b[i + 1 :]
