"""The echo against naive counting: what followed, p', its gradient, both forms, values, cost."""

import math
import random

import numpy as np
import pytest
import torch
from references import echo_reference, followers_reference

from reso_llm.config import EchoConfig, ResoLLMConfig
from reso_llm.stages import echo
from reso_llm.stages.echo import (
    MAX_LOG_STRENGTH,
    CountBuffer,
    Echo,
    EchoState,
    TargetEvidence,
    TextCounts,
    text_evidence,
)

V, DIM, ORDERS = 7, 6, 3


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def text(length, seed=0, kinds=4):
    """Ids among few enough that contexts of all lengths come again."""
    source = random.Random(seed)
    return [source.randrange(kinds) for _ in range(length)]


def stored(number=3, seed=0):
    """Texts of (ids, weight), the first with a weight of 0."""
    source = random.Random(seed)
    return [(text(9, seed + i), i * source.random()) for i in range(number)]


def spread(texts):
    """The same texts as the references take them: with a weight for each id."""
    return [(ids, [weight] * len(ids)) for ids, weight in texts]


def make_echo(orders=ORDERS, dtype=torch.float64, seed=0):
    """Every parameter moved off its start."""
    module = Echo(DIM, EchoConfig(max_order=orders)).to(dtype)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.3 * draw(*p.shape, seed=seed + i, dtype=dtype))
    return module


def state_of(*texts, rows=1, weight=1.0, orders=ORDERS):
    return EchoState((TextCounts.of_texts(texts, orders),) * rows, weight)


def read_all(counts, ids, weight=1.0):
    for token in ids:
        counts = counts.read(token, weight)
    return counts


def found_in(counts):
    return [dict(entry.counts) for entry in counts.current().found]


def distribution_reference(module, logits, x, texts, ids, weight):
    """p' (T,V) of one row that is read after other texts, one token at a time."""
    rows = []
    for t, z in enumerate(logits):
        read = ids[: t + 1], [weight] * (t + 1)
        added = echo_reference(module, x[t], [*spread(texts), read], logits.shape[-1])
        rows.append((z.softmax(0) + added) / (1 + added.sum()))
    return torch.stack(rows)


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("orders", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_counts_are_what_followed_each_context_before(orders, seed):
    """Over all places of a text that is read after stored ones, by slices of the texts."""
    texts, ids = stored(seed=seed), text(30, seed + 50)
    weights = [(1.0, 0.5)[i > 12] for i in range(len(ids))]
    counts, longest = TextCounts.of_texts(texts, orders), 0
    for t, (token, weight) in enumerate(zip(ids, weights, strict=True)):
        counts = counts.read(token, weight)
        read = [*spread(texts), (ids[: t + 1], weights[: t + 1])]
        expected = [followers_reference(read, m + 1) for m in range(orders)]
        found = found_in(counts)
        for m, follows in enumerate(expected):
            assert (found[m] if m < len(found) else {}) == pytest.approx(follows)
            assert bool(follows) == (m < len(found))
        for entry in counts.buffer.found:
            assert entry.total == pytest.approx(sum(entry.counts.values()))
        longest = max(longest, len(found))
    assert longest == orders or orders > 3


def test_no_context_reaches_across_texts():
    counts = TextCounts.of_texts([([1, 2], 1.0), ([3], 1.0), ([4, 5], 1.0)], ORDERS)
    assert found_in(counts) == []
    for last, expected in ((1, [{2: 1.0}]), (2, []), (3, []), (4, [{5: 1.0}])):
        assert found_in(counts.read(last)) == expected
    apart = read_all(TextCounts.empty(ORDERS), [1, 2, -1, 3])
    assert found_in(apart.read(-1).read(2)) == []


def test_a_text_of_weight_0_says_nothing():
    assert found_in(TextCounts.of_texts([([1, 2], 0.0)], ORDERS).read(1)) == []


def test_texts_without_a_context_say_nothing():
    counts = TextCounts.of_texts([([3], 1.0), ([], 1.0)], ORDERS)
    assert found_in(counts.read(3)) == []


def test_contexts_of_different_lengths_and_large_ids_are_not_mixed_up():
    """Guards keys that run into each other: id 0 in front, and the largest id there can be."""
    top = (1 << echo.ID_BITS) - 1
    ids = [0, 0, 0, 1, 0, 0, top, 0, 1, top, top, 0, 0]
    counts = read_all(TextCounts.empty(5), ids)
    expected = [followers_reference([(ids, [1.0] * len(ids))], m) for m in range(1, 6)]
    assert found_in(counts) == [e for e in expected if e]
    ResoLLMConfig(vocab_size=top + 1)
    with pytest.raises(ValueError, match="vocab_size"):
        ResoLLMConfig(vocab_size=top + 2)


# --- values ---------------------------------------------------------------------------------------


def test_forks_never_see_each_other():
    """A value is read on twice, in turn; each line finds its own text, and the value its own."""
    start = read_all(TextCounts.empty(ORDERS), [1, 2, 3, 1])
    before = found_in(start)
    one, two = read_all(start, [2, 3]), read_all(start, [3, 2])
    one, two = read_all(one, [1, 2, 1]), read_all(two, [1, 3, 1])
    for counts, ids in ((one, [2, 3, 1, 2, 1]), (two, [3, 2, 1, 3, 1])):
        fresh = read_all(TextCounts.empty(ORDERS), [1, 2, 3, 1, *ids])
        assert found_in(counts) == found_in(fresh)
        assert counts.length == fresh.length
    assert found_in(start) == before
    assert found_in(one) != found_in(two)


def test_a_line_that_goes_on_alone_keeps_its_buffer():
    counts = TextCounts.empty(ORDERS)
    assert read_all(counts, text(50)).buffer is counts.buffer
    assert counts.read(1).buffer is not counts.buffer, "the value is stale: it reads again"


def test_a_copied_row_goes_on_apart():
    """The rows of one state may be one value."""
    module, ids = make_echo(), torch.tensor([[1, 2, 3, 1, 2], [3, 2, 1, 3, 1], [1, 1, 2, 2, 1]])
    logits, x, given = draw(3, 5, V), draw(3, 5, DIM, seed=1), state_of(*stored(), rows=3)
    kept = [found_in(counts.read(1)) for counts in given.rows]
    together, after = module(logits, x, ids, given)
    for row in range(3):
        own = slice(row, row + 1)
        alone, state = module(logits[own], x[own], ids[own], state_of(*stored()))
        torch.testing.assert_close(alone, together[own])
        assert found_in(state.rows[0]) == found_in(after.rows[row])
    assert [found_in(counts.read(1)) for counts in given.rows] == kept


# --- p' -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_echo_is_its_definition(seed, weight):
    """In value and in every gradient; p' sums to 1."""
    module, texts = make_echo(seed=seed), stored(seed=seed)
    ids = [text(11, seed + 20), text(11, seed + 30)]
    logits, x = draw(2, 11, V, seed=seed), draw(2, 11, DIM, seed=seed + 1)
    leaves = [logits.requires_grad_(), x.requires_grad_(), *module.parameters()]
    given = state_of(*texts, rows=2, weight=weight)
    ours = module(logits, x, torch.tensor(ids), given)[0].softmax(-1)
    theirs = torch.stack([
        distribution_reference(module, logits[b], x[b], texts, ids[b], weight) for b in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(theirs.sum(-1), torch.ones(2, 11, dtype=torch.float64))
    weights = draw(*ours.shape, seed=9)
    grads = [torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 1e-6
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_new_echo_trusts_a_context_by_how_often_its_followers_came():
    """s = constant * N / U, of which the constant is less for the last token alone."""
    module, x = Echo(DIM, EchoConfig(max_order=3)), draw(DIM, dtype=torch.float32)
    total, kinds = torch.tensor([6.0, 4.0, 0.0]), torch.tensor([3.0, 1.0, 0.0])
    first, longer = echo.FIRST_STRENGTHS
    expected = torch.tensor([first * 2, longer * 4, 0.0])
    torch.testing.assert_close(module.strengths(x, total, kinds), expected)


def test_what_nothing_was_read_of_keeps_its_logit():
    module, logits, x = make_echo(), draw(1, 3, V), draw(1, 3, DIM)
    assert torch.equal(module(logits, x, torch.tensor([[1, 2, 3]]), None)[0], logits)
    moved = module(logits, x, torch.tensor([[1, 2, 1]]), None)[0] != logits
    assert moved.nonzero().tolist() == [[0, 2, 2]]


def test_a_token_never_reaches_its_own_prediction():
    """Another token later leaves the logits before as they were; a first pair has no support."""
    module, ids = make_echo(), torch.tensor([text(12)])
    logits, x = draw(1, 12, V), draw(1, 12, DIM, seed=1)
    before = module(logits, x, ids, None)[0]
    for t in range(12):
        changed = ids.clone()
        changed[0, t:] = (changed[0, t:] + 1) % V
        assert torch.equal(module(logits, x, changed, None)[0][:, :t], before[:, :t])
    share, total, _ = text_evidence([1, 2, 1, 2, 1, 3], ORDERS)
    assert not total[:2].any(), "1 and 2 came for the first time"
    assert share[2, 0] == 1.0
    assert share[4].tolist() == [0, 0, 0], "3 never followed"


def test_a_thousand_followers_share_the_strength_of_their_context():
    module = make_echo(orders=1)
    with torch.no_grad():
        module.total_scale.zero_(), module.kinds_scale.zero_(), module.gate.zero_()
    counts = TextCounts.of_texts([([0, 1 + i], 1.0) for i in range(1000)], 1)
    logits, x = torch.zeros(1, 1, 2000, dtype=torch.float64), draw(1, 1, DIM)
    p = module(logits, x, torch.tensor([[0]]), EchoState((counts,)))[0].softmax(-1)[0, 0]
    s = module.trust.exp().item()
    assert p[1001].item() == pytest.approx(1 / 2000 / (1 + s), rel=1e-6)
    assert p[1].item() == pytest.approx((1 / 2000 + s / 1000) / (1 + s), rel=1e-6)


# --- evidence of targets --------------------------------------------------------------------------


def test_evidence_of_a_text_is_its_definition():
    ids = text(25)
    found = text_evidence(ids, ORDERS)
    assert (found.shape, found.dtype) == ((3, 24, ORDERS), np.float32)
    for t in range(24):
        for m in range(ORDERS):
            read = [(ids[: t + 1], [1.0] * (t + 1))]
            follows = followers_reference(read, m + 1)
            total = sum(follows.values())
            share = follows.get(ids[t + 1], 0.0) / total if total else 0.0
            assert found[:, t, m].tolist() == pytest.approx([share, total, len(follows)])
    assert found[0].any(0).all(), "every order has something to say"


@pytest.mark.parametrize("ids", [[], [3]])
def test_a_text_without_a_target_has_no_evidence(ids):
    assert text_evidence(ids, ORDERS).shape == (3, 0, ORDERS)


def test_support_of_targets_is_what_forward_gives_them():
    """(p + C) / (1 + S) is p' of the next token, and 0 + p where nothing was read."""
    module = make_echo()
    rows = torch.tensor([text(13), text(13, seed=4)])
    ids, targets = rows[:, :-1], rows[:, 1:]
    logits, x = draw(2, 12, V), draw(2, 12, DIM, seed=1)
    evidence = module.window_evidence(ids, targets)
    added, norm = module.support(x, evidence)
    assert added.shape == norm.shape == ids.shape
    p = logits.softmax(-1).gather(-1, targets[..., None])[..., 0]
    expected = module(logits, x, ids, None)[0].softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close((p + added) / (1 + norm), expected, rtol=1e-6, atol=1e-9)
    for b in range(2):
        ours = [part[b].numpy() for part in evidence]
        assert np.array_equal(ours, text_evidence(rows[b].tolist(), ORDERS))
        reference = [
            echo_reference(module, x[b, t], [(rows[b, : t + 1].tolist(), [1.0] * (t + 1))], V)
            for t in range(12)
        ]
        torch.testing.assert_close(norm[b], torch.stack(reference).sum(-1), rtol=1e-6, atol=1e-9)
    assert (norm[:, 0] == 0).all()


def test_evidence_moves_to_a_device_whole():
    evidence = TargetEvidence(*(torch.zeros(1, 2, 3) for _ in range(3)))
    assert {part.device.type for part in evidence.to(torch.device("meta"))} == {"meta"}


# --- both forms -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("orders", [1, 3, 6])
def test_one_pass_equals_pieces_and_single_steps(orders):
    """In float32, after stored texts, the row's own words counting half from the middle on."""
    module = make_echo(orders, torch.float32)
    ids, texts = text(20, seed=5), stored()
    logits, x = draw(1, 20, V, dtype=torch.float32), draw(1, 20, DIM, seed=1, dtype=torch.float32)
    first = TextCounts.of_texts(texts, orders)
    given = EchoState((first,))
    outputs = []
    for part, weight in ((slice(0, 10), 1.0), (slice(10, 20), 0.5)):
        rows = torch.tensor([ids[part]])
        out, given = module(logits[:, part], x[:, part], rows, given._replace(weight=weight))
        outputs.append(out)
    whole = torch.cat(outputs, dim=1)
    piecewise = EchoState((TextCounts.of_texts(texts, orders),))
    stepper = module.stepper(EchoState((TextCounts.of_texts(texts, orders),)))
    for t, token in enumerate(ids):
        if t == 10:
            stepper = module.stepper(stepper.state._replace(weight=0.5))
            piecewise = piecewise._replace(weight=0.5)
        at = slice(t, t + 1)
        one, piecewise = module(logits[:, at], x[:, at], torch.tensor([[token]]), piecewise)
        step = logits[:, t].numpy().copy()
        stepper.add(stepper.read([token]), x[:, t].numpy(), step)
        torch.testing.assert_close(one[:, 0], whole[:, t], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(step, whole[:, t].numpy(), rtol=1e-4, atol=1e-5)
    assert (whole != logits).any()
    for state in (piecewise, stepper.state):
        assert state.weight == 0.5
        assert found_in(state.rows[0]) == found_in(given.rows[0])


@torch.no_grad()
def test_steppers_of_one_state_never_see_each_other():
    """Nor does one see what is read behind the state that it handed back."""
    module, given = make_echo(dtype=torch.float32), state_of(([1, 2, 3], 1.0))
    one, two = module.stepper(given), module.stepper(given)
    for a, b in ((1, 2), (2, 2), (1, 1), (2, 3), (1, 2)):
        one.read([a]), two.read([b])
    fresh = module.stepper(state_of(([1, 2, 3], 1.0)))
    for a in (1, 2, 1, 2, 1):
        expected = [dict(entry.counts) for entry in fresh.read([a])[0]]
    assert found_in(one.state.rows[0]) == expected
    handed = one.state
    read_all(handed.rows[0], [3, 3, 3])
    found = [dict(entry.counts) for entry in one.read([2])[0]]
    assert found == [dict(entry.counts) for entry in fresh.read([2])[0]]


@torch.no_grad()
def test_strengths_are_bounded_in_both_forms():
    module, ids = make_echo(dtype=torch.float32), [1, 2, 1]
    module.trust.fill_(1e4)
    logits, x = draw(1, 3, V, dtype=torch.float32), draw(1, 3, DIM, seed=1, dtype=torch.float32)
    whole = module(logits, x, torch.tensor([ids]), None)[0]
    stepper, step = module.stepper(module.init_state(1, logits)), logits[:, 2].numpy().copy()
    for token in ids:
        found = stepper.read([token])
    stepper.add(found, x[:, 2].numpy(), step)
    np.testing.assert_allclose(step, whole[:, 2].numpy(), rtol=1e-5)
    gain = whole[0, 2, 2] - logits[0, 2].logsumexp(0)
    assert gain.item() == pytest.approx(MAX_LOG_STRENGTH, abs=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("weight", [1.0, 1e-60])
def test_silence_adds_exactly_nothing(weight):
    """In all three forms, for texts that are nearly forgotten too."""
    module, ids = make_echo(dtype=torch.float32), torch.tensor([text(12)])
    module.silence()
    logits, x = draw(1, 12, V, dtype=torch.float32), draw(1, 12, DIM, dtype=torch.float32)
    given = state_of((text(12), weight))
    assert torch.equal(module(logits, x, ids, given)[0], logits)
    stepper = module.stepper(given)
    for t, token in enumerate(ids[0].tolist()):
        step = logits[:, t].numpy().copy()
        stepper.add(stepper.read([token]), x[:, t].numpy(), step)
        assert np.array_equal(step, logits[:, t].numpy())
    evidence = module.window_evidence(ids[:, :-1], ids[:, 1:])
    assert evidence.share.any()
    assert not torch.stack(module.support(x[:, :-1], evidence)).any()


# --- cost -----------------------------------------------------------------------------------------


class CountingDict(dict):
    """A dictionary that counts how often it was asked."""

    asked = 0

    def get(self, *args):
        self.asked += 1
        return super().get(*args)

    def __setitem__(self, *args):
        self.asked += 1
        super().__setitem__(*args)


@pytest.mark.parametrize("kinds", [1, 4, 1000])
def test_a_token_costs_a_few_looks_for_each_order_however_much_was_read(kinds):
    orders, asked = 6, []
    buffer = CountBuffer(orders)
    buffer.followers = CountingDict()
    for token in text(4000, kinds=kinds):
        buffer.read(token, 1.0)
        asked.append(buffer.followers.asked)
    per_token = np.diff([0, *asked])
    assert per_token.max() <= 2 * orders, "one look and one new context an order"
    assert len(buffer.followers) <= orders * 4000
    assert len(buffer.contexts) == orders
    assert math.isclose(
        sum(e.total for e in buffer.followers.values()), orders * 4000, rel_tol=0.01
    )
