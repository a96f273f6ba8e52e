"""The long-form study: calibrate on one half of the prompts, run every arm on the other.

Every arm is a run of its own, of the same writer, sampler and clock, measuring the same signals:

    static     until the model ends, or the cap
    srb        SRB without deepening, its rule calibrated
    fixed      the cap L of `rules.fixed_stop`
    random     a cap of another reply of the calibration half: where SRB ended it, if it did
    end_rule   the cap at which p(end) of the static reply first reaches the threshold

All parameters come from the calibration half, at equal mean tokens there. An arm that only stops
draws what the static run draws, so its reply is a prefix of the static one, which is checked in
every run: so one scoring of the static reply serves all arms. The static run comes first, as
end_rule needs it; the others take turns.

Replies are written to replies.jsonl.gz as they come, each packed by itself, and are not written
again, so a study that was stopped goes on. Numbers are kept to six digits, and the rule is made
from what is kept. The signals of a prefix are those of the static reply.
"""

import gzip
import json
import math
import os
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.kit.batched import TracedReply
from benchmarks.kit.pretrained import Writer
from benchmarks.kit.writers import Reply, asked
from benchmarks.tasks.srb import rules
from benchmarks.tasks.srb.prompts import Prompt, prompts
from entropy_core.checks import require
from reso_llm.decoding.controllers import SRB

OTHERS = ("srb", "fixed", "random", "end_rule")
ARMS = ("static", *OTHERS)
DIGITS = 6
CALIBRATION_SEED = 0
SHORTEST = 8  # tokens of a cap: the signals need some before they settle

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Size of a study: target share of exits, tokens at most, seeds, prompts of a bucket's half.

    Raises ValueError naming a field out of range.
    """

    target: float = 0.5
    cap: int = 512
    seeds: tuple[int, ...] = (0, 1)
    per_bucket: int | None = None

    def __post_init__(self) -> None:
        require(0 < self.target <= 1, "target", self.target, "above 0, at most 1")
        require(self.cap >= SHORTEST, "cap", self.cap, f"at least {SHORTEST} tokens")
        different = len(set(self.seeds)) == len(self.seeds) > 0 and min(self.seeds) >= 0
        require(different, "seeds", list(self.seeds), "different ones from 0 on")


class Replies:
    """The rows of a study, read from a file and appended to it; without a file, in memory.

    A row that was being written when the machine stopped is cut off and written anew.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[tuple, Row] = {}
        if path is not None and path.exists():
            self._read(path)

    def of(self, half: int, arm: str) -> list[Row]:
        """The rows of one arm, in the order in which they were written."""
        return [r for r in self.rows.values() if (r["half"], r["strategy"]) == (half, arm)]

    def find(self, half: int, prompt: Prompt, seed: int, arm: str) -> Row | None:
        return self.rows.get((half, prompt.name, seed, arm))

    def add(self, row: Row) -> Row:
        self.rows[_key(row)] = row
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(gzip.compress(f"{json.dumps(row)}\n".encode(), mtime=0))
        return row

    def _read(self, path: Path) -> None:
        packed, done = path.read_bytes(), 0
        while done < len(packed):
            member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: with a header of gzip
            try:
                line = member.decompress(packed[done:])
                row = json.loads(line) if member.eof else None
            except (zlib.error, ValueError) as error:
                raise ValueError(
                    f"{path}: damaged at byte {done} ({error}): move it away"
                ) from None
            if row is None:
                break
            self.rows[_key(row)] = row
            done = len(packed) - len(member.unused_data)
        if done < len(packed):
            os.truncate(path, done)


def _key(row: Row) -> tuple:
    return row["half"], row["name"], row["seed"], row["strategy"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The parameters of all arms, at equal mean tokens on the calibration half."""

    rule: SRB
    fixed_tokens: int
    end_nats: float
    random_caps: tuple[float, ...]  # of the calibration replies; inf where SRB let one end
    exits: float
    default_exits: float


def calibrate(writer: Writer, protocol: Protocol, replies: Replies) -> Calibration:
    """Write whatever is missing of the calibration half into `replies`; the parameters from it."""
    chosen = prompts(0, protocol.per_bucket)
    for prompt in tqdm(chosen, desc="calibration", unit="reply", leave=False, disable=None):
        static(writer, replies, 0, prompt, CALIBRATION_SEED, protocol.cap)
    return calibration(replies, protocol.target)


def run(writer: Writer, protocol: Protocol, replies: Replies, parameters: Calibration) -> None:
    """Write whatever is missing of the reported half into `replies`."""
    turns = [(p, seed) for seed in protocol.seeds for p in prompts(1, protocol.per_bucket)]
    for turn, (prompt, seed) in enumerate(
        tqdm(turns, desc="all arms", unit="prompt", leave=False, disable=None)
    ):
        whole = static(writer, replies, 1, prompt, seed, protocol.cap)
        first = turn % len(OTHERS)
        for arm in OTHERS[first:] + OTHERS[:first]:
            if replies.find(1, prompt, seed, arm) is None:
                replies.add(cut_short(writer, parameters, prompt, seed, arm, whole))


def static(writer: Writer, replies: Replies, half: int, prompt: Prompt, seed: int, cap: int) -> Row:
    """The static reply, found or written, with what the model itself says of it."""
    row = replies.find(half, prompt, seed, "static")
    if row is not None:
        return row
    most = min(cap, room(writer, prompt.text))
    reply = writer.reply(prompt.text, draws(prompt, seed), most)
    surprise, end = writer.scored(prompt.text, reply.ids)
    columns = {
        "entropy_nats": reply.entropy_nats, "ema_nats": reply.ema_nats,
        "coherence": reply.coherence, "surprise_nats": surprise, "end_nats": end,
    }  # fmt: skip
    return replies.add(record(half, prompt, seed, "static", reply, columns))


def cut_short(
    writer: Writer, parameters: Calibration, prompt: Prompt, seed: int, arm: str, whole: Row
) -> Row:
    """One reply of another arm. Raises ValueError where it is no prefix of the static one."""
    length = len(whole["ids"])
    cap = {
        "srb": math.inf,
        "fixed": parameters.fixed_tokens,
        "random": random.Random(f"{prompt.name} {seed}").choice(parameters.random_caps),
        "end_rule": rules.end_stops([np.array(whole["end_nats"])], parameters.end_nats)[0],
    }[arm]
    controllers = (parameters.rule,) if arm == "srb" else ()
    # The cap of srb is that of the static run: what ended by itself may still have one more token.
    reply = writer.reply(prompt.text, draws(prompt, seed), int(min(cap, length)), controllers)
    if reply.ids != whole["ids"][: len(reply.ids)]:
        raise ValueError(f"{prompt.name}, seed {seed}: {arm} drew what the static run did not")
    row = record(1, prompt, seed, arm, reply)
    if cap < length:
        row["stop_reason"] = arm
    elif reply.stop_reason == "length":
        row["stop_reason"] = whole["stop_reason"]
    return row


def room(writer: Writer, question: str) -> int:
    """New tokens that fit into the context after the question."""
    return writer.context - len(writer.prompt_ids(asked(question)))


def draws(prompt: Prompt, seed: int) -> int:
    """The seed of a reply's draws; equal ones would tie the replies to different prompts."""
    return 1000 * seed + prompt.number


def record(
    half: int, prompt: Prompt, seed: int, arm: str, reply: Reply | TracedReply,
    columns: Mapping[str, np.ndarray] | None = None,
) -> Row:  # fmt: skip
    """The row of a reply; a static one has its ids and columns of numbers, one for each token."""
    row = {
        "half": half, "bucket": prompt.bucket, "name": prompt.name, "seed": seed, "strategy": arm,
        "tokens": len(reply.ids), "seconds": round(reply.seconds, DIGITS),
        "stop_reason": reply.stop_reason, "text": reply.text,
    }  # fmt: skip
    if columns is not None:
        row["ids"] = reply.ids
    for name, values in (columns or {}).items():
        row[name] = [None if math.isnan(v) else round(v, DIGITS) for v in values.tolist()]
    return row


def calibration(replies: Replies, target: float) -> Calibration:
    """From the static replies of half 0."""
    order = {prompt.name: prompt.number for prompt in prompts(0)}
    rows = sorted(replies.of(0, "static"), key=lambda row: order[row["name"]])
    traces, ends = [signals(row) for row in rows], [np.array(row["end_nats"]) for row in rows]
    rule = rules.calibrated(traces, ends, target)
    stops = np.array([rules.exit_after(t, rule) for t in traces])
    lengths = np.array([len(t) for t in traces])
    mean = float(stops.mean())
    cut = stops < lengths
    return Calibration(
        rule=rule,
        fixed_tokens=int(rules.fixed_stop(lengths, mean).max()),
        end_nats=rules.end_threshold(ends, mean),
        random_caps=tuple(np.where(cut, stops, math.inf).tolist()),
        exits=float(cut.mean()),
        default_exits=rules.exit_share(traces, SRB.published()),
    )


def signals(row: Row) -> np.ndarray:
    """E, |ΔE| and C+ of a static reply, (T,3)."""
    return rules.trace_of(*(np.array(row[n], dtype=float) for n in ("ema_nats", "coherence")))
