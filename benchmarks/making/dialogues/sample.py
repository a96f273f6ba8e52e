"""Passages of the `sample` conversations (chitchat-dataset) in tidy English.

People type small talk in a hurry. A line becomes a sentence with a capital and an end mark, and a
passage is a run of turns in which every word is common in the whole data set and none is in
`AVOIDED`. The first turns, which only say hello, are left out.
"""

import re
from collections import Counter
from collections.abc import Iterator

from benchmarks.making.dialogues.grammar import capital, message
from reso_llm.data.conversation import Message
from reso_llm.data.sources import read_documents

GREETING_TURNS = 4
MIN_TURNS, MAX_TURNS = 4, 12
MAX_LINES, MAX_CHARACTERS = 4, 240  # of a turn
COMMON = 15  # times that a word occurs in the data set
WORD = re.compile(r"[A-Za-z']+")
PLAIN = re.compile(r"[A-Za-z0-9 ,.?!'-]+")
WRITTEN = {
    "i": "I", "im": "I'm", "i'm": "I'm", "ive": "I've", "i've": "I've", "id": "I'd", "i'd": "I'd",
    "i'll": "I'll", "dont": "don't", "didnt": "didn't", "doesnt": "doesn't", "cant": "can't",
    "isnt": "isn't", "wasnt": "wasn't", "havent": "haven't", "wouldnt": "wouldn't",
    "thats": "that's", "couldnt": "couldn't", "youre": "you're", "theyre": "they're",
    "whats": "what's", "hows": "how's", "theres": "there's", "arent": "aren't", "wont": "won't",
    "hasnt": "hasn't", "shouldnt": "shouldn't", "u": "you", "ur": "your", "r": "are", "ya": "you",
    "yea": "yeah", "gonna": "going to", "wanna": "want to", "cuz": "because", "bc": "because",
    "tho": "though", "rn": "right now", "ok": "okay", "pls": "please", "thx": "thanks",
    "kinda": "kind of", "gotta": "have to", "monday": "Monday", "tuesday": "Tuesday",
    "wednesday": "Wednesday", "thursday": "Thursday", "friday": "Friday", "saturday": "Saturday",
    "sunday": "Sunday", "english": "English", "christmas": "Christmas", "spanish": "Spanish",
    "american": "American", "utah": "Utah",
}  # fmt: skip
AVOIDED = frozenset({
    "byu", "lds", "mormon", "mission", "missions", "missionary", "church", "god", "jesus",
    "religion", "religious", "temple", "bishop", "ward", "relief", "efy", "testimony",
    "spiritual", "provo", "gospel", "bible", "heavenly", "prayer", "pray", "faith", "christian",
    "sex", "sexy", "gay", "dumb", "stupid", "idiot", "ugly", "kill", "killed", "suicide", "die",
    "died", "hell", "damn", "crap", "shit", "sucks", "suck", "hate", "racist", "trump",
    "politics", "boyfriend", "girlfriend", "dating", "single", "flirt", "drunk", "beer", "drugs",
    "lol", "lolol", "hahaha", "hahah", "hahahaha", "lmao", "omg", "wtf", "dude", "bro", "bot",
    "app", "chats", "tabs", "chatting", "partner", "anonymous", "typing", "ping", "hmu", "idk",
    "tbh", "btw", "ikr", "mhm",
})  # fmt: skip


def passages() -> Iterator[list[dict[str, str]]]:
    """Tidy passages of 4 to 12 turns; the first turn is the user's."""
    conversations = [document.messages for document in read_documents("sample")]
    counts = Counter(
        word.lower()
        for messages in conversations
        for turn in messages
        for word in WORD.findall(turn.content)
    )
    common = {word for word, count in counts.items() if count >= COMMON} - AVOIDED
    for messages in conversations:
        passage: list[str] = []
        for turn in messages[GREETING_TURNS:]:
            text = tidy(turn, common)
            if text and len(passage) < MAX_TURNS:
                passage.append(text)
            else:
                yield from _labelled(passage)
                passage = [text] if text else []
        yield from _labelled(passage)


def tidy(turn: Message, common: set[str]) -> str | None:
    """The turn as sentences; None where a line has an uncommon or an avoided word."""
    lines = turn.content.split("\n")
    if len(lines) > MAX_LINES or len(turn.content) > MAX_CHARACTERS:
        return None
    words = WORD.findall(turn.content.lower())
    if len(words) < 2 or not all(word in common for word in words):
        return None
    written = [_sentence(line) for line in lines]
    return " ".join(filter(None, written)) if None not in written else None


def _sentence(line: str) -> str | None:
    line = re.sub(r"\s+", " ", line).strip(" .-,")
    if not PLAIN.fullmatch(line) or re.search(r"[.?!,]{2}|\d{3}", line):
        return None
    line = WORD.sub(lambda match: WRITTEN.get(match.group().lower(), match.group()), line)
    line = re.sub(r"([.?!]) ([a-z])", lambda match: f"{match[1]} {match[2].upper()}", line)
    return capital(line if line[-1] in ".?!" else line + ".")


def _labelled(passage: list[str]) -> Iterator[list[dict[str, str]]]:
    passage = passage[: len(passage) // 2 * 2]
    if len(passage) >= MIN_TURNS:
        roles = ("user", "assistant") * (len(passage) // 2)
        yield [message(role, text) for role, text in zip(roles, passage, strict=True)]
