"""The last station of the tour: greedy texts, with and without the decoding controllers."""

from collections import Counter

from reso_llm.data.conversation import Message
from reso_llm.decoding.controllers import SRB, PhaseSlip
from reso_llm.generation.results import GenerationResult
from reso_llm.generation.text_engine import TextEngine
from reso_llm.tour.measurements import Finding
from reso_llm.tour.probes import DIALOGUES, repeated_share
from run_core.terminal import finite_mean

OPENINGS = (
    "I think that",
    "The most important thing",
    "The cat and the dog and the cat and the dog and the cat and the dog and",
)
GREEDY_LENGTH = 96
"""Tokens of a greedy text, at most."""
SRB_TOKENS = 48
"""Tokens that SRB may spend on a text."""
SLIPPING = PhaseSlip()


def measure_control(engine: TextEngine, seed: int) -> Finding:
    """Greedy texts, the same with Phase-Slip, and the same with SRB."""
    plain = _greedy(engine, seed)
    slipped = _greedy(engine, seed, SLIPPING)
    budgeted = _greedy(engine, seed, SRB(max_tokens=SRB_TOKENS))
    repeated = [repeated_share(r.token_ids) for r in plain]
    before = finite_mean(repeated)
    after = finite_mean([repeated_share(r.token_ids) for r in slipped])
    worst = max(range(len(plain)), key=lambda i: (max(0.0, repeated[i]), len(plain[i].text)))
    shown = {"greedy": plain[worst], "with slips": slipped[worst]}
    causes = Counter(event.cause for r in slipped for event in r.events)
    ends = Counter(r.stop_reason for r in budgeted)
    lines = [
        f"of {len(plain)} greedy texts {before:.0%} is repeated, with slips {after:.0%}",
        f"causes of the slips: {_counted(causes) or 'none, so nothing changed'}",
        "the most repetitive text (of equals, the longest) ends",
        *(f"  {name:12}...{_end_of(result.text)}" for name, result in shown.items()),
        f"ends under SRB with a budget of {SRB_TOKENS}: {_counted(ends)}",
    ]
    traces = {name: list(result.entropy_trace) for name, result in shown.items()}
    traces["slips"] = [float(event.step) for event in slipped[worst].events]
    return Finding(lines, numbers={"greedy": before, "with slips": after}, traces=traces)


def _greedy(engine: TextEngine, seed: int, *controllers: SRB | PhaseSlip) -> list[GenerationResult]:
    """Greedy replies to the dialogues' questions and continuations of OPENINGS."""
    questions = [[Message("user", dialogue.question)] for dialogue in DIALOGUES]
    return engine.generate_batch(
        [*questions, *OPENINGS], GREEDY_LENGTH, temperature=0.0, seed=seed, controllers=controllers
    )


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in names.most_common())


def _end_of(text: str) -> str:
    return " ".join(text.split())[-58:]
