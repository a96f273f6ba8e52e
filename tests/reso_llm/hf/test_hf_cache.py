"""Noise in the caches of Hugging Face's `generate`: its scale, its place, and when it comes."""

import pytest
import torch
from tiny_hf import (
    IDS,
    MASK,
    NAMES,
    NOTHING,
    PAD,
    SLIPS,
    TINY,
    Script,
    V,
    one_row,
    plain,
    run,
    transformers,
)  # fmt: skip

from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import Decision, PhaseSlip
from reso_llm.hf import rows
from reso_llm.hf.cache import add_noise, kv_layers, left_padding


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_noise_in_the_cache_changes_what_follows_and_not_its_length(name, cache):
    model = TINY[name]
    noise = Decision("heat", cache_noise=CacheNoise(scale=1.0))
    given = dict(cache_implementation=cache, return_dict_in_generate=True, output_logits=True)
    given |= dict(eos_token_id=V - 1)
    clean = plain(model, **given)
    out, results = run(model, [one_row(Script({2: noise}), 0)], **given)
    assert int(out.past_key_values.get_seq_length()) == out.sequences.shape[1] - 1
    old, new = torch.stack(clean.logits, 1), torch.stack(out.logits, 1)
    torch.testing.assert_close(new[:, :3], old[:, :3], rtol=0, atol=0)
    torch.testing.assert_close(new[1:], old[1:], rtol=0, atol=0)
    assert (new[0, 3] - old[0, 3]).abs().max() > 0.01
    assert [e[0] for e in results[0].events] == [2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("protect", [False, True])
def test_noise_has_its_scale_and_place(name, static, protect):
    """Guards padding and unused slots that get noise or enter the deviation."""
    model, pads = TINY[name], 4
    text = torch.cat((torch.full((2, pads), PAD), torch.arange(2 * 26).view(2, 26) % 30), 1)
    for length in (9, 30):  # below and above the window of Mistral
        ids = text[:, :length]
        mask = (ids != PAD).long()
        make_cache = transformers.StaticCache if static else transformers.DynamicCache
        cache = make_cache(config=model.config, **(dict(max_cache_len=36) if static else {}))
        with torch.no_grad():
            model(ids, attention_mask=mask, past_key_values=cache)
        before = [(x.values.clone(), x.keys.clone()) for x in kv_layers(cache)]
        generator, twin = (torch.Generator().manual_seed(0) for _ in range(2))
        add_noise(cache, 0, CacheNoise(scale=0.1, protect_prompt=protect), pads, 3, generator)
        for layer, olds in zip(kv_layers(cache), before, strict=True):
            for x, old in zip((layer.values, layer.keys), olds, strict=True):
                held = min(length, x.shape[2])
                real = old[0, :, max(pads - (length - held), 0) : held]
                first = held - (3 if protect else real.shape[1])
                xi = torch.randn(old[0, :, first:held].shape, generator=twin)
                expected = old.clone()
                expected[0, :, first:held] += 0.1 * real.std(correction=0) * xi
                torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("protect", [False, True])
def test_noise_in_generate_comes_once_and_stays(name, protect):
    """The values of the first layer depend on their own token only, so they show where noise is."""
    model, step, row = TINY[name], 3, 0
    noise = Decision("heat", cache_noise=CacheNoise(scale=0.5, protect_prompt=protect))
    given = dict(eos_token_id=V - 1, return_dict_in_generate=True)
    out, _ = run(model, [one_row(Script({step: noise}), row)], **given)
    ids = out.sequences[:, :-1]
    mask = torch.cat((MASK, torch.ones(3, ids.shape[1] - IDS.shape[1], dtype=torch.long)), 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        clean = model(ids, attention_mask=mask, position_ids=positions).past_key_values
    difference = out.past_key_values.layers[0].values - clean.layers[0].values
    start, end = IDS.shape[1] if protect else 2, IDS.shape[1] + step
    assert (difference[row, :, start:end].abs().amax((0, 2)) > 0.05).all()
    difference[row, :, start:end] = 0
    assert difference.abs().max() < 1e-5


def test_noise_out_of_reach_is_an_error_and_not_silent():
    model = TINY["gpt2"]
    for controller in (SLIPS, NOTHING):  # before the first slip, too
        with pytest.raises(ValueError, match="NoneType"):
            run(model, [controller], use_cache=False)
    late = Script({1: Decision("heat", cache_noise=CacheNoise())})
    with pytest.raises(ValueError, match="NoneType"):
        run(model, [late], use_cache=False)
    with pytest.raises(ValueError, match="offloaded"):
        kv_layers(filled(transformers.DynamicCache, offloading=True, layers=2))
    run(model, [PhaseSlip.published(noise=CacheNoise(scale=0))], use_cache=False)
    strange = filled(transformers.DynamicCache, layers=1)
    strange.layers.append(type("QuantizedLayer", (type(strange.layers[0]),), {})())
    strange.layers[-1].is_initialized = True
    with pytest.raises(ValueError, match="QuantizedLayer"):
        kv_layers(strange)


def filled(kind, layers, offloading=False):
    cache = kind()
    for i in range(layers):
        cache.update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), i)
    cache.offloading = offloading
    return cache


def test_masks():
    assert left_padding(None, 2) == [0, 0]
    assert left_padding(MASK, 3) == [2, 0, 1]
    with pytest.raises(ValueError, match="holes"):
        left_padding(torch.tensor([[1, 0, 1]]), 1)


def test_a_row_that_has_ended_gets_no_more_noise(monkeypatch):
    noise, added = CacheNoise(scale=0.5), []
    monkeypatch.setattr(rows, "add_noise", lambda cache, i, *args: added.append(i))
    stop = Decision("settled", cache_noise=noise, stop=True)
    run(TINY["gpt2"], [one_row(Script({3: stop}), 1)], eos_token_id=V - 1)
    assert added == [1]
