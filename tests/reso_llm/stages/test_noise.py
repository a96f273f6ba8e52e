"""Stochastic resonance: what counts as repetition, and the noise that answers it."""

import pytest
import torch

from reso_llm.stages.noise import (
    MAX_PERIOD,
    MIN_REPEATED,
    TAIL,
    FeedForwardNoise,
    feed_forward_noise,
    repeats,
)

NO_TAIL = torch.full((1, TAIL), -1)


def repeats_reference(text):
    """Whether the end of `text` is one span of a period said again, from the definition."""
    for period in range(1, MAX_PERIOD + 1):
        run = max(MIN_REPEATED, period)
        if len(text) < run + period:
            continue
        pairs = [(text[-i], text[-i - period]) for i in range(1, run + 1)]
        if all(a == b for a, b in pairs):
            return True
    return False


def looping_texts():
    """Random texts over few ids, most of which run into a loop for a while."""
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        start = torch.randint(4, (number % 7,), generator=generator).tolist()
        span = torch.randint(4, (1 + number % 10,), generator=generator).tolist()
        end = torch.randint(4, (3,), generator=generator).tolist()
        yield (start + span * 6)[:40] + end


def test_repetition_is_its_definition():
    """All at once with no tail, and with the text cut anywhere into tail and ids."""
    found = []
    for text in looping_texts():
        expected = [repeats_reference(text[: t + 1]) for t in range(len(text))]
        assert repeats(NO_TAIL, torch.tensor([text]))[0].tolist() == expected
        found += expected
        for cut in (1, 5, len(text) - 1):
            tail = torch.tensor([([-1] * TAIL + text[:cut])[-TAIL:]])
            assert repeats(tail, torch.tensor([text[cut:]]))[0].tolist() == expected[cut:]
    assert 0.2 < sum(found) / len(found) < 0.9


@pytest.mark.parametrize("period", range(1, MAX_PERIOD + 2))
def test_every_period_up_to_the_largest_is_found(period):
    text = torch.arange(period).repeat(30)[:30]
    first = period + max(period, MIN_REPEATED) - 1
    expected = [period <= MAX_PERIOD and t >= first for t in range(30)]
    assert repeats(NO_TAIL, text[None])[0].tolist() == expected


def test_padding_is_no_repetition():
    assert not repeats(NO_TAIL, torch.tensor([[3]])).any()
    assert not repeats(torch.full((1, 2), -1), torch.tensor([[-1] * 9])).any()


def test_rows_repeat_each_for_itself():
    ids = torch.stack((torch.full((12,), 7), torch.arange(12)))
    found = repeats(NO_TAIL.expand(2, -1), ids)
    assert found.any(1).tolist() == [True, False]


def test_no_row_repeats_no_noise():
    generator = torch.Generator().manual_seed(0)
    assert feed_forward_noise(NO_TAIL, torch.arange(12)[None], 0.1, generator) is None
    before = torch.Generator().manual_seed(0).get_state()
    assert torch.equal(generator.get_state(), before), "and nothing is drawn"


def test_the_noise_has_the_stated_size_where_the_text_repeats():
    """Deviation amplitude * rms of the token's own hidden input; exactly 0 elsewhere."""
    ids = torch.cat((torch.arange(4), torch.full((9,), 7)))[None]
    noise = feed_forward_noise(NO_TAIL, ids, 0.3, torch.Generator().manual_seed(0))
    repeating = repeats(NO_TAIL, ids)
    scales = torch.arange(1.0, 14.0).view(1, 13, 1)
    hidden = scales * torch.randn(1, 13, 4000, generator=torch.Generator().manual_seed(1))
    change = noise(hidden) - hidden
    assert not change[~repeating].any()
    size = change[repeating].std(-1) / hidden[repeating].square().mean(-1).sqrt()
    torch.testing.assert_close(size, torch.full_like(size, 0.3), rtol=0.05, atol=0)
    assert change[repeating].mean(-1).abs().max() < 0.3


def test_the_noise_follows_from_the_generator():
    scale, hidden = torch.ones(1, 5, 1), torch.ones(1, 5, 8)

    def drawn(seed):
        return FeedForwardNoise(scale, torch.Generator().manual_seed(seed))(hidden)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.allclose(drawn(0), drawn(1))
    noise = FeedForwardNoise(scale, torch.Generator().manual_seed(0))
    assert not torch.allclose(noise(hidden), noise(hidden)), "every layer draws its own"
