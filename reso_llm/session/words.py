"""The words of a text that say what it is about, in the form in which they are compared.

A word is a run of letters and digits, in lower case; a kana or a Chinese character is a word by
itself. Words that every text holds (`STOP_WORDS`, English) are left out. `stem` takes endings off,
so that "lives" and "living" are one; what it leaves need not be a word.
"""

import re

IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{IDEOGRAPHS}]|[^\W_]+(?:['’][^\W_]+)*")
ENDINGS = ("ings", "ing", "ies", "ed", "es", "ly", "s", "e")
VOWELS = frozenset("aeiouy")
LEAST_STEM = 3

_STOP_WORDS = """
a about above after again ah ain all almost along already also although always am among an and
another any anybody anyone anything are aren around as at away be because been before being
below between both but by can cannot could couldn did didn do does doesn doing don done down
during each either else enough etc even ever every everybody everyone everything few for from
further get gets getting go goes going gone got had hadn has hasn have haven having he hello her
here hers herself hey hi him himself his how however i if in indeed into is isn it its itself
just know known knows last least less let like lot lots made make makes many may maybe me might
mine more most much must my myself nearly need neither never no nobody none nor not nothing now
of off oh ok okay on once one only onto or other others otherwise ought our ours ourselves out
over own perhaps please quite rather really said same say says she should shouldn since so some
somebody someone something sometimes soon still such sure take tell than thank thanks that the
their theirs them themselves then there these they thing things think this those though through
thus to together told too toward towards under unless until up upon us use used using very want
was wasn we well were weren what whatever when where whether which while who whoever whole whom
whose why will with within without won would wouldn yes yet you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def words(text: str) -> list[str]:
    """All words of a text in lower case, in order; those of one letter too."""
    return [match.group().lower().replace("’", "'") for match in WORD.finditer(text)]


def content_words(text: str) -> list[str]:
    """The words of a text that say what it is about, in order, in lower case, without "'s"."""
    return [word.removesuffix("'s") for word in words(text) if is_content(word)]


def is_content(word: str) -> bool:
    """Whether a word in lower case is no stop word; a contraction is one with its first part."""
    return (len(word) > 1 or word > "\u3000") and word.partition("'")[0] not in STOP_WORDS


def stem(word: str) -> str:
    """A word without its ending, the last letter of the rest not doubled; y is i there.

    At least three letters, one of them a vowel, are left.
    """
    for ending in ENDINGS:
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= LEAST_STEM and VOWELS & set(rest):
            word = rest + "y" if ending == "ies" else rest
            break
    if len(word) > LEAST_STEM and word[-1] == word[-2]:
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") else word
