"""One row of a generation, on five tokens: measures, decisions, draws, and what it records."""

import itertools
import math

import numpy as np
import pytest
import torch

from entropy_core.information import entropy_nats, normalised_entropy
from reso_llm.config import StabilityConfig
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import (
    SRB,
    Decision,
    Deepen,
    PhaseSlip,
    StabilityTemperature,
    StochasticResonance,
)
from reso_llm.decoding.measure import Measure, measure, measure_row
from reso_llm.decoding.row import Draw, Event, Row, SignalOptions, deepened
from reso_llm.decoding.sampling import SamplingOptions, sample
from reso_llm.decoding.stability import StabilityMonitor

V, INF = 5, math.inf
GREEDY, PLAIN = SamplingOptions(temperature=0), SamplingOptions(temperature=0.9)
NOTHING_SEEN = torch.zeros(1, 0, dtype=torch.long)  # by the repetition penalty
ALWAYS = PhaseSlip.published(
    cooldown_steps=0, confident_nats=0, spike_nats=0, noise=CacheNoise(scale=0)
)
NEVER = (
    SRB.published(settled_nats=0, deepen_nats=99, max_tokens=999),
    PhaseSlip.published(spike_nats=99, stale_steps=INF, loop_patience=999),
    StochasticResonance(amplitude=0),
)


def chain(seed=0, scale=2.0):
    """Logits (V,V) of the next token by the newest, and embeddings (V,3)."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(V, V, generator=generator)
    return logits, torch.randn(V, 3, generator=generator).numpy()


def no_lookahead(candidates, horizon):
    raise AssertionError("a draw without deepening looked ahead")


def draw_one(row, logits, draw=None, lookahead=no_lookahead):
    return row.draw(logits, NOTHING_SEEN, draw or Draw(row.sampling), lookahead)


def steps(row, num_tokens, seed=0):
    """The row on the chain, from token 0, one (draw, token) at a time."""
    table, embeddings = chain(seed)
    token = 0
    for _ in range(num_tokens):
        logits = table[token : token + 1]
        measured = measure_row(logits[0].numpy())
        draw = row.decide(measured, embeddings[token])
        token = draw_one(row, logits, draw, markov_lookahead(table))
        row.observe(token, measured.log_total - float(logits[0, token]))
        yield draw, token


def tokens(controllers=(), *, sampling=PLAIN, seed=3, num_tokens=60):
    row = Row(sampling, controllers, seed=seed)
    return [token for _, token in steps(row, num_tokens)]


# --- measures ---------------------------------------------------------------------------------


def logits_table():
    table = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    table[1] *= 1e4
    table[2] += 1e4
    table[3, 10:] = -INF
    table[4] = -INF
    table[4, 7] = 3.0  # one possible token
    table[5] = 0.0  # uniform
    table[6] = 1e-3
    table[7, ::2] = -1e4
    return table


@pytest.mark.parametrize("min_prob", [None, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measures_are_those_of_information_theory(min_prob, dtype):
    logits = logits_table().to(dtype)
    exact = logits.double()
    parts = entropy_nats(exact), normalised_entropy(exact, min_prob), exact.logsumexp(-1)
    expected = torch.stack(parts, dim=-1).tolist()
    together = measure(logits, min_prob)
    for row, logits_row in enumerate(logits.numpy()):
        alone = measure_row(logits_row, min_prob)
        assert alone == pytest.approx(expected[row], rel=1e-5, abs=1e-5)
        assert together[row] == pytest.approx(expected[row], rel=1e-5, abs=1e-5)
        assert all(type(value) is float for value in alone)
        assert alone.entropy_nats >= 0
        assert alone.normalised_entropy >= 0


def test_measures_of_half_precision_are_taken_in_float32():
    logits = logits_table()[:1].bfloat16()
    assert measure(logits) == measure(logits.float())


def test_a_vocabulary_of_one_token_is_certain():
    assert measure_row(np.array([2.5], dtype=np.float32)) == (0.0, 0.0, 2.5)


@pytest.mark.parametrize("damage", [[math.nan] * V, [0, 0, math.nan, 0, -INF], [0, INF, 0, 0, 0]])
@pytest.mark.parametrize("min_prob", [None, 0.1])
def test_damaged_logits_stop_the_row(damage, min_prob):
    check_damaged(damage, min_prob)


@pytest.mark.parametrize("min_prob", [None, 0.1])
def test_logits_that_exclude_every_token_stop_the_row(min_prob):
    check_damaged([-INF] * V, min_prob)


def check_damaged(damage, min_prob):
    logits = torch.tensor([damage])
    for measured in (measure(logits, min_prob)[0], measure_row(logits[0].numpy(), min_prob)):
        assert math.isnan(measured.entropy_nats)
        row = Row(PLAIN, seed=0)
        with pytest.raises(FloatingPointError, match="not finite: its weights are damaged"):
            row.decide(measured, np.ones(3))
        assert row.step == 0


# --- draws ------------------------------------------------------------------------------------


def test_triggers_that_never_fire_leave_every_draw_as_plain_sampling_makes_it():
    table, generator, plain = chain()[0], torch.Generator().manual_seed(3), [0]
    for _ in range(60):
        plain.append(int(sample(table[plain[-1]][None], NOTHING_SEEN, PLAIN, generator)))
    assert len(set(plain)) > 2
    assert tokens() == tokens(NEVER) == plain[1:]


def test_noise_has_a_stream_of_its_own():
    """Guards noise that moves the draws without touching the logits: here it is far too small."""
    row = Row(PLAIN, [StochasticResonance(amplitude=1e-12, loop=1e-9)], seed=3)
    assert [token for _, token in steps(row, 60)] == tokens()
    assert len(row.events) > 20  # and yet it fired
    assert not torch.equal(row.noise.get_state(), Row(PLAIN, seed=3).noise.get_state())
    fresh = Row(PLAIN, seed=3)  # nor is it the stream of the draws once more
    assert torch.rand((), generator=fresh.noise) != torch.rand((), generator=fresh.generator)


def test_seeds_repeat_and_differ():
    busy = (*NEVER[:1], ALWAYS, StochasticResonance())
    assert tokens(busy) == tokens(busy)
    assert tokens(busy) != tokens(busy, seed=4)
    assert tokens() != tokens(seed=4)


def test_rows_of_the_same_options_share_nothing():
    controllers = (
        SRB.published(deepen_nats=0.5, max_tokens=99),
        PhaseSlip.published(spike_nats=1.0, loop_patience=2),
    )
    alone = [tokens(controllers, seed=seed) for seed in (1, 2)]
    rows = [steps(Row(PLAIN, controllers, seed=seed), 60) for seed in (1, 2)]
    together = [[token for _, token in both] for both in zip(*rows, strict=True)]
    assert [list(ids) for ids in zip(*together, strict=True)] == alone


@pytest.mark.parametrize("sampling", [GREEDY, SamplingOptions(0.5, 1, 0.1, 0.9)])
def test_a_slip_draws_hot_from_the_full_vocabulary(sampling):
    """Guards T = 1.5 inside the filters of the rest of the run, which here leave one token."""
    logits, N = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]]), 2000
    row = Row(sampling, [ALWAYS], seed=0)
    counts = np.zeros(V)
    for _ in range(N):
        draw = row.decide(measure_row(logits[0].numpy()), np.ones(3))
        counts[draw_one(row, logits, draw)] += 1
    p = (logits[0].double() / 1.5).softmax(-1).numpy()
    assert (np.abs(counts / N - p) < 4 * np.sqrt(p * (1 - p) / N)).all()
    assert {draw_one(row, logits) for _ in range(20)} == {0}  # without a slip


def test_logit_noise_is_scaled_to_what_is_possible_and_leaves_the_rest_excluded():
    row, num = Row(PLAIN, seed=0), 4000
    logits = torch.randn(1, num, generator=torch.Generator().manual_seed(1)) * 3 + 50
    logits[0, ::2] = -INF
    noise = row._noisy(logits, 0.5) - logits
    assert (row._noisy(logits, 0.5)[0, ::2] == -INF).all()
    kept = noise[0, 1::2]
    assert kept.std().item() == pytest.approx(0.5 * logits[0, 1::2].std().item(), rel=0.05)
    assert abs(kept.mean().item()) < 0.15
    drawn = {draw_one(row, logits, Draw(PLAIN, logit_noise=9.0)) % 2 for _ in range(50)}
    assert drawn == {1}


def test_the_repetition_penalty_knows_the_ids_given():
    row = Row(SamplingOptions(temperature=0, repetition_penalty=9.0), seed=0)
    logits = torch.tensor([[2.0, 1.9, 0.0, 0.0, 0.0]])
    assert draw_one(row, logits) == 0
    assert row.draw(logits, torch.tensor([[0]]), Draw(row.sampling), no_lookahead) == 1


# --- deepening --------------------------------------------------------------------------------


def markov_lookahead(table):
    """Greedy continuations on the chain whose next token depends on the newest alone."""

    def lookahead(candidates, horizon):
        total, newest = torch.zeros(len(candidates)), candidates
        for _ in range(horizon):
            best = table[newest].log_softmax(-1).max(-1)
            total, newest = total + best.values, best.indices
        return total

    return lookahead


def brute_force(logits, table, candidates, horizon):
    """p of each token as a candidate: p(token) times the greedy path after it, written out."""
    p = [math.exp(x) for x in logits]
    p = [x / sum(p) for x in p]
    chosen = sorted(range(V), key=lambda token: -p[token])[:candidates]
    weights = [0.0] * V
    for token in chosen:
        weights[token], newest = p[token], token
        for _ in range(horizon):
            row = [math.exp(x) for x in table[newest]]
            newest = max(range(V), key=row.__getitem__)
            weights[token] *= row[newest] / sum(row)
    return weights


@pytest.mark.parametrize("candidates", [2, 3, 5, 9])
@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_deepened_logits_equal_brute_force_on_a_chain(candidates, horizon):
    for seed in range(5):
        table, _ = chain(seed)
        logits = table[seed : seed + 1] + 7  # a shift changes no probability
        actual = deepened(logits, Deepen(candidates, horizon), markov_lookahead(table))
        expected = brute_force(logits[0].tolist(), table.tolist(), candidates, horizon)
        assert actual.exp()[0].tolist() == pytest.approx(expected, rel=1e-5)
        assert actual.isfinite().sum() == min(candidates, V)


def test_deepening_reads_no_token_that_is_excluded():
    logits, asked = torch.tensor([[0.0, -INF, 1.0, -INF, -INF]]), []

    def lookahead(candidates, horizon):
        asked.append((candidates.tolist(), horizon))
        return torch.zeros(len(candidates), dtype=torch.float64)

    actual = deepened(logits, Deepen(4, 2), lookahead)
    assert asked == [([2, 0], 2)]
    assert actual.dtype == logits.dtype
    torch.testing.assert_close(actual.softmax(-1), logits.softmax(-1))


def test_deepening_takes_the_token_that_leads_on():
    """Token 0 is the more probable one, but nothing follows it; token 1 leads to certainty."""
    table = torch.zeros(V, V)
    table[1, 2] = table[2, 2] = 20.0
    logits = torch.tensor([[1.0, 0.5, -5.0, -5.0, -5.0]])
    row = Row(GREEDY, seed=0)
    assert draw_one(row, logits) == 0
    draw = Draw(GREEDY, deepen=Deepen(2, 3))
    assert draw_one(row, logits, draw, markov_lookahead(table)) == 1


def test_srb_deepens_where_it_says_and_its_stop_is_named():
    """Budget 20 on the chain: tokens and lookaheads together, and then no more."""
    srb = SRB.published(deepen_nats=0.1, candidates=2, horizon=2, max_tokens=20, patience=99)
    row = Row(PLAIN, [srb], seed=0)
    taken = list(itertools.takewhile(lambda s: not s[0].stop, steps(row, 99)))
    deep = [draw for draw, _ in taken if draw.deepen is not None]
    assert {draw.deepen for draw in deep} == {Deepen(2, 2)}
    assert len(taken) + 1 + 4 * len(deep) == 20
    assert row.events[-1] == Event(len(taken), "srb", "budget", "stop")


# --- what a row records -----------------------------------------------------------------------


def decide(row, entropy, embedding=(1.0, 0.0, 0.0)):
    return row.decide(Measure(entropy, 0.5, 9.0), np.array(embedding))


def test_decisions_are_recorded_with_step_cause_and_effect():
    slip = PhaseSlip.published(noise=CacheNoise(scale=0.05), loop_patience=1)
    srb = SRB.published(max_tokens=40, patience=99)
    row = Row(GREEDY, [slip, StochasticResonance(loop=0.5), srb], seed=0)
    draws = []
    for t in range(40):
        draws.append(decide(row, 4.0 if t == 0 else 0.01))
        row.observe(3, 0.0)
    heat = "temperature 1.5, full vocabulary, cache noise 0.05"
    assert row.events[0] == Event(0, "phase_slip", "spike", heat)
    assert draws[0] == Draw(SamplingOptions(temperature=1.5), cache_noise=slip.noise)
    assert draws[1] == Draw(GREEDY)
    # Of 12 equal tokens 11 repeat the one before, a score of 0.92; of 7 tokens 6, one of 0.5.
    resonance = [event for event in row.events if event.controller == "stochastic_resonance"]
    assert resonance[0] == Event(7, "stochastic_resonance", "loop", "logit noise 0.3")
    loops = [event for event in row.events if event[1:3] == ("phase_slip", "loop")]
    assert loops[0] == Event(12, "phase_slip", "loop", heat)
    assert draws[12] == draws[0]._replace(logit_noise=0.3)
    assert row.events[-1] == Event(39, "srb", "budget", "stop")
    assert draws[39].stop == "srb_budget"
    assert [draw.stop for draw in draws[:39]] == [""] * 39
    assert row.step == len(row.signals) == 40
    assert row.temperatures == [draw.sampling.temperature for draw in draws]
    assert [s.entropy_nats for s in row.signals] == [4.0] + [0.01] * 39


def test_an_event_says_what_is_compared():
    row = Row(PLAIN, [SRB.published(candidates=2, horizon=6)], seed=0)
    for embedding in ((1, 0, 0), (-1, 1, 0), (0, 1, 0)):  # C+ undefined, 0, 1
        draw = decide(row, 4.0, embedding)
    assert draw.deepen == Deepen(2, 6)
    assert row.events[-1] == Event(2, "srb", "deepen", "compared 2 continuations of 6 tokens")


class Wide:
    """A controller from outside the package, which lifts the filters and changes nothing else."""

    name = "wide"

    def start(self):
        return self

    def decide(self, reading):
        return Decision("always", full_vocabulary=True)


def test_filters_can_be_lifted_without_another_temperature():
    row = Row(SamplingOptions(0.7, 2, 0.5, 0.1, 1.1), [Wide()], seed=0)
    assert decide(row, 1.0).sampling == SamplingOptions(0.7, repetition_penalty=1.1)
    assert row.events == [Event(0, "wide", "always", "full vocabulary")]


def test_later_controllers_see_and_overrule_the_temperature_of_earlier_ones():
    def first_draw(*controllers):
        monitor = StabilityMonitor(StabilityConfig(enabled=True))
        for _ in range(60):
            monitor.observe(4.0, 1)
        return decide(Row(PLAIN, controllers, seed=0, monitor=monitor), 4.0).sampling

    warm = 0.9 * math.exp(0.4)
    assert first_draw(StabilityTemperature()).temperature == pytest.approx(warm)
    assert first_draw(StabilityTemperature(), PhaseSlip.published()).temperature == 1.5
    both = first_draw(PhaseSlip.published(slip_temperature=1.0), StabilityTemperature())
    assert both.temperature == pytest.approx(math.exp(0.4))


def test_the_temperature_does_not_compound_from_token_to_token():
    monitor = StabilityMonitor(StabilityConfig(enabled=True))
    row = Row(PLAIN, [StabilityTemperature()], seed=0, monitor=monitor)
    for _ in range(60):
        decide(row, 1.0)
        row.observe(4, 1.0)
    assert row.temperatures[0] == 0.9
    assert row.temperatures[-1] == pytest.approx(0.9 * math.exp(0.4))
    assert row.temperatures[-1] == row.temperatures[-2]
    assert row.events[-1][1:3] == ("stability_temperature", "loop")


def test_a_row_with_a_monitor_passes_on_the_order_parameter():
    config = StabilityConfig(enabled=True)
    row, twin = Row(PLAIN, seed=0, monitor=StabilityMonitor(config)), StabilityMonitor(config)
    bare = Row(PLAIN, seed=0)
    for t in range(50):
        decide(row, 1.0 + t % 3)
        decide(bare, 1.0)
        row.observe(t % 4, 2.0, 0.25)
        bare.observe(t % 4, 2.0)
        expected = twin.observe(1.0 + t % 3, t % 4, surprise_nats=2.0, coherence=0.25)
        np.testing.assert_equal(row.readings[-1], expected)
        assert row.loop_score == bare.loop_score == expected.repetition
    assert row.loop_score == 1.0
    assert bare.readings == []


def test_signal_options_reach_the_tracker():
    embeddings = np.random.default_rng(0).normal(size=(6, 3))

    def last(**options):
        row = Row(PLAIN, seed=0, signals=SignalOptions(**options))
        for t, embedding in enumerate(embeddings):
            decide(row, float(t % 3), embedding)
        return row.signals[-1]

    e = embeddings
    cosine = e[4] @ e[5] / math.sqrt(e[4] @ e[4] * (e[5] @ e[5]))
    assert last(window=1).coherence == pytest.approx(cosine)
    assert last(ema_weight=1.0).ema_nats == 2.0
    assert last().ema_nats < 1.5


@pytest.mark.parametrize(
    ("field", "value"),
    [("window", 0), ("ema_weight", 0.0), ("ema_weight", 1.1), ("min_prob", 0.0), ("min_prob", 1.0)],
)
def test_signal_options_out_of_range_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} = "):
        SignalOptions(**{field: value})


def test_a_temperature_that_follows_the_monitor_needs_one():
    with pytest.raises(ValueError, match="StabilityTemperature follows the stability monitor"):
        Row(PLAIN, [SRB.published(), StabilityTemperature()], seed=0)
