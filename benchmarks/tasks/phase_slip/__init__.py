"""Phase-Slip: does it break the loops of greedy decoding, by what, and at what price?

Of any causal language model: our checkpoint (--checkpoint, the shipped one by default), or one of
transformers (--model DIR). All texts have full length: what would end one is taken out. Protocols:

    published  "The scientific method is a process that", 5 rounds of 50 tokens: greedy, sampling
               (T .7, top-k 50) and Phase-Slip. Its README has .26, .59 and .60, of GPT-2 small.
    strict     that prompt, the loop-breaker's, and three chat turns, 100 tokens for each seed:
               rep-4, loops, nats per byte of the text at temperature 1 and without any noise, under
               the model itself (own) and under a --scorer (outside), a directory of transformers
    breaker    "The scientist opened the door to the secret lab and discovered": greedy decoding,
               Phase-Slip as published, and with the loop trigger of ours
    loops      greedy texts of 200 tokens from 15 prompts: how many loop, and the entropies in loops
    rivals     Phase-Slip's default, which takes repeats back, against DRY, XTC and others at equal
               nats per byte: 15 prompts, 100 tokens for each seed (`rivals.py`)
    facts      questions whose greedy answer is right: how many answers stay as they are

The strict protocol compares arms with plain sampling of equal nats per byte (`statistics.py`), as
a repeat is cheap for any scorer; `measures.py` defines the measures, `arms.py` the arms. A slow
model is measured with --arms brief: it leaves out temperature 1.2, noise of .1 and .3, noise in
values alone, the protected prompt, loops of any entropy, and stochastic resonance.

A row is one model (its name and the sha256 of its weights), protocol and arm. Strict rows keep the
pairs (sum, count) of each text (2,P,S) of which the table makes its intervals. Sources: the
Phase-Slip sampler; `reso_llm.decoding.controllers`, and `reso_llm.hf` for the models of others.
"""

from typing import Any

from tqdm import tqdm

from benchmarks.kit.pretrained import PretrainedWriter
from benchmarks.kit.records import Records
from benchmarks.kit.writers import ResoWriter
from benchmarks.tasks.phase_slip.arms import ARMS, BRIEF, GREEDY, PROMPTS, QUICK
from benchmarks.tasks.phase_slip.figures import figure
from benchmarks.tasks.phase_slip.protocols import PROTOCOLS, Plan, units
from benchmarks.tasks.phase_slip.rivals import REWIND
from benchmarks.tasks.phase_slip.tables import text
from run_core.hardware import keep_freed_memory

__all__ = ["add_options", "figure", "run", "text"]


def add_options(parser: Any) -> None:
    parser.add_argument("--checkpoint", type=str, help="run directory; default: the shipped model")
    parser.add_argument("--model", type=str, help="instead: directory or hub id")
    parser.add_argument("--scorer", type=str, help="directory or hub id of another model")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20)))
    parser.add_argument("--scored_seeds", type=int, default=3, help="that the scorer reads")
    parser.add_argument("--arms", choices=["all", "brief"], default="all")
    parser.add_argument("--protocols", choices=PROTOCOLS, nargs="+", default=[*PROTOCOLS])


def run(options: Any) -> list[dict[str, Any]]:
    """One row for each protocol and arm; a row that is recorded already is not measured again."""
    if options.model is not None and options.checkpoint is not None:
        raise ValueError("--model and --checkpoint: expected one of the two")
    if options.scored_seeds < 1:
        raise ValueError(f"--scored_seeds {options.scored_seeds}: expected at least 1")
    keep_freed_memory()
    writer = PretrainedWriter(options.model) if options.model else ResoWriter(options.checkpoint)
    scorer = PretrainedWriter(options.scorer) if options.scorer else None
    records = Records("phase_slip", options.record)
    planned = units(writer, scorer, _plan(options))
    chosen = [unit for unit in planned if unit[0]["protocol"] in options.protocols]
    bar = tqdm(chosen, unit="row", leave=False, disable=None)
    return [records.row(key, measure) for key, measure in bar]


def _plan(options: Any) -> Plan:
    if options.quick:
        return Plan(
            arms=QUICK, seeds=options.seeds[:2], scored_seeds=1, tokens=16, rounds=2,
            round_tokens=16, loop_tokens=24, prompts=PROMPTS[:2], loop_prompts=PROMPTS[:2],
            rival_arms=(GREEDY, REWIND, "DRY 0.8"), fact_arms=(),
        )  # fmt: skip
    return Plan(BRIEF if options.arms == "brief" else [*ARMS], options.seeds, options.scored_seeds)
