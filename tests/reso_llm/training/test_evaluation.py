"""Scores against a naive scorer: one document, one pass, one token at a time."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import FULL

from reso_llm.data.token_cache import Split
from reso_llm.model import ResoLLMModel
from reso_llm.stages.echo import EchoState, TextCounts
from reso_llm.training.evaluation import (
    LanguageModelScore,
    head_of,
    nats_by_position,
    score_split,
    scored_nats,
)

VOCABULARY = 61


def make_split(lengths, seed=0, num_bytes=1000, low=5):
    """Documents of these many tokens each, the first of each being <|bos|> = 0.

    The others are ids from `low` on: the fewer, the more contexts come again.
    """
    generator = np.random.default_rng(seed)
    documents = [[0, *generator.integers(low, VOCABULARY, n - 1)] for n in lengths]
    tokens = np.array([token for document in documents for token in document], dtype=np.uint16)
    starts = np.cumsum([0, *lengths[:-1]])
    return Split(
        tokens, np.ones(len(tokens), np.uint8), starts, len(tokens), num_bytes, len(lengths)
    )


def documents_of(split):
    return [d.astype(np.int64) for d in np.split(split.tokens, split.doc_starts[1:])]


@torch.no_grad()
def nats_reference(model, split):
    """Every token after <|bos|>, each given everything before it in its document."""
    total, count = 0.0, 0
    for document in documents_of(split):
        for t in range(1, len(document)):
            logits = model(torch.tensor(document[None, :t])).logits[0, -1].double()
            total -= logits.log_softmax(-1)[document[t]].item()
            count += 1
    return total, count


@torch.no_grad()
def strided_nats_reference(model, split, context, stride, stateful):
    """Windows by their definition: after the first, each scores `stride` new tokens at its end.

    In the stateful protocol a window begins with a state whose tail and echo have read the
    document before it.
    """
    total = 0.0
    for document in documents_of(split):
        scored = 0
        while scored < len(document) - 1:
            end = min(len(document) - 1, scored + (stride if scored else context))
            begin = max(0, end - context)
            before = document[:begin].tolist() if stateful else []
            logits = model(torch.tensor(document[None, begin:end]), after(model, before)).logits
            log_p = logits[0].log_softmax(-1)
            for t in range(scored + 1, end + 1):
                total -= log_p[t - 1 - begin, document[t]].item()
            scored = end
    return total


def after(model, ids):
    """An empty state but for the newest ids and the echo, which have read these."""
    size = model.tail_length
    tail = torch.tensor([[*[-1] * size, *ids][-size:]])
    counts = TextCounts.empty(model.echo.max_order)
    for token in ids:
        counts = counts.read(token)
    return model.init_state()._replace(tail=tail).with_stage("echo", EchoState((counts,)))


# --- score_split --------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[13], [2, 13, 5, 7, 2], [3] * 40])
@pytest.mark.parametrize("stride", [None, 1, 12])
def test_documents_within_the_context_are_scored_with_all_they_have(tiny_model, lengths, stride):
    """Guards leaks between documents of a batch, padding, and targets off by one."""
    model, split = tiny_model(stages=FULL), make_split(lengths)
    score = score_split(model, split, stride=stride)
    nats, count = nats_reference(model, split)
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.tokens == count == len(split.tokens) - len(lengths)
    assert (score.bytes, score.documents) == (1000, len(lengths))


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize("stride", [1, 5, 6, 12])
def test_longer_documents_are_scored_in_strided_windows(tiny_model, stride, stateful):
    model, split = tiny_model(stages=FULL), make_split([40, 2, 13, 14, 25], low=45)
    score = score_split(model, split, stride=stride, stateful=stateful)
    assert score.tokens == len(split.tokens) - 5, "every token once"
    expected = strided_nats_reference(model, split, 12, stride, stateful)
    assert score.nats == pytest.approx(expected, rel=1e-5)
    other = strided_nats_reference(model, split, 12, stride, not stateful)
    assert abs(score.nats - other) > 1e-2, "the protocols differ"
    nats, _ = nats_by_position(model, split, stride=stride, stateful=stateful)
    assert nats.sum() == pytest.approx(expected, rel=1e-5)


def test_the_stateful_protocol_is_the_default(tiny_model):
    model, split = tiny_model(stages=FULL), make_split([40, 25], low=45)
    assert score_split(model, split) == score_split(model, split, stateful=True)
    assert score_split(model, split).nats != score_split(model, split, stateful=False).nats


def test_a_reader_of_a_text_that_says_itself_again_knows_more(tiny_config):
    """The period is longer than the context, so that no window sees it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResoLLMModel(tiny_config(("echo",)))
    once = make_split([31]).tokens
    tokens = np.concatenate((once[:1], *[once[1:]] * 5))
    split = Split(tokens, np.ones_like(tokens, np.uint8), np.array([0]), len(tokens), 1000, 1)
    stateful, windowed = (score_split(model, split, stateful=s) for s in (True, False))
    assert stateful.tokens == windowed.tokens
    assert stateful.nats < 0.6 * windowed.nats


def test_nats_of_each_target_add_up_to_the_score(tiny_model):
    model, split, total = tiny_model(stages=FULL), make_split([40, 2, 13]), 0.0
    for nats, scored in scored_nats(model, split, stride=5):
        assert nats.shape == scored.shape
        assert torch.isfinite(nats[scored]).all()
        total += nats[scored].sum().item()
    assert total == pytest.approx(score_split(model, split, stride=5).nats, rel=1e-6)


def test_stride_is_half_the_context_unless_given(tiny_model):
    model, split = tiny_model(stages=FULL), make_split([40, 31])
    assert score_split(model, split) == score_split(model, split, stride=6)
    assert score_split(model, split).nats != score_split(model, split, stride=12).nats


@pytest.mark.parametrize("stride", [0, -1, 13])
def test_an_impossible_stride_is_refused(tiny_model, stride):
    with pytest.raises(ValueError, match="stride"):
        score_split(tiny_model(stages=FULL), make_split([20]), stride=stride)


def test_a_uniform_model_pays_the_logarithm_of_the_vocabulary(tiny_model):
    model = tiny_model(tie_embeddings=False)
    with torch.no_grad():
        model.head.weight.zero_()
    score = score_split(model, make_split([9, 30]))
    assert score.nats_per_token == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert score.perplexity == pytest.approx(VOCABULARY, rel=1e-5)


def test_progress_adds_up(tiny_model):
    told = []
    split = make_split([20] * 30)
    score = score_split(tiny_model(stages=FULL), split, progress=told.append)
    assert len(told) > 1
    assert sum(told) == score.tokens


@pytest.mark.parametrize("training", [True, False])
def test_scoring_is_without_dropout_and_leaves_the_mode(tiny_model, training):
    model, split = tiny_model(stages=FULL, dropout=0.5).train(training), make_split([12] * 3)
    state = torch.get_rng_state()
    score = score_split(model, split)
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)
    assert score == score_split(tiny_model(stages=FULL), split)


def test_the_mode_is_left_when_scoring_is_interrupted(tiny_model):
    """Ctrl-C in a validation saves a model that goes on training."""

    def interrupt(tokens):
        raise KeyboardInterrupt

    model = tiny_model(stages=FULL).train()
    with pytest.raises(KeyboardInterrupt):
        score_split(model, make_split([12]), progress=interrupt)
    assert model.training


# --- nats_by_position ---------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [None, 1, 12])
def test_the_sum_over_places_is_the_score(tiny_model, stride):
    model, split = tiny_model(stages=FULL), make_split([40, 2, 13, 14, 25])
    told = []
    nats, tokens = nats_by_position(model, split, stride=stride, progress=told.append)
    score = score_split(model, split, stride=stride)
    assert nats.shape == tokens.shape == (12,)
    assert nats.sum() == pytest.approx(score.nats, rel=1e-5)
    assert tokens.sum() == sum(told) == score.tokens


def test_a_place_counts_the_tokens_its_window_shows(tiny_model):
    """Place t of a document that fits is what the model says after reading t + 1 tokens of it."""
    model, split = tiny_model(stages=FULL), make_split([12, 3])
    nats, tokens = nats_by_position(model, split)
    assert tokens.tolist() == [2, 2] + [1] * 9 + [0]
    document = documents_of(split)[0]
    for t in range(2, 11):
        with torch.no_grad():
            logits = model(torch.tensor(document[None, : t + 1])).logits[0, -1].double()
        expected = -logits.log_softmax(-1)[document[t + 1]].item()
        assert nats[t] == pytest.approx(expected, rel=1e-4)


def test_scoring_by_place_leaves_the_mode(tiny_model):
    model, split = tiny_model(stages=FULL, dropout=0.5).train(), make_split([12] * 3)
    nats, _ = nats_by_position(model, split)
    assert model.training
    assert nats.sum() == pytest.approx(score_split(model, split).nats, rel=1e-5)


# --- arithmetic ---------------------------------------------------------------------------------


def test_measures_by_hand():
    """8 tokens of 2 bits each over 4 bytes: 4 bits per byte."""
    score = LanguageModelScore(nats=16 * math.log(2), tokens=8, bytes=4, documents=1)
    assert score.nats_per_token == pytest.approx(2 * math.log(2))
    assert score.bits_per_byte == pytest.approx(4)
    assert score.perplexity == pytest.approx(4)
    assert score.byte_perplexity == pytest.approx(16)
    told = json.loads(json.dumps(score.to_dict(), allow_nan=False))
    assert told.keys() == {
        "nats", "tokens", "bytes", "documents",
        "nats_per_token", "bits_per_byte", "perplexity", "byte_perplexity",
    }  # fmt: skip
    assert told["bits_per_byte"] == pytest.approx(4)


# --- head_of ------------------------------------------------------------------------------------


def test_a_small_split_is_its_own_head():
    split = make_split([5, 5])
    assert head_of(split, 10) is split
    assert head_of(split, 99) is split


@pytest.mark.parametrize("num_tokens", range(1, 30))
def test_the_head_is_a_prefix_that_can_be_scored(tiny_model, num_tokens):
    split = make_split([7, 9, 2, 12], num_bytes=300)
    head = head_of(split, num_tokens)
    assert head.num_tokens == len(head.tokens) == len(head.reply_mask)
    assert head.num_tokens == max(num_tokens, 2)
    assert np.array_equal(head.tokens, split.tokens[: head.num_tokens])
    assert head.num_documents == len(head.doc_starts)
    assert (head.doc_starts < head.num_tokens).all()
    assert head.num_bytes == round(300 * head.num_tokens / 30)
    score = score_split(tiny_model(stages=FULL), head)
    assert score.tokens == head.num_tokens - head.num_documents


def test_the_head_of_whole_documents_scores_like_them(tiny_model):
    model, head = tiny_model(stages=FULL), head_of(make_split([7, 9, 2, 12]), 16)
    assert head.doc_starts.tolist() == [0, 7]
    assert score_split(model, head).nats == pytest.approx(nats_reference(model, head)[0], rel=1e-5)
