"""Does auto_temperature_adjust prevent loops, broken words and wrong facts? With against without.

    python -m benchmarks.studies.auto_temperature --words data/train.jsonl --record

Replies to questions about a fact that the prompt states, the same seed in both arms:
* facts: the reply names the fact's answer;
* rep-4: share of runs of four tokens that occurred before in the reply;
* non-words: share of words that --words, the training text, does not hold;
* moved: share of tokens drawn at another temperature.
Paired differences, 95 % intervals by bootstrap over questions. --model measures a model of
transformers, with the controller as its monitor's defaults move it.
"""

import argparse
import re
from typing import Any

import numpy as np

from benchmarks.kit.heldout import checkpoint_name
from benchmarks.kit.records import Records
from benchmarks.kit.statistics import mean_of
from benchmarks.kit.tables import shown, table
from reso_llm.data.sources import read_documents
from reso_llm.decoding.controllers import StabilityTemperature
from reso_llm.generation.text_engine import TextEngine
from reso_llm.hf.engine import HFEngine
from reso_llm.inference import ResoLLMInference
from reso_llm.tour.probes import repeated_share

NAMES = ["Olga", "Peter", "Mara", "Tom", "Nina", "Karl", "Ida", "Leo", "Vera", "Max"]
RELATIONS = ["sister", "brother", "teacher", "neighbour", "friend", "aunt"]
ANSWERS = {
    "lives in": (
        "Where does my {0} {1} live?",
        ["Oslo", "Rome", "Lima", "Paris", "Cairo", "Tokyo", "Bonn"],
    ),
    "likes": ("What does my {0} {1} like?", ["tea", "chess", "apples", "music", "horses", "books"]),
    "works as a": (
        "What is the job of my {0} {1}?",
        ["baker", "pilot", "nurse", "judge", "farmer"],
    ),
}
WORD = re.compile(r"[^\W\d_]+")
MEASURES = ("facts", "rep-4", "non-words", "moved")


def main() -> None:
    """Measure both arms, print the table, and record the row where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="default: the shipped model")
    parser.add_argument("--model", help="instead: directory or hub id of a model of transformers")
    parser.add_argument("--words", required=True, help="text whose words are words")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--length", type=int, default=60, help="tokens of a reply at most")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    if args.model:
        engine, name = HFEngine.from_pretrained(args.model), args.model.rstrip("/").split("/")[-1]
        arm = {"controllers": [StabilityTemperature()]}
    else:
        engine = ResoLLMInference.from_pretrained(args.checkpoint)
        name = checkpoint_name(args.checkpoint)
        arm = {"auto_temperature": True}
    settings = {"max_length": args.length, "temperature": args.temperature}
    known = words_of(args.words)
    key = {"model": name, "questions": args.questions, **settings}
    row = Records("auto_temperature", args.record).row(
        key, lambda: compared(engine, arm, args.questions, settings, known)
    )
    lines = [[m, *(shown(row[part][m], 3) for part in ("without", "with", "difference"))]
             for m in MEASURES]  # fmt: skip
    print(table(("measure", "without", "with", "with - without"), lines))


def compared(
    engine: TextEngine, arm: dict[str, Any], count: int, settings: dict, known: set[str]
) -> dict[str, dict[str, list[float]]]:
    """Means of each measure in both arms and of their paired differences, with intervals."""
    arms: dict[str, np.ndarray] = {}
    for label, options in (("without", {"auto_temperature": False}), ("with", arm)):
        arms[label] = np.array([
            measured(engine.generate([("user", asked)], seed=i, **settings, **options),
                     answer, settings["temperature"], known)
            for i, (asked, answer) in enumerate(questions(count))
        ])  # fmt: skip
    arms["difference"] = arms["with"] - arms["without"]
    return {
        label: {m: list(mean_of(values[:, k])) for k, m in enumerate(MEASURES)}
        for label, values in arms.items()
    }


def questions(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Prompts that state a fact and ask for it, each with the answer."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        name, relation = rng.choice(NAMES), rng.choice(RELATIONS)
        verb = rng.choice(list(ANSWERS))
        question, answers = ANSWERS[verb]
        answer = str(rng.choice(answers))
        fact = f"My {relation} {name} {verb} {answer}."
        found.append((f"{fact} {question.format(relation, name)}", answer))
    return found


def measured(result: Any, answer: str, temperature: float, known: set[str]) -> list[float]:
    """The measures of one reply, in the order of MEASURES."""
    words = [word.lower() for word in WORD.findall(result.text)]
    repeated = repeated_share(result.token_ids, 4)
    return [
        float(answer.lower() in words),
        0.0 if np.isnan(repeated) else repeated,
        float(np.mean([word not in known for word in words])) if words else 0.0,
        float(np.mean([t != temperature for t in result.temperature_trace] or [0.0])),
    ]


def words_of(path: str) -> set[str]:
    """The words of a file, in lower case."""
    texts = (d.text or " ".join(m.content for m in d.messages) for d in read_documents(path))
    return {word.lower() for text in texts for word in WORD.findall(text)}


if __name__ == "__main__":
    main()
