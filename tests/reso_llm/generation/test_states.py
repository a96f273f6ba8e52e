"""States as values: padding, rows side by side, copies of a row, heat in one row's cache."""

import pytest
import torch
from conftest import FULL

from reso_llm.decoding.cache_noise import CacheNoise, noisy_cache
from reso_llm.generation.states import heated, padded, selected, stacked
from reso_llm.stages.echo import TextCounts

IDS = [0, 40, 41, 50, 45, 40, 41, 33]
VARIANTS = {
    "full": dict(stages=FULL),
    "control": {},
    "window": dict(stages=FULL, attention_window=3),
}
NOISE = CacheNoise(scale=0.5)


@pytest.fixture(params=VARIANTS)
def model(request, tiny_model):
    return tiny_model(max_seq_len=24, **VARIANTS[request.param])


@torch.inference_mode()
def read(model, ids, state):
    rows = torch.tensor(ids if isinstance(ids[0], list) else [ids])
    return model(rows, state)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def tensors(value):
    """All tensors of a state; of a shared buffer, what is valid for this value."""
    if isinstance(value, TextCounts):
        return [torch.tensor(value.buffer.log[: value.length])]
    if hasattr(value, "buffer"):
        return [value.keys, value.values]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in tensors(part)]
    return [value] if isinstance(value, torch.Tensor) else []


def copied(state):
    return [t.clone() for t in tensors(state)]


def unchanged(state, before):
    assert all(map(torch.equal, tensors(state), before))


# --- padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [1, 5, 9])
def test_a_padded_row_reads_as_a_fresh_one(model, padding):
    """In one pass and token by token; with a window its caches forget the padding on the way."""
    expected = read(model, IDS, model.init_state())
    once = read(model, IDS, padded(model.init_state(), padding))
    close(once.logits, expected.logits)
    state = padded(model.init_state(), padding)
    for t, token in enumerate(IDS):
        output = read(model, [token], state)
        close(output.logits[:, 0], expected.logits[:, t])
        state = output.state
    assert state.length == once.state.length == padding + len(IDS)
    close(once.diagnostics["hidden"], expected.diagnostics["hidden"])


def test_what_stands_in_the_padding_is_not_seen(model):
    state = padded(model.init_state(), 4)
    for cache in state.caches:
        cache.buffer.keys[:, :, :4] = 1e4
        cache.buffer.values[:, :, :4] = 1e4
    close(read(model, IDS, state).logits, read(model, IDS, model.init_state()).logits)


def test_no_padding_is_no_change(model):
    state = model.init_state()
    assert padded(state, 0) is state


# --- rows ---------------------------------------------------------------------------------------


def test_rows_side_by_side_go_on_as_they_would_alone(model):
    prompts = [IDS, IDS[:3], IDS[2:7], IDS]
    alone = [read(model, ids, model.init_state()).state for ids in prompts]
    behind = [
        read(model, ids, padded(model.init_state(), len(IDS) - len(ids))).state for ids in prompts
    ]
    state, before = stacked(behind), [copied(part) for part in behind]
    assert state.padding.tolist() == [0, 5, 3, 0]
    for token in (44, 50, 45):
        output = read(model, [[token]] * len(prompts), state)
        state = output.state
        for b, own in enumerate(alone):
            expected = read(model, [token], own)
            close(output.logits[b], expected.logits[0])
            alone[b] = expected.state
    for part, values in zip(behind, before, strict=True):
        unchanged(part, values)


def test_rows_of_one_length_need_no_padding(model):
    states = [read(model, ids, model.init_state()).state for ids in (IDS[:4], IDS[4:])]
    assert stacked(states).padding is None
    assert stacked(states[:1]) is states[0]
    shorter = read(model, IDS[:2], model.init_state()).state
    with pytest.raises(ValueError, match=r"lengths \[2, 4\]"):
        stacked([*states, shorter])


def test_copies_of_a_row_go_on_apart(model):
    rows = [
        read(model, ids, padded(model.init_state(), 8 - len(ids))).state for ids in (IDS, IDS[:5])
    ]
    state = stacked(rows)
    before = copied(state)
    copies = selected(state, [1] * 3)
    expected = [read(model, [token], rows[1]) for token in (44, 50, 45)]
    got = read(model, [[44], [50], [45]], copies)
    for i, one in enumerate(expected):
        close(got.logits[i], one.logits[0])
    again = read(model, [[50], [50], [50]], got.state)
    close(again.logits[1], read(model, [50], expected[1].state).logits[0])
    unchanged(state, before)


# --- heat ---------------------------------------------------------------------------------------


def two_rows(model):
    rows = [
        read(model, ids, padded(model.init_state(), 8 - len(ids))).state for ids in (IDS, IDS[:5])
    ]
    return stacked(rows)


def test_heat_is_noise_in_one_row_alone(model):
    """Its draws are those of the row without padding; the given state stays as it was."""
    state = two_rows(model)
    before = copied(state)
    hot, generator = heated(state, 1, NOISE, 2, draws()), draws()
    unchanged(state, before)
    assert hot.length == state.length
    for old, new in zip(state.caches, hot.caches, strict=True):
        assert new.length == old.length
        start = max(0, int(state.padding[1]) - (state.length - old.length))
        expected = noisy_cache(
            old.keys[1, :, start:], old.values[1, :, start:], NOISE, 0, generator
        )
        for name, want in zip(("keys", "values"), expected, strict=True):
            a, b = getattr(old, name), getattr(new, name)
            assert torch.equal(b[1, :, start:], want)
            assert torch.equal(b[0], a[0])
            assert torch.equal(b[1, :, :start], a[1, :, :start])
            assert not torch.equal(b[1], a[1])
    read(model, [[44], [44]], hot)
    read(model, [[45], [45]], hot)
    unchanged(state, before)


def test_heat_has_the_scale_of_each_tensor(tiny_model):
    model = tiny_model(max_seq_len=400)
    state = read(model, (IDS * 40)[:300], model.init_state()).state
    hot = heated(state, 0, CacheNoise(scale=0.1), 0, draws())
    for old, new in zip(state.caches, hot.caches, strict=True):
        for a, b in ((old.keys, new.keys), (old.values, new.values)):
            assert (b - a).std().item() == pytest.approx(0.1 * a.std().item(), rel=0.05)


def test_no_scale_no_change(model):
    state = two_rows(model)
    hot = heated(state, 1, CacheNoise(scale=0.0), 0, draws())
    unchanged(hot, copied(state))
    assert torch.equal(read(model, [[44], [44]], hot).logits, read(model, [[44]] * 2, state).logits)


def test_the_prompt_of_a_padded_row_is_protected(tiny_model):
    """Of five tokens behind three columns of padding, three are prompt."""
    model = tiny_model(stages=FULL, max_seq_len=24)
    state = two_rows(model)
    hot = heated(state, 1, CacheNoise(scale=0.5, protect_prompt=True), 3, draws())
    for old, new in zip(state.caches, hot.caches, strict=True):
        changed = (old.keys[1] != new.keys[1]).any(-1).any(0).tolist()
        assert changed == [False] * 6 + [True] * 2


def test_a_window_keeps_what_it_keeps_of_the_prompt(tiny_model):
    """The caches hold the newest tokens; those of the prompt among them stay as they are."""
    model = tiny_model(stages=FULL, attention_window=3)
    state = read(model, IDS, model.init_state()).state
    noise = CacheNoise(scale=0.5, protect_prompt=True)
    held = state.caches[0].length
    assert held < len(IDS)
    for num_prompt in (6, 7, 8, 20):
        hot = heated(state, 0, noise, num_prompt, draws())
        changed = (state.caches[0].keys[0] != hot.caches[0].keys[0]).any(-1).any(0).tolist()
        protected = min(held, max(0, num_prompt - (len(IDS) - held)))
        assert changed == [False] * protected + [True] * (held - protected)


def test_a_window_counts_the_prompt_from_behind_the_padding(tiny_model):
    """Two columns of padding, eight tokens: the cache holds the last ones."""
    model = tiny_model(stages=FULL, attention_window=3)
    state = read(model, IDS, padded(model.init_state(), 2)).state
    held = state.caches[0].length
    assert held < len(IDS)
    for num_prompt in (6, 7, 8):
        noise = CacheNoise(scale=0.5, protect_prompt=True)
        hot = heated(state, 0, noise, num_prompt, draws())
        changed = (state.caches[0].keys[0] != hot.caches[0].keys[0]).any(-1).any(0).tolist()
        protected = max(0, num_prompt - (len(IDS) - held))
        assert changed == [False] * protected + [True] * (held - protected)
