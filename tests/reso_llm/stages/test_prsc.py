"""The binding memory against dictionaries and big integers: keys, counts, evidence, folds, gate."""

import math

import numpy as np
import pytest
import torch
from references import NO_FOLD, CountReference

from entropy_core.primes import first_primes
from reso_llm.config import PRSCConfig
from reso_llm.stages import ngrams, prsc
from reso_llm.stages.ngrams import FOLDS, MODULI, context_keys, prime_powers
from reso_llm.stages.prsc import BindingMemory

V, DIM, ORDERS = 23, 6, 3


def make_text(size=300, seed=0):
    """Ids, the lower ones frequent, so that contexts come again."""
    return (V * np.random.default_rng(seed).random(size) ** 2.5).astype(np.int64)


def make_memory(tokens=None, dtype=torch.float64, **changes):
    memory = BindingMemory(V, DIM, PRSCConfig(**{"max_order": ORDERS, "max_slots": 64} | changes))
    memory.to(dtype)
    if tokens is not None:
        memory.fit(tokens)
    with torch.no_grad():
        for i, p in enumerate(memory.parameters()):
            p.copy_(draw(*p.shape, seed=i))
    return memory


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def draw_ids(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def no_tail(batch, memory):
    return torch.full((batch, memory.tail_length), -1)


# --- the definition, with dictionaries ----------------------------------------------------------


def evidence_of(memory, ids, fold=None):
    """[{token: value} of each order], counts (M,) after the last of ids, as the memory says it."""
    ids = torch.tensor([ids])
    found = memory(ids, no_tail(1, memory), None if fold is None else torch.tensor([fold]))
    said = [{} for _ in range(memory.num_orders)]
    ends = np.cumsum(memory.slots)
    for j, (v, e) in enumerate(zip(found.ids[0, -1], found.values[0, -1], strict=True)):
        if e:
            said[int((j >= ends).sum())][int(v)] = float(e)
    return said, found.counts[0, -1].expm1()


def contexts_of(tokens):
    """Contexts that occur, once or often, and some that do not."""
    seen = [tuple(int(t) for t in tokens[at - ORDERS : at]) for at in range(ORDERS, len(tokens), 7)]
    return [*seen, (22, 22, 22), (22, *seen[0][1:]), (int(tokens[0]),), (22, 21)]


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_is_the_residue_of_the_goedel_number():
    """g = p_t^1 p_{t-1}^2 p_{t-2}^4 ... in Python's big integers."""
    primes, orders = first_primes(V), 6
    ids = draw_ids(2, 9 + orders - 1)
    keys = context_keys(ids, torch.from_numpy(prime_powers(V, orders)))
    for row in range(2):
        for t in range(9):
            g = 1
            for m in range(orders):
                g *= int(primes[ids[row, t + orders - 1 - m]]) ** (2**m)
                assert keys[row, t, m] == (g % MODULI[0]) * MODULI[1] + g % MODULI[1]


def test_a_context_that_reaches_before_the_text_has_key_zero():
    ids = torch.tensor([[-1, -1, 3, 4]])
    keys = context_keys(ids, torch.from_numpy(prime_powers(V, 3)))[0]
    assert (keys[0] > 0).tolist() == [True, False, False]
    assert (keys[1] > 0).tolist() == [True, True, False]
    assert (keys[:, 1:][keys[:, 1:] > 0] != keys[0, 0]).all()


def test_different_ngrams_of_any_length_have_different_keys():
    """Order matters. With exponents 1, 2, 3, as once here, (a, b, b) and (b, a, a) were one."""
    ids = draw_ids(1, 20_000)
    keys = context_keys(ids, torch.from_numpy(prime_powers(V, ORDERS)))[0]
    owners = {}
    for m in range(ORDERS):
        for t in range(len(keys)):
            gram = tuple(ids[0, t + ORDERS - 1 - m : t + ORDERS].tolist())
            assert owners.setdefault(int(keys[t, m]), gram) == gram
    assert len(owners) > 8000


def test_collisions_are_counted(monkeypatch):
    tokens = make_text()
    assert make_memory().fit(tokens) == 0
    monkeypatch.setattr(ngrams, "MODULI", (101, 103))
    some = make_memory().fit(tokens)
    monkeypatch.setattr(ngrams, "MODULI", (5, 7))
    assert 0 < some < make_memory().fit(tokens)


# --- counts and evidence --------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", [None, *range(FOLDS)])
@pytest.mark.parametrize("max_slots", [64, 8])  # 8: tokens beyond the most frequent are left out
def test_evidence_is_its_definition(max_slots, left_out):
    tokens = make_text(400)
    memory = make_memory(tokens, max_slots=max_slots)
    left = NO_FOLD if left_out is None else left_out
    reference = CountReference(tokens, ORDERS, memory.slots, V, left_out=left)
    for context in contexts_of(tokens):
        _, expected = reference.after(context)
        said, counts = evidence_of(memory, context, left_out)
        for m, (total, evidence) in enumerate(expected):
            assert counts[m].item() == pytest.approx(total)
            assert said[m] == pytest.approx(evidence, rel=1e-6)


def test_the_definition_cuts_somewhere():
    """Guards the test above: at 8 slots something is left out, at 64 nothing is."""
    counts = CountReference(make_text(400), 1, (64,), V).raw[1].values()
    assert 8 < max(len(everywhere) for everywhere, _ in counts) < 64


@pytest.mark.parametrize("max_slots", [64, 8])
def test_unigram_times_the_evidence_is_the_interpolated_distribution(max_slots):
    """softmax(ln u + sum of evidence) = P, which sums to 1 by itself."""
    tokens = make_text(400)
    memory = make_memory(tokens, max_slots=max_slots)
    reference = CountReference(tokens, ORDERS, memory.slots, V)
    for context in contexts_of(tokens):
        p, _ = reference.after(context)
        assert sum(p) == pytest.approx(1)
        logits = torch.tensor(reference.unigram, dtype=torch.float64).log()
        for evidence in evidence_of(memory, context)[0]:
            for v, e in evidence.items():
                logits[v] += e
        assert logits.softmax(0).tolist() == pytest.approx(p, rel=1e-6)


def test_what_only_a_fold_says_is_not_known_to_it():
    """Guards a gate that learns to trust what it will not have: token 22 is in fold 2 only."""
    tokens = np.minimum(make_text(500), 21)
    places = np.random.default_rng(1).permutation(np.arange(200 + ORDERS, 300 - ORDERS))[:30]
    tokens[places] = 22
    memory, told = make_memory(tokens), 0
    for at in [*places, *(places + 1), *(places + 2)]:
        context = tuple(tokens[at - ORDERS : at])
        for fold in (2, 3):
            said = evidence_of(memory, context, fold)[0]
            named = any(22 in evidence for evidence in said)
            assert not (named and fold == 2)
            told += named
        if context[-1] == 22:
            assert not evidence_of(memory, context, 2)[1].any()
    assert told > 30


def test_counts_without_a_fold_do_not_depend_on_its_text():
    tokens, other = make_text(500), make_text(500)
    inside = slice(200 + ORDERS, 300 - ORDERS)
    other[inside] = make_text(500, seed=1)[inside]
    one, two = make_memory(tokens), make_memory(other)
    moved = 0
    for context in contexts_of(tokens):
        _, counts = evidence_of(one, context, 2)
        assert torch.equal(counts, evidence_of(two, context, 2)[1])
        moved += not torch.equal(evidence_of(one, context, 1)[1], evidence_of(two, context, 1)[1])
    assert moved > 10, "the other folds do see the change"


def test_a_window_reads_the_fold_it_starts_in():
    memory = make_memory()
    assert memory.fold_of(torch.tensor([0])) is None, "nothing is fitted"
    memory.fit(make_text(100))
    assert memory.fold_of(torch.tensor([0, 19, 20, 99])).tolist() == [0, 0, 1, 4]


def test_the_key_of_a_fold_is_of_its_row():
    """Rows of a batch may come from different folds."""
    tokens = make_text(400)
    memory, ids = make_memory(tokens), torch.from_numpy(tokens[:8]).expand(2, -1)
    both = memory(ids, no_tail(2, memory), torch.tensor([0, 3]))
    for row, fold in enumerate((0, 3)):
        alone = memory(ids[:1], no_tail(1, memory), torch.tensor([fold]))
        assert all(torch.equal(a[row], b[0]) for a, b in zip(both, alone, strict=True))
    assert not torch.equal(both.values[0], both.values[1])


# --- doubt ----------------------------------------------------------------------------------------


def entropy(p):
    return -sum(x * math.log(x) for x in p if x)


def doubt_of(memory, ids, fold=None):
    """Doubt after the last of ids, in nats, as the memory says it."""
    fold = None if fold is None else torch.tensor([fold])
    return memory(torch.tensor([ids]), no_tail(1, memory), fold).doubt[0, -1].item()


@pytest.mark.parametrize("left_out", [None, *range(FOLDS)])
@pytest.mark.parametrize("max_slots", [64, 8])  # 8: tokens beyond the most frequent are left out
def test_doubt_is_the_entropy_of_the_interpolated_distribution(max_slots, left_out):
    tokens = make_text(400)
    memory = make_memory(tokens, max_slots=max_slots)
    left = NO_FOLD if left_out is None else left_out
    reference = CountReference(tokens, ORDERS, memory.slots, V, left_out=left)
    found = []
    for context in contexts_of(tokens):
        p, _ = reference.after(context)
        assert sum(p) == pytest.approx(1)
        assert doubt_of(memory, context, left_out) == pytest.approx(entropy(p), rel=1e-5)
        found.append(entropy(p))
    assert max(found) - min(found) > 0.5


def test_the_doubt_of_an_unlisted_context_is_that_of_the_longest_listed_one():
    """And that of none the unigram's."""
    tokens = np.minimum(make_text(400), 20)  # 21 and 22 never come
    memory = make_memory(tokens)
    reference = CountReference(tokens, ORDERS, memory.slots, V)
    known = tuple(int(t) for t in tokens[10:12])
    assert doubt_of(memory, (22, *known)) == pytest.approx(entropy(reference.after(known)[0]))
    assert doubt_of(memory, (22, *known)) == doubt_of(memory, known)
    last = known[-1:]
    assert doubt_of(memory, (21, *last)) == pytest.approx(entropy(reference.after(last)[0]))
    for unknown in ((22,), (*known, 21)):
        assert doubt_of(memory, unknown) == pytest.approx(entropy(reference.unigram))


def test_a_memory_that_read_nothing_has_one_doubt():
    memory = make_memory()
    assert len(set(memory(draw_ids(2, 5), no_tail(2, memory)).doubt.flatten().tolist())) == 1


def test_contexts_that_were_pruned_leave_their_doubt_to_a_shorter_one():
    tokens, moved = np.minimum(make_text(600), 21), 0
    full, small = make_memory(tokens), make_memory(tokens, max_entries=100)
    for context in contexts_of(tokens):
        length = int((evidence_of(small, context)[1] > 0).sum())
        shorter = context[len(context) - length :] if length else (22,)
        assert doubt_of(small, context) == doubt_of(full, shorter)
        moved += doubt_of(small, context) != doubt_of(full, context)
    assert moved > 10


@pytest.mark.parametrize("max_slots", [64, 8])
def test_the_one_token_form_has_the_same_doubts(max_slots):
    tokens = make_text(400)
    memory = make_memory(tokens, dtype=torch.float32, max_slots=max_slots)
    step = memory.stepper(None)
    ids = [*tokens[:40].tolist(), 22, 22, *tokens[40:80].tolist()]
    history, expected = [-1] * ORDERS, memory(torch.tensor([ids]), no_tail(1, memory)).doubt[0]
    for t, token in enumerate(ids):
        history.append(token)
        assert step.look_up([history])[1] == [expected[t].item()]
    assert len(set(expected.tolist())) > 20


@pytest.mark.parametrize("size", [50, 300, 4000])
def test_doubts_within_the_text_are_those_of_windows_without_their_own_fold(monkeypatch, size):
    """Of a long text some spans, of a short one all of it."""
    monkeypatch.setattr(prsc, "SAMPLES", 4)
    tokens = make_text(size)
    memory = make_memory(tokens)
    length = min(size, prsc.SAMPLE_LENGTH)
    starts = sorted({int(start) for start in np.linspace(0, size - length, 4)})
    expected = []
    for start in starts:
        ids = torch.from_numpy(tokens[None, start : start + length])
        fold = memory.fold_of(torch.tensor([start]))
        expected += memory(ids, no_tail(1, memory), fold).doubt[0].tolist()
    assert memory.doubts_within(tokens).tolist() == pytest.approx(expected)


# --- on the path ----------------------------------------------------------------------------------


def test_evidence_reads_the_past_only():
    memory, tokens = make_memory(make_text()), torch.from_numpy(make_text(12)).view(1, -1)
    before = memory(tokens, no_tail(1, memory))
    for t in range(12):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % V
        after = memory(changed, no_tail(1, memory))
        assert all(torch.equal(a[:, :t], b[:, :t]) for a, b in zip(after, before, strict=True))
        assert not torch.equal(after.values[:, t:], before.values[:, t:])


@pytest.mark.parametrize("sizes", [[1] * 10, [3, 1, 6], [9, 1]])
def test_a_tail_carries_the_context_on(sizes):
    memory, ids = make_memory(make_text()), torch.from_numpy(make_text(20)).view(2, 10)
    whole, tail, pieces = memory(ids, no_tail(2, memory)), no_tail(2, memory), []
    for piece in ids.split(sizes, dim=1):
        pieces.append(memory(piece, tail))
        tail = torch.cat((tail, piece), dim=1)[:, -memory.tail_length :]
    for part, expected in zip(zip(*pieces, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part, dim=1), expected)


def weigh_reference(memory, evidence, x):
    """alpha_m e_m, one slot at a time, with alpha_m = a_m + w_m . x / sqrt(D) + b_m ln(1 + n_m)."""
    orders = [m for m, n in enumerate(memory.slots) for _ in range(n)]
    columns = []
    for j, m in enumerate(orders):
        alpha = memory.trust[m] + (x * memory.gate[m]).sum(-1) / x.shape[-1] ** 0.5
        alpha = alpha + memory.count_scale[m] * evidence.counts[..., m]
        columns.append(alpha * evidence.values[..., j])
    return torch.stack(columns, dim=-1)


def test_weigh_is_its_definition_in_value_and_gradient():
    tokens = make_text()
    memory, ids = make_memory(tokens), torch.from_numpy(tokens[:14]).view(2, 7)
    evidence = memory(ids, no_tail(2, memory))
    x = draw(2, 7, DIM, seed=9).requires_grad_()
    ours, theirs = memory.weigh(evidence, x), weigh_reference(memory, evidence, x)
    torch.testing.assert_close(ours, theirs)
    weights, leaves = draw(*ours.shape, seed=5), [x, *memory.parameters()]
    grads = [torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)


def test_a_memory_that_read_nothing_says_nothing():
    memory = make_memory()
    evidence = memory(draw_ids(2, 5), no_tail(2, memory))
    assert not evidence.values.any()
    assert not evidence.counts.any()
    assert not memory.weigh(evidence, draw(2, 5, DIM)).any()


# --- sizes, saving, refusals --------------------------------------------------------------------


def test_max_entries_keeps_the_most_frequent_contexts():
    tokens = make_text(600)
    full, small = make_memory(tokens), make_memory(tokens, max_entries=100)
    assert 60 < len(small.evidence) <= 100 < len(full.evidence)
    kept = torch.isin(full.keys, small.keys)
    assert kept.sum() == len(small.keys)
    kept, counts = kept[:-1], full.log_counts[:-1]  # the last row is no n-gram's
    assert counts[kept].min() >= counts[~kept].max()
    for context in contexts_of(tokens):  # what is kept says what it said
        whole, part = evidence_of(full, context)[0], evidence_of(small, context)[0]
        assert all(p in ({}, w) for p, w in zip(part, whole, strict=True))


def test_room_for_less_than_one_context():
    memory = make_memory(make_text(), max_entries=1)
    evidence = memory(draw_ids(1, 9), no_tail(1, memory))
    assert torch.isfinite(evidence.values).all()


def test_a_fitted_memory_is_saved_and_loaded():
    fitted, empty = make_memory(make_text()), make_memory()
    state = fitted.state_dict()
    assert set(state) == {*prsc.TABLES, "gate", "trust", "count_scale"}
    empty.make_room(state)
    empty.load_state_dict(state)
    ids = draw_ids(2, 8)
    for a, b in zip(fitted(ids, no_tail(2, fitted)), empty(ids, no_tail(2, empty)), strict=True):
        assert torch.equal(a, b)
    assert empty.fold_of(torch.tensor([3])) is None, "which text the folds were of is not known"


@pytest.mark.parametrize("tokens", [[], [3], [3, V], [-1, 3]])
def test_a_text_that_cannot_be_counted_is_refused(tokens):
    with pytest.raises(ValueError, match=rf"at least 2 token ids below {V}"):
        make_memory().fit(np.array(tokens, dtype=np.int64))


def test_the_shortest_texts():
    for tokens in ([3, 4], [3, 4, 5], [7] * 5):
        memory = make_memory(np.array(tokens))
        evidence = memory(torch.tensor([tokens]), no_tail(1, memory))
        assert torch.isfinite(evidence.values).all()
        said, _ = evidence_of(memory, [tokens[0]])
        assert set(said[0]) == {tokens[1]}


def test_fitting_again_forgets_the_first_text():
    first, second = make_text(seed=1), make_text(seed=2)
    memory, fresh = make_memory(first), make_memory(second)
    memory.fit(second)
    assert all(torch.equal(getattr(memory, n), getattr(fresh, n)) for n in prsc.TABLES)
