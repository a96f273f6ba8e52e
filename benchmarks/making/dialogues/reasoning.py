"""Questions with one right answer: sums, sizes, order, counting, opposites."""

import random

from benchmarks.making.dialogues.grammar import WORDS, Slots, expand, made_name

OPPOSITES = {
    "hot": "cold", "big": "small", "old": "young", "fast": "slow", "happy": "sad", "day": "night",
    "up": "down", "full": "empty", "early": "late", "light": "dark", "wet": "dry", "open": "closed",
    "loud": "quiet", "left": "right", "hard": "soft", "long": "short", "good": "bad", "near": "far",
}  # fmt: skip
COLOURS = {
    "grass": "green", "snow": "white", "the sky": "blue", "a ripe banana": "yellow",
    "coal": "black", "a carrot": "orange", "milk": "white", "blood": "red", "a lemon": "yellow",
    "a frog": "green",
}  # fmt: skip
MORE = (("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("louder", "quieter"))
SUMS = (
    "What is {0} plus {1}?", "How much is {0} plus {1}?", "What is {0} and {1}?",
    "Can you add {0} and {1}?",
)  # fmt: skip
LARGEST = 12


def question(rng: random.Random) -> tuple[str, str]:
    """A question and its answer, both whole sentences."""
    ask, answer = rng.choice(KINDS)(rng)
    slots = Slots(rng)
    return expand(ask, slots), expand(answer, slots)


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
    ask = f"[{'|'.join(SUMS).format(a, b)}]"
    return ask, f"[|The answer is easy: |I think ]{a} plus {b} is {a + b}."


def _difference(rng: random.Random) -> tuple[str, str]:
    b, rest = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
    return f"[What is|How much is] {b + rest} minus {b}?", f"{b + rest} minus {b} is {rest}."


def _story(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
    total = f"[{a} plus {b} is {a + b}, so you|You] have {a + b} {{fruit}} now."
    return f"I have {a} {{fruit}} and get {b} more. How many {{fruit}} do I have?", total


def _larger(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(1, 100), 2)
    word, best = rng.choice((("larger", max(a, b)), ("smaller", min(a, b))))
    ask = f"[Which is|What is|Which number is] {word}, {a} or {b}?"
    return ask, f"{best} is {word} than {a + b - best}."


def _count(rng: random.Random) -> tuple[str, str]:
    first = rng.randint(1, 20)
    last = first + rng.randint(3, 7)
    ask = f"[Count|Please count|Can you count] from {first} to {last}[.|?]"
    return ask, ", ".join(map(str, range(first, last + 1))) + "."


def _order(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(("day", "month"))
    words = WORDS[kind]
    index, step, word = rng.randrange(len(words)), *rng.choice(((1, "after"), (-1, "before")))
    other = words[(index + step) % len(words)]
    ask = f"[Which|What] {kind} [comes|is] {word} {words[index]}?"
    return ask, f"{other} comes {word} {words[index]}."


def _next_number(rng: random.Random) -> tuple[str, str]:
    number, step, word = rng.randint(1, 98), *rng.choice(((1, "after"), (-1, "before")))
    ask = f"[Which|What] number comes {word} {number}?"
    return ask, f"{number + step} comes {word} {number}."


def _opposite(rng: random.Random) -> tuple[str, str]:
    pair = rng.choice(list(OPPOSITES.items()))
    a, b = pair if rng.random() < 0.5 else pair[::-1]
    return f"What is the opposite of {a}?", f"The opposite of {a} is {b}."


def _colour(rng: random.Random) -> tuple[str, str]:
    thing, colour = rng.choice(list(COLOURS.items()))
    return f"[What|Which] colour [is|has] {thing}?", f"{thing} is {colour}."


def _compare(rng: random.Random) -> tuple[str, str]:
    a, b = made_name(rng, 2), made_name(rng, 2)
    more, less = rng.choice(MORE)
    told = f"{a} is {more} than {b}."
    if rng.random() < 0.5:
        return f"{told} Who is {more}?", told
    return f"{told} Who is {less}?", f"{b} is {less} than {a}."


KINDS = (
    _sum, _difference, _story, _larger, _count, _order, _next_number, _opposite, _colour, _compare,
)  # fmt: skip
