"""The prompts of the long-form study: five buckets, 24 each, in turn for the two halves.

A bucket is a kind of text, as in the public study. Thresholds are calibrated on the prompts with an
even number and reported on those with an odd one. The first study has the first six of every
bucket's half, stop rules are replayed on all twelve (replay.py). The prompts are our own.
"""

from typing import NamedTuple

FIRST = 6  # prompts of a bucket's half in the first study
PROCEDURE = "Give numbered instructions in exactly {steps} steps: how to {task}."

BUCKETS: dict[str, tuple[str, ...]] = {
    "code": (
        "Write a Python function that tells whether a word is a palindrome, and explain it.",
        "Write a Python function that counts how often each word occurs in a text.",
        "Write a Python class for a stack with push, pop and peek, with docstrings.",
        "Write a Python function for binary search in a sorted list, and show how to call it.",
        "Write a Python function that returns the first n prime numbers.",
        "Write a Python function that merges two sorted lists into one sorted list.",
        "Write a Python script that reads a CSV file and prints the mean of each column.",
        "Write a Python function that converts Roman numerals to integers, with three examples.",
        "Write a Python class for a bank account with deposit, withdraw and balance.",
        "Write a Python function that flattens a nested list, and test it with assert.",
        "Write a Python function that computes the greatest common divisor of two integers.",
        "Write a Python generator that yields the Fibonacci numbers below a limit.",
        "Write a Python function that checks whether two words are anagrams of each other.",
        "Write a Python function that sorts a list of dictionaries by a given key.",
        "Write a Python function that computes the factorial of a number without recursion.",
        "Write a Python class for a queue with enqueue, dequeue and size, with docstrings.",
        "Write a Python function that removes the duplicates of a list and keeps its order.",
        "Write a Python script that prints the multiplication table from 1 to 10.",
        "Write a Python function that converts a temperature from Celsius to Fahrenheit and back.",
        "Write a Python function that finds the longest word in a sentence, with two examples.",
        "Write a Python class for a rectangle with area and perimeter, and show how to use it.",
        "Write a Python function that transposes a matrix given as a list of lists.",
        "Write a Python function that tells whether a year is a leap year, tested with assert.",
        "Write a Python function that reads a text file and returns its number of lines.",
    ),
    "creative": (
        "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
        "Write a short story in which an old clock starts to run backwards.",
        "Write a poem about the first snow in a city.",
        "Write a dialogue between a river and a mountain.",
        "Write the opening of a mystery novel set in a small railway station.",
        "Write a fable in which a crow learns patience.",
        "Write a story about two children who build a boat out of a door.",
        "Write a monologue of a robot that works alone in a garden.",
        "Write a story about a baker whose bread makes people remember.",
        "Write a poem about an empty theatre at night.",
        "Write a story that begins with the words: Nobody had locked the gate.",
        "Write a letter from a sailor to a sister who has never seen the sea.",
        "Write a short story about a postman who delivers a letter forty years late.",
        "Write a poem about a train that passes at night.",
        "Write a dialogue between the sun and the moon.",
        "Write a short story in which a shadow leaves its owner.",
        "Write a fable in which a fox keeps a promise.",
        "Write the opening of a novel about the last library on earth.",
        "Write a story about an old violin that nobody can tune.",
        "Write a poem about the sea in winter.",
        "Write a letter from a grandmother to the child who will live in her house.",
        "Write a story about two rivals who are snowed in together.",
        "Write a monologue of a statue in a busy square.",
        "Write a story that begins with the words: The map was wrong on purpose.",
    ),
    "essays": (
        "Write an essay on why people keep diaries.",
        "Write an essay on what cities lose when trees are cut down.",
        "Write an essay about the advantages and disadvantages of working from home.",
        "Write an essay on whether children should learn to play an instrument at school.",
        "Write an essay about how the printing press changed Europe.",
        "Write an essay on honesty between friends.",
        "Write an essay about the role of failure in science.",
        "Write an essay on whether museums should be free of charge.",
        "Write an essay about the importance of sleep for learning.",
        "Write an essay on what makes a good teacher.",
        "Write an essay about the history and the future of the bicycle.",
        "Write an essay on the value of learning a second language.",
        "Write an essay on why people travel.",
        "Write an essay about the effects of noise on health.",
        "Write an essay on whether homework helps pupils.",
        "Write an essay about the invention of the telephone.",
        "Write an essay on patience.",
        "Write an essay about what makes a sport fair.",
        "Write an essay on the use of silence in music.",
        "Write an essay about the importance of clean water.",
        "Write an essay on whether zoos should exist.",
        "Write an essay about the history of bread.",
        "Write an essay on how habits are formed.",
        "Write an essay about the value of public libraries.",
    ),
    "procedures": tuple(
        PROCEDURE.format(steps=steps, task=task)
        for steps, task in (
            (5, "repair a flat bicycle tyre"),
            (6, "plant a young apple tree"),
            (4, "brew a pot of green tea"),
            (7, "prepare a room before painting its walls"),
            (5, "clean a cast-iron pan"),
            (6, "pack a rucksack for a weekend in the mountains"),
            (5, "back up the files of a computer"),
            (8, "bake a simple loaf of bread"),
            (4, "change a light bulb safely"),
            (6, "organise a birthday party for children"),
            (5, "write a formal letter of complaint"),
            (7, "start a small vegetable garden"),
            (5, "wash a woollen jumper by hand"),
            (6, "make pancakes for four people"),
            (4, "take a good photograph of a sunset"),
            (7, "move to a new flat"),
            (5, "sew a button on a shirt"),
            (6, "prepare for a job interview"),
            (5, "put up a tent"),
            (8, "plan a week of meals"),
            (4, "sharpen a kitchen knife"),
            (6, "make a paper boat"),
            (5, "learn ten new words of a language"),
            (7, "clean a bicycle chain"),
        )
    ),
    "summaries": (
        "Summarise how the water cycle works.",
        "Summarise the causes of the French Revolution.",
        "Summarise how vaccines protect people from disease.",
        "Summarise the plot of Romeo and Juliet.",
        "Summarise how a bill becomes a law in a parliament.",
        "Summarise the main ideas of the theory of evolution.",
        "Summarise what happened in the space race.",
        "Summarise how electric motors work.",
        "Summarise the history of the Silk Road.",
        "Summarise the effects of smoking on health.",
        "Summarise how volcanoes form and erupt.",
        "Summarise the main events of the life of Marie Curie.",
        "Summarise how bees make honey.",
        "Summarise the causes of the First World War.",
        "Summarise how the human heart works.",
        "Summarise the plot of Hamlet.",
        "Summarise how elections work in a democracy.",
        "Summarise the main ideas of Newton's laws of motion.",
        "Summarise the history of the Roman Empire.",
        "Summarise how a refrigerator works.",
        "Summarise what the Renaissance was.",
        "Summarise the effects of regular exercise on the body.",
        "Summarise how earthquakes happen.",
        "Summarise the main events of the life of Isaac Newton.",
    ),
}


class Prompt(NamedTuple):
    """One prompt; `name` is unique, `index` counts within its bucket."""

    bucket: str
    index: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.bucket}_{self.index:03d}"

    @property
    def number(self) -> int:
        """The place among all prompts."""
        return self.index * len(BUCKETS) + [*BUCKETS].index(self.bucket)

    @property
    def steps(self) -> int | None:
        """How many numbered steps it asks for, if it does."""
        words = self.text.split()
        return int(words[words.index("exactly") + 1]) if self.bucket == "procedures" else None


def prompts(half: int, per_bucket: int | None = None) -> list[Prompt]:
    """The prompts of half 0 (even: calibration) or 1 (odd: reported), each bucket in turn.

    `per_bucket` of each bucket; None: those of the first study.
    """
    most = FIRST if per_bucket is None else per_bucket
    chosen = {
        bucket: [Prompt(bucket, i, text) for i, text in enumerate(texts) if i % 2 == half]
        for bucket, texts in BUCKETS.items()
    }
    rounds = zip(*(some[:most] for some in chosen.values()), strict=True)
    return [prompt for some in rounds for prompt in some]
