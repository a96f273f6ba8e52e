"""The echo in Hugging Face's `generate`: the stage itself, over calls, padding and stored texts."""

from contextlib import nullcontext

import pytest
import torch
from tiny_hf import IDS, TINY, V, transformers

from reso_llm.config import EchoConfig
from reso_llm.hf import EchoProcessor, controlled
from reso_llm.stages.echo import Echo, EchoState, TextCounts


def scores_of(rows):
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(3))


def repeating(rows=2, time=12):
    """Rows in which the newest token has stood before."""
    ids = torch.randint(5, V, (rows, time), generator=torch.Generator().manual_seed(1))
    ids[:, -2:] = ids[:, 2:4]
    return ids


def staged(ids, scores, weights):
    """p' by the stage itself, which reads a whole row token by token."""
    echo, rows = Echo(1, EchoConfig()), []
    for row, own in zip(ids.tolist(), scores, strict=True):
        counts = TextCounts.empty(echo.max_order)
        for token, weight in zip(row[:-1], weights, strict=False):
            counts = counts.read(token, weight)
        state = EchoState((counts,), weights[len(row) - 1])
        newest, x = torch.tensor([[row[-1]]]), torch.zeros(1, 1, 1)
        rows.append(echo(own.view(1, 1, -1), x, newest, state)[0].view(-1))
    return torch.stack(rows).softmax(-1)


@torch.no_grad()
def test_it_is_the_stage_and_counts_own_words_for_less():
    ids, processor = repeating(), EchoProcessor(EchoConfig(own_weight=0.5))
    prompt, weights = 9, [1.0] * 9 + [0.5] * 3
    for time in range(prompt, ids.shape[1] + 1):
        scores = scores_of(2)
        found = processor(ids[:, :time], scores)
        torch.testing.assert_close(found.softmax(-1), staged(ids[:, :time], scores, weights))
    assert (found.softmax(-1) - scores.softmax(-1)).abs().max() > 0.1, "something was echoed"


def test_another_text_starts_anew():
    processor, scores = EchoProcessor(), scores_of(1)
    first = processor(repeating(1), scores)
    assert not torch.equal(first, scores)
    assert torch.equal(processor(torch.tensor([[5, 6, 7]]), scores), scores)
    assert torch.equal(processor(repeating(1), scores), first)


def test_padding_is_not_read():
    ids = repeating(1)
    padded = torch.cat((torch.full((1, 4), 2), ids), dim=1)
    scores = scores_of(1)
    found = EchoProcessor(pad_token_id=2)(padded, scores)
    assert torch.equal(found, EchoProcessor()(ids, scores))


def test_a_token_that_is_ruled_out_stays_so():
    ids, scores = torch.tensor([[5, 6, 7, 5, 6]]), scores_of(1)
    scores[0, 7] = -torch.inf
    assert EchoProcessor()(ids, scores)[0, 7] == -torch.inf, "7 followed 5 6 before"


def test_a_stored_text_is_heard_by_its_weight():
    ids, scores = torch.tensor([[5, 6]]), scores_of(1)
    silent = EchoProcessor()(ids, scores).softmax(-1)
    faint, loud = (
        EchoProcessor(texts=[([9, 5, 6, 7], weight)])(ids, scores).softmax(-1)
        for weight in (0.5, 8.0)
    )
    assert silent[0, 7] < faint[0, 7] < loud[0, 7]


@pytest.mark.parametrize("inside", [False, True])
def test_generate_hears_it_with_and_without_controllers(inside):
    model, ids = TINY["llama"], IDS[1:2]
    stored = [([*ids[0].tolist(), 9], 1e6)]
    processors = transformers.LogitsProcessorList([EchoProcessor(texts=stored)])
    given = dict(max_new_tokens=1, do_sample=False, logits_processor=processors)
    with controlled(model, [], seed=0) if inside else nullcontext():
        out = model.generate(ids, **given)
    assert out[0, -1] == 9, "the stored text went on with 9"
    assert model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1] != 9
