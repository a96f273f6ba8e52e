"""The rule that finishes: replayed on traces as the controller decides, calibrated, and its bar."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.kit import batched
from benchmarks.tasks.srb import finishing, replay
from benchmarks.tasks.srb.prompts import prompts
from entropy_core.budget import Draft, Place, SRBAction, SRBState, srb_step
from reso_llm.decoding.controllers import SRB

WORDS = ("a", " b", " c.", "\n", " d,", "```", "1. e", " f.\n", "g", " h")


def random_reply(rng, tokens=60):
    """A reply of random words, as a row and its texts after 0..n tokens."""
    ids = rng.integers(len(WORDS), size=tokens)
    ids[20:40] = np.tile(ids[16:20], 5)  # a loop
    heads = ["".join(WORDS[i] for i in ids[:k]) for k in range(tokens + 1)]
    row = {
        "ids": ids.tolist(), "ema_nats": rng.uniform(0, 3, tokens).tolist(),
        "coherence": [None, *rng.uniform(0, 1, tokens - 1).tolist()],
        "end_nats": rng.uniform(0, 9, tokens + 1).tolist(),
    }  # fmt: skip
    return row, heads


def step_by_step(trace, rule):
    """Tokens that `srb_step` lets through."""
    state, progress = SRBState(), 0
    for k in range(len(trace.ema_nats)):
        progress += int(trace.progressed[k])
        draft = Draft(
            trace.end_nats[k], trace.repeated[k], Place(trace.place[k]), bool(trace.done[k]),
            progress, rule.budgets.get(trace.kind, math.inf),
        )  # fmt: skip
        action, state = srb_step(
            state, trace.ema_nats[k], trace.delta_nats[k], trace.coherence[k], rule, draft
        )
        if action in (SRBAction.STOP_FINISHED, SRBAction.STOP_LOOP):
            return k
        if action is SRBAction.STOP_BUDGET:
            return k + 1
    return len(trace.ema_nats)


def test_a_replay_stops_where_the_controller_does():
    rng, stops, causes = np.random.default_rng(0), [], set()
    for number in range(60):
        prompt = prompts(0, 12)[number]
        trace = finishing.traced(*_with(prompt, random_reply(rng)))
        rule = SRB(
            candidates=0, end_nats=rng.uniform(0, 1.5), over_nats=rng.uniform(0, 2),
            loop_nats=rng.uniform(0, 2), repeated=0.3, patience=float(rng.integers(2, 9)),
            settled_nats=2.5, settled_coherence=0.1, max_tokens=float(rng.integers(30, 90)),
            reserve=float(rng.integers(0, 9)), budgets={"essay": 20.0, "code": 30.0},
        )  # fmt: skip
        assert finishing.stop_of(trace, rule) == step_by_step(trace, rule)
        stops.append(finishing.stop_of(trace, rule))
        causes.add((trace.kind, stops[-1] < 30))
    assert len(set(stops)) > 15
    assert len(causes) > 6


def _with(prompt, reply):
    row, heads = reply
    return row, prompt, heads


def test_calibration_finds_the_price_at_which_good_places_are_told():
    """Half of the replies are finished at token 10, for 1 nat, and go on for 40 more."""
    n, traces, tables = 50, [], []
    for number in range(12):
        end = np.full(n, 9.0)
        end[10], end[20] = 1.0, 5.0
        place = np.zeros(n, dtype=int)
        place[[10, 20]] = Place.FINISHED
        ones = np.ones(n)
        traces.append(
            finishing.Trace("essay", ones, 0 * ones, ones, end, 0 * ones, place, ones > 0, ones < 0)
        )
        k, one = np.arange(n + 1), np.ones(n + 1)
        good = np.isin(k, [10] if number % 2 else [10, 20])
        table = {"finished": good, "code_parses": 0 * one, "steps_met": 0 * one, "rep4": 0 * one,
                 "own_end_nats": np.append(end, 9.0)}  # fmt: skip
        tables.append({name: np.stack([v, one], -1).astype(float) for name, v in table.items()})
    rule = finishing.calibrated(traces, tables, 512, finishing.PLACES)
    assert 1 <= rule.end_nats < 5
    assert [finishing.stop_of(trace, rule) for trace in traces] == [10] * 12
    assert rule.budgets == {}
    assert (rule.repeated, rule.patience) == (1, math.inf)


GOOD = {"finished": (0.2, 0.1, 0.3), "rep4": (-0.2, -0.3, -0.1), "own_end_nats": (-1.0, -2.0, 0.5),
        "mid_word": (0.0, 0.0, 0.0)}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"finished": (0.0, -0.04, 0.1)}, True),
        ({"finished": (0.0, -0.06, 0.1)}, False),  # perhaps worse by .05
        ({"own_end_nats": (1.0, 0.1, 2.0)}, False),
        ({"steps_met": None}, True),
    ],
)
def test_the_bar_against_the_static_reply(changes, kept):
    row = {"arms": {"srb": {"saved": (0.3, 0.2, 0.4)}}, "matched": {},
           "srb_minus": {"static": GOOD | changes}}  # fmt: skip
    found = replay.bar(row)
    assert (found["saved"], found["kept"], found["repeats_less"]) == (True, kept, True)


def test_the_bar_at_equal_tokens_counts_measures_that_differ():
    row = {"arms": {"srb": {"saved": (0.1, 0.0, 0.2)}}, "srb_minus": {"static": GOOD},
           "matched": {"fixed": GOOD, "end_rule": GOOD | {"rep4": (0.2, 0.1, 0.3)}}}  # fmt: skip
    found = replay.bar(row)
    assert found["against"]["fixed"] == {"better": 2, "worse": 0, "of": 3}
    assert found["against"]["end_rule"] == {"better": 1, "worse": 1, "of": 3}
    assert found["beats"] == {"fixed": True, "end_rule": False}
    assert not found["saved"]


def test_a_drawn_token_has_the_probability_of_the_sampler():
    """Top-p of .95 at a temperature of .8: the last of five tokens is never drawn."""
    p = torch.tensor([0.5, 0.2, 0.2, 0.09, 0.01])
    row = SimpleNamespace(generator=torch.Generator().manual_seed(0))
    drawn = np.bincount([batched._draw(row, p.log()) for _ in range(4000)], minlength=5) / 4000
    hot = (p.log() / 0.8).softmax(-1).numpy()
    kept = np.where(np.arange(5) < 3 + (hot[:3].sum() < 0.95), hot, 0)
    np.testing.assert_allclose(drawn, kept / kept.sum(), atol=0.03)
