"""Does an agent know what another agent was told?

python -m benchmarks.studies.hearsay [--teller DIR] [--listener DIR] [--seeds 0 1 2]

A teller is told an invented fact. A listener, which was told nothing, hears the teller over a link
of fidelity F (`generation/multi_agent.py`). Then it is asked "What do you know about PERSON?". The
gain is in nats per token of the fact as the reply, over those of the same listener before. Beside
it stands an untold fact: one of another person, asked for alike, that nobody was told. F = 1/4 is
no link. "itself" is the teller's own gain. A seed draws the facts; intervals are 95 % bootstrap
percentiles over facts, and of several seeds the means of their ends. Rows go to
results/hearsay.jsonl.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.kit.facts import draw_parts, forget, sentence, tell
from benchmarks.kit.heldout import checkpoint_name
from benchmarks.kit.records import grouped, write_row
from benchmarks.kit.replies import reply_nats
from benchmarks.kit.statistics import mean_interval, mean_of
from benchmarks.kit.tables import shown, table
from reso_llm.inference import ResoLLMInference
from reso_llm.session.entanglement import EntanglementNetwork
from run_core.hardware import keep_freed_memory

FIDELITIES = (0.25, 0.5, 0.55, 0.75, 1.0)
QUESTION = "What do you know about {first} {last}?"


def draw(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Questions, each with the fact that answers it."""
    people = [draw_parts(rng) for _ in range(count)]
    return [(QUESTION.format(**parts), sentence(parts, rng)) for parts in people]


def hears(teller: ResoLLMInference, listener: ResoLLMInference, fact: str, fidelity: float) -> None:
    """A listener that knows nothing hears a teller that was told one fact."""
    tell(teller.model, fact, 1.0)
    forget(listener.model)
    network = EntanglementNetwork()
    teller.model.session.join(network, "teller")
    listener.model.session.join(network, "listener")
    network.link("teller", "listener", fidelity)
    listener.hear(teller, network)


def nats_of_both(agent: ResoLLMInference, pair: Sequence[tuple[str, str]]) -> list[float]:
    """Nats per token of each fact as the reply to its question."""
    return [reply_nats(agent, [("user", question)], fact) for question, fact in pair]


def gains(
    teller: ResoLLMInference, listener: ResoLLMInference, seed: int, count: int
) -> list[dict[str, Any]]:
    """One row for each fidelity, and one for the teller itself."""
    rng = random.Random(seed)
    told, untold = draw(count, rng), draw(count, rng)
    conditions: list[tuple[float | str, ResoLLMInference, Callable[[str], None]]] = [
        (f, listener, lambda fact, f=f: hears(teller, listener, fact, f)) for f in FIDELITIES
    ]
    conditions.append(("itself", teller, lambda fact: tell(teller.model, fact, 1.0)))
    values: dict[tuple[float | str, str], list[float]] = {}
    pairs = [*zip(told, untold, strict=True)]
    for pair in tqdm(pairs, desc="facts", leave=False, disable=None):
        for agent in (teller, listener):
            forget(agent.model)
        before = {agent: nats_of_both(agent, pair) for agent in (teller, listener)}
        for fidelity, agent, learn in conditions:
            learn(pair[0][1])
            after = nats_of_both(agent, pair)
            for kind, b, a in zip(("told", "untold"), before[agent], after, strict=True):
                values.setdefault((fidelity, kind), []).append(b - a)
    return [
        {
            "seed": seed, "facts": count, "fidelity": fidelity,
            "told": mean_of(values[fidelity, "told"]),
            "untold": mean_of(values[fidelity, "untold"]),
        }
        for fidelity, _, _ in conditions
    ]  # fmt: skip


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Gains by fidelity, over seeds, in markdown."""
    lines = [
        [listener, fidelity if isinstance(fidelity, str) else f"{fidelity:g}",
         *(shown(mean_interval([row[kind] for row in some]), 2) for kind in ("told", "untold"))]
        for (listener, fidelity), some in grouped(rows, "listener", "fidelity").items()
    ]  # fmt: skip
    return table(("listener", "fidelity", "gain of the told fact, nats/token", "untold"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teller", help="run or checkpoint directory; default: the shipped model")
    parser.add_argument("--listener", help="default: the shipped model")
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if options.facts < 1:
        parser.error(f"--facts {options.facts}: expected at least 1")
    keep_freed_memory()
    paths = {"teller": options.teller, "listener": options.listener}
    teller, listener = (ResoLLMInference.from_pretrained(path) for path in paths.values())
    names = {role: checkpoint_name(path) for role, path in paths.items()}
    rows = [
        names | row
        for seed in options.seeds
        for row in gains(teller, listener, seed, options.facts)
    ]
    print(text(rows), flush=True)
    for row in rows:
        write_row("hearsay", row)


if __name__ == "__main__":
    main()
