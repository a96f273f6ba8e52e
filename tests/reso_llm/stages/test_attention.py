"""Attention against its definition: rotation, window, phases, temperature, caches."""

import dataclasses
import math

import pytest
import torch
from references import attention_reference, turn_reference

from entropy_core.primes import GOLDEN_RATIO
from reso_llm.config import ResoLLMConfig, control_of, with_stage
from reso_llm.stages.attention import Attention, _attend
from reso_llm.stages.cache import KVCache
from reso_llm.stages.rotary import rotary_table, rotate, turned_by_phases

F64 = torch.float64
BATCH, TIME, DIM, BASE = 2, 6, 12, 7.0


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the definition, one row, one head, one query at a time ------------------------------------


def make_module(num_heads=3, has_values=True, window=0, stages=("resonant_attention",)):
    """Attention of random weights in float64."""
    plain = control_of(ResoLLMConfig())
    config = dataclasses.replace(plain, dim=DIM, num_heads=num_heads, attention_window=window)
    for stage in stages:
        config = with_stage(config, stage, enabled=True)
    module = Attention(config, has_values).to(F64)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(draw(*p.shape, seed=i))
    return module


CASES = {
    "plain": dict(stages=()),
    "plain, no values": dict(stages=(), has_values=False),
    "one head": dict(num_heads=1),
    "window 1": dict(window=1),
    "window 4": dict(window=4),
    "everything": dict(window=3),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_is_its_definition(case):
    """In value and in every gradient."""
    module = make_module(**case)
    steered = module.temperature is not None
    x, values, theta, gain = leaves = [
        draw(*shape, seed=20 + i).requires_grad_()
        for i, shape in enumerate([(BATCH, TIME, DIM), (BATCH, TIME, DIM), (BATCH, TIME, 2), (2,)])
    ]
    values = values if module.value_mix is not None else None
    turns = gain * theta if steered else None
    table = rotary_table(0, TIME, DIM // module.num_heads, BASE)
    table = turned_by_phases(table, theta, gain) if steered else table
    ours, _ = module(x, table, values, None)
    theirs = attention_reference(module, x, values, BASE, turns)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the table is float32
    inputs = [x, *module.parameters(), *([values] if values is not None else [])]
    inputs += leaves[2:] if steered else []
    weights = draw(*ours.shape, seed=9)
    grads = [torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# --- rotation and phases --------------------------------------------------------------------------


def test_rotation_depends_on_the_distance_alone():
    """<R_s q, R_t k> = <R_(s+3) q, R_(t+3) k>, the property rotary positions exist for."""
    table = rotary_table(0, 12, 8, 100.0)
    q, k = draw(2, 1, 1, 1, 8, dtype=torch.float32)

    def product(s, t):
        return (rotate(q, table[s : s + 1]) * rotate(k, table[t : t + 1])).sum()

    for s, t in ((0, 0), (2, 5), (7, 1)):
        torch.testing.assert_close(product(s, t), product(s + 3, t + 3))
    assert not torch.isclose(product(0, 0), product(0, 3), atol=1e-3)


def test_rotation_is_the_pairwise_one():
    x = draw(2, 5, 3, 6)
    out = rotate(x, rotary_table(0, 5, 6, 10.0).to(F64))
    for row in range(2):
        for head in range(3):
            expected = turn_reference(x[row, :, head], 10.0)
            torch.testing.assert_close(out[row, :, head], expected, rtol=1e-6, atol=1e-6)


def test_a_table_may_start_anywhere():
    assert torch.equal(rotary_table(5, 9, 8, 50.0), rotary_table(0, 9, 8, 50.0)[5:])


@pytest.mark.parametrize("num_heads", [2, 4, 8])
def test_resonant_frequencies_are_a_golden_ladder(num_heads):
    """Each is 1/phi of the second before it, the first 1 radian a token, whatever the width."""
    config = with_stage(ResoLLMConfig(dim=256, num_heads=num_heads), "resonant_attention", True)
    cos, sin = rotary_table(1, 2, config.head_dim, config.rotary_base)[0].double().unbind(-1)
    angles = torch.atan2(sin, cos)
    ratios = angles[:-2] / angles[2:]
    assert angles[0].item() == pytest.approx(1.0)
    assert ratios[:12].tolist() == pytest.approx([GOLDEN_RATIO] * 12, rel=1e-4)
    assert control_of(config).rotary_base == config.rope_base


def test_phases_turn_the_last_pairs_by_gain_times_theta():
    """x_i -> x_i e^{i gain theta} on top of its position; the pairs before stay."""
    theta, gain = draw(BATCH, TIME, 2), draw(2, seed=1)
    table = rotary_table(0, TIME, 8, BASE)
    turned = turned_by_phases(table, theta, gain)
    x = draw(BATCH, TIME, 3, 8, seed=2)
    out = rotate(x, turned)
    for row in range(BATCH):
        expected = turn_reference(x[row, :, 1], BASE, gain * theta[row])
        torch.testing.assert_close(out[row, :, 1], expected, rtol=1e-6, atol=1e-6)


def test_only_differences_of_phases_matter():
    """Tokens that all turn alike attend as before; a gain of zero is exactly no phase."""
    module, x = make_module(has_values=False), draw(BATCH, TIME, DIM, seed=5)
    table, gain = rotary_table(0, TIME, 4, BASE), draw(2, seed=1)

    def attended(theta, gain):
        return module(x, turned_by_phases(table, theta, gain), None, None)[0]

    theta = draw(BATCH, TIME, 2, seed=2)
    plain = module(x, table.to(F64), None, None)[0]
    same = torch.full_like(theta, 1.3)
    torch.testing.assert_close(attended(same, gain), plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attended(theta + 0.7, gain), attended(theta, gain))
    assert torch.equal(attended(theta, torch.zeros_like(gain)), plain)
    assert not torch.allclose(attended(theta, gain), plain, atol=1e-2)


def test_a_token_attends_to_what_is_in_phase_with_it():
    """Equal keys at no positional turn: the share is exp(c cos d), d the difference of phases."""
    q = torch.ones(1, 4, 1, 2, dtype=F64)
    theta = torch.tensor([0.0, 1.0, math.pi, 0.3], dtype=F64).view(1, 4, 1)
    still = rotary_table(0, 1, 2, BASE).expand(4, 1, 2)  # position 0 for all
    turned = rotate(q, turned_by_phases(still, theta, torch.ones(1, dtype=F64)))
    scores = turned[0, 3, 0] @ turned[0, :, 0].T
    torch.testing.assert_close(scores, 2 * torch.cos(theta[0, 3] - theta[0, :, 0]))


def test_temperature_acts_as_it_says():
    """The scale of a head's queries multiplies its scores."""
    module = make_module(num_heads=1, has_values=False)
    x, table = draw(1, 3, DIM, seed=5), rotary_table(0, 3, DIM, BASE).to(F64)
    with torch.no_grad():
        module.temperature[0] = 0.0  # every score 0: the plain mean of the past
    flat = module(x, table, None, None)[0]
    values = x @ module.qkv[2].T
    mean = values.cumsum(1) / torch.arange(1, 4, dtype=F64).view(1, 3, 1)
    torch.testing.assert_close(flat, mean @ module.out.weight.T)


# --- window ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0, 1, 3, 9])
@pytest.mark.parametrize(("time", "total"), [(1, 1), (1, 5), (4, 4), (3, 5), (2, 9)])
def test_the_window_is_what_a_token_may_see(window, time, total):
    """Against brute force: position i sees i - window + 1 ... i."""
    q, k, v = draw(1, 2, time, 4), draw(1, 2, total, 4, seed=1), draw(1, 2, total, 4, seed=2)
    out = _attend(q, k, v, window)
    for t in range(time):
        at = total - time + t
        seen = slice(max(0, at + 1 - window) if window else 0, at + 1)
        shares = (q[:, :, t : t + 1] @ k[:, :, seen].mT / 2).softmax(-1)
        torch.testing.assert_close(out[:, :, t : t + 1], shares @ v[:, :, seen])


# --- caches ---------------------------------------------------------------------------------------


def test_a_cache_is_a_value():
    empty = KVCache.empty(1, 1, 4, 2, like=torch.zeros(()))
    one, two = torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, 2), 2.0)
    a = empty.append(one, -one)
    b = empty.append(two, -two)
    again = a.append(two, two)
    assert (empty.length, a.length, b.length, again.length) == (0, 1, 1, 2)
    assert a.keys.unique().tolist() == [1.0]
    assert b.keys.unique().tolist() == [2.0]
    assert again.keys[0, 0, :, 0].tolist() == [1.0, 2.0]
    assert again.values[0, 0, :, 0].tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_a_windowed_cache_gives_all_that_may_be_seen_and_stays_small(window):
    """Pieces of any size, longer than the buffer too; keys are their positions."""
    cache = KVCache.empty(1, 1, 2 * window, 1, like=torch.zeros((), dtype=F64))
    at = 0
    for time in (1, 2, 1, 7, 1, 1, 1, 3, 1, 2, 12, 1, 1):
        new = torch.arange(at, at + time, dtype=F64).view(1, 1, time, 1)
        keys, values, cache = cache.extended(new, -new, window)
        at += time
        newest = list(range(at))[-(window + time - 1) :]
        assert keys.flatten().tolist()[-len(newest) :] == newest
        assert torch.equal(values, -keys)
        assert cache.buffer.keys.shape[2] == 2 * window
        kept = cache.keys.flatten().tolist()
        assert kept == list(range(at))[len(range(at)) - len(kept) :]
        assert len(kept) >= min(at, window - 1)


def decode(model, ids, sizes, state):
    logits = []
    for piece in ids.split(sizes, dim=1):
        output = model(piece, state)
        state = output.state
        logits.append(output.logits)
    return torch.cat(logits, dim=1), state


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 30, [13, 1, 9, 7], [5, 5, 1, 19]])
def test_decoding_far_beyond_the_context_with_bounded_memory(tiny_model, sizes):
    """max_seq_len is 12; the longer model is the same but for its table of positions."""
    ids = torch.randint(61, (2, 30), generator=torch.Generator().manual_seed(0))
    model, longer = (tiny_model(attention_window=3, max_seq_len=n) for n in (12, 30))
    logits, state = decode(model, ids, sizes, model.init_state(2))
    torch.testing.assert_close(logits, longer(ids).logits, rtol=1e-4, atol=1e-5)
    assert (state.length, state.capacity) == (30, 6)
    with pytest.raises(ValueError, match="do not fit"):  # a pass without a state is one window
        model(ids)


@torch.no_grad()
def test_forks_of_windowed_caches_do_not_see_each_other(tiny_model):
    model, longer = (tiny_model(attention_window=3, max_seq_len=n) for n in (12, 40))
    ids = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))
    prefix = ids[:1, :5]
    _, state = decode(model, prefix, [5], model.init_state(1))
    ends = [row[None, 5:] for row in ids]
    states, found = [state] * 3, [[], [], []]
    for t in range(19):  # in turn, a token at a time
        for i, end in enumerate(ends):
            output = model(end[:, t : t + 1], states[i])
            states[i] = output.state
            found[i].append(output.logits)
    for end, logits in zip(ends, found, strict=True):
        expected = longer(torch.cat((prefix, end), dim=1)).logits[:, 5:]
        torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-4, atol=1e-5)
