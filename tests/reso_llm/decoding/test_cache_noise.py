"""Noise in a key-value cache: how large, where, and from which stream."""

import dataclasses
import math

import pytest
import torch

from reso_llm.decoding.cache_noise import CacheNoise, noisy_cache

H, T, K, PROMPT = 2, 9, 4, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cache(dtype=torch.float32):
    """Keys and values (H,T,K) of different deviations, and of heads that differ a hundredfold."""
    heads = torch.tensor([100.0, 1.0])[:, None, None]
    keys, values = torch.randn(2, H, T, K, generator=generator(1)) * heads
    return (3 * keys + 7).to(dtype), values.to(dtype)


def changed(noise, num_prompt=PROMPT):
    """Tokens of the keys, and of the values, that the noise has moved, in all heads and entries."""
    moved = []
    old = cache()
    for before, after in zip(old, noisy_cache(*old, noise, num_prompt, generator()), strict=True):
        assert after.shape == before.shape
        different = (after != before).transpose(0, 1).flatten(1)  # (T, H K)
        assert (different.all(1) == different.any(1)).all()
        moved.append([t for t in range(T) if different[t].all()])
    return moved


@pytest.mark.parametrize("scale", [0.03, 2.0])
def test_noise_has_the_deviation_of_each_tensor_as_a_whole(scale):
    """One deviation for the tensor, not for each head or entry; the mean does not count."""
    keys, values = cache()
    new_keys, new_values = noisy_cache(keys, values, CacheNoise(scale=scale), PROMPT, generator())
    stream = generator()
    for new, old in ((new_values, values), (new_keys, keys)):
        deviation = math.sqrt(((old - old.mean()) ** 2).mean())
        expected = old + scale * deviation * torch.randn(H, T, K, generator=stream)
        torch.testing.assert_close(new, expected)


def test_noise_in_a_window_has_the_deviation_of_the_whole_tensor():
    """Guards noise that fades where the last tokens happen to be alike."""
    values = torch.cat((cache()[1], torch.ones(H, 2, K)), dim=1)
    _, heated = noisy_cache(values, values, CacheNoise(window=2), PROMPT, generator())
    xi = torch.randn(H, 2, K, generator=generator())
    torch.testing.assert_close(heated[:, -2:] - 1, 0.03 * values.std(correction=0) * xi)


def test_defaults_are_the_published_ones():
    assert dataclasses.astuple(CacheNoise()) == (0.03, False, False, 0)
    assert changed(CacheNoise()) == [list(range(T))] * 2


@pytest.mark.parametrize(
    ("noise", "num_prompt", "keys", "values"),
    [
        (CacheNoise(scale=0), PROMPT, range(0), range(0)),
        (CacheNoise(protect_prompt=True), PROMPT, range(5, 9), range(5, 9)),
        (CacheNoise(protect_prompt=True), 0, range(9), range(9)),
        (CacheNoise(protect_prompt=True), T, range(0), range(0)),  # nothing but prompt yet
        (CacheNoise(protect_prompt=True), T + 3, range(0), range(0)),
        (CacheNoise(window=2), PROMPT, range(7, 9), range(7, 9)),
        (CacheNoise(window=6), PROMPT, range(3, 9), range(3, 9)),
        (CacheNoise(window=50), PROMPT, range(9), range(9)),
        (CacheNoise(window=6, protect_prompt=True), PROMPT, range(5, 9), range(5, 9)),
        (CacheNoise(window=2, protect_prompt=True), PROMPT, range(7, 9), range(7, 9)),
        (CacheNoise(values_only=True), PROMPT, range(0), range(9)),
        (CacheNoise(values_only=True, window=3), PROMPT, range(0), range(6, 9)),
    ],
)
def test_where_the_noise_goes(noise, num_prompt, keys, values):
    assert changed(noise, num_prompt) == [list(keys), list(values)]


def test_the_cache_given_is_not_changed():
    """Guards noise in place: another row, or the next call, may hold the same tensor."""
    keys, values = cache()
    before = keys.clone(), values.clone()
    noisy_cache(keys, values, CacheNoise(window=2), PROMPT, generator())
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


def test_without_effect_no_noise_is_drawn():
    keys, values = cache()
    for noise in (CacheNoise(scale=0), CacheNoise(protect_prompt=True)):
        stream = generator()
        noisy_cache(keys, values, noise, T, stream)
        assert torch.equal(torch.randn(3, generator=stream), torch.randn(3, generator=generator()))


def test_values_get_the_same_noise_with_and_without_the_keys():
    both = noisy_cache(*cache(), CacheNoise(), PROMPT, generator())
    alone = noisy_cache(*cache(), CacheNoise(values_only=True), PROMPT, generator())
    assert torch.equal(both[1], alone[1])


def test_half_precision_stays_and_what_does_not_vary_stays():
    for x in noisy_cache(*cache(torch.bfloat16), CacheNoise(), PROMPT, generator()):
        assert x.dtype == torch.bfloat16
    constant = torch.ones(H, T, K)
    for x in noisy_cache(constant, constant[:1, :1, :1], CacheNoise(), 0, generator()):
        assert (x == 1).all()


@pytest.mark.parametrize(
    ("field", "value"), [("scale", -0.1), ("scale", math.nan), ("scale", math.inf), ("window", -1)]
)
def test_options_out_of_range_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} = "):
        CacheNoise(**{field: value})
