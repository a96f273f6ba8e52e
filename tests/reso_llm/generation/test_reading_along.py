"""The echo in a generation: what each row has read, by what weight, whatever was cut or forked."""

import copy
import pickle

import pytest
import torch
from conftest import FULL

from reso_llm.config import EchoConfig
from reso_llm.generation.context import Context
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.remembered import NOTHING, Memories
from reso_llm.generation.row import TextRow
from reso_llm.generation.states import padded, selected, stacked
from reso_llm.generation.stepper import Stepper
from reso_llm.inference import ResoLLMInference
from reso_llm.stages.echo import EchoState, TextCounts

PROMPT = [0, 70, 71, 72, 70, 71]
OWN = [72, 80, 70, 71, 72, 81, 80, 70, 90, 91, 72, 80, 80, 70, 71, 72, 60, 61, 62, 63]
OWN_WEIGHT = 0.25


@pytest.fixture(params=["stepper", "torch"])
def reader(request, monkeypatch):
    """Both ways in which a context reads."""
    if request.param == "torch":
        monkeypatch.setattr(Stepper, "supports", staticmethod(lambda model: False))
    return request.param


@pytest.fixture
def make_engine(tiny_model, byte_tokenizer):
    def make(**changes):
        settings = dict(stages=FULL, vocab_size=264, max_seq_len=64)
        echo = EchoConfig(max_order=3, own_weight=OWN_WEIGHT)
        model = tiny_model(**(settings | {"echo": echo} | changes))
        model.tokenizer = byte_tokenizer
        return ResoLLMInference(model, byte_tokenizer, model.config)

    return make


@torch.inference_mode()
def written(engine, prompts, words, memories=NOTHING):
    """A context whose rows were all told the same words, and its last prediction."""
    given = dict(seed=0, device=torch.device("cpu"), memories=memories)
    rows = [TextRow(ids, GenerationOptions(), engine.tokenizer, **given) for ids in prompts]
    context = Context(engine.model, engine.tokenizer, rows)
    for token in words:
        context.predict()
        for row in rows:
            row.ids.append(token)
    return context, context.predict().logits


def logs(context):
    """(id, weight) of all that the echo of each row has read."""
    states = context._current().values()
    rows = [counts for state in states for counts in state.stages["echo"].rows]
    return [counts.buffer.log[: counts.length] for counts in rows]


def weighed(prompt, words):
    return [*((t, 1.0) for t in prompt), *((t, OWN_WEIGHT) for t in words)]


@torch.inference_mode()
def logits_reference(engine, read, start, kept):
    """Logits (V,) after ids, by a state whose echo has read (id, weight) pairs one by one.

    The first `start` of the pairs were dropped: the network itself begins with what was kept.
    """
    model, counts = engine.model, TextCounts.empty(3)
    for token, weight in read[:start]:
        counts = counts.read(token, weight)
    state = model.init_state().with_stage("echo", EchoState((counts,)))
    for (token, weight), expected in zip(read[start:], kept, strict=True):
        assert token == expected
        echo = state.stages["echo"]._replace(weight=weight)
        output = model(torch.tensor([[token]]), state.with_stage("echo", echo))
        state = output.state
    logits = output.logits[0, -1]
    t = engine.tokenizer
    return logits.index_fill(0, torch.tensor([1, 2, 3, *range(t.vocab_size, 264)]), -torch.inf)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_own_words_count_less_than_what_was_read(make_engine, reader):
    engine = make_engine()
    context, logits = written(engine, [PROMPT], OWN[:4])
    read = weighed(PROMPT, OWN[:4])
    assert logs(context) == [read]
    close(logits[0], logits_reference(engine, read, 0, PROMPT + OWN[:4]))
    same = logits_reference(engine, [(t, 1.0) for t, _ in read], 0, PROMPT + OWN[:4])
    assert (logits[0] - same).nan_to_num().abs().max() > 1e-2, "the weight is felt"


def test_words_of_weight_0_are_not_heard(make_engine, reader):
    """The counts are those of the prompt alone."""
    engine = make_engine(echo=EchoConfig(max_order=3, own_weight=0.0))
    context, _ = written(engine, [PROMPT], OWN[:9])
    (state,) = context._current().values()
    (counts,) = state.stages["echo"].rows
    followed = {t: dict(e.counts) for t, e in counts.buffer.followers.items()}
    prompt = TextCounts.of_texts([(PROMPT, 1.0)], 3).buffer.followers
    assert followed == {t: dict(e.counts) for t, e in prompt.items()}


@pytest.mark.parametrize("number", [7, 13, 20])
def test_what_a_context_dropped_is_still_known(make_engine, reader, number):
    """Once or twice cut: the dropped tokens as a text apart, then <|bos|> and the newest."""
    engine = make_engine(max_seq_len=12)
    words = [*OWN[: number - 1], 71]  # the prompt had 71
    context, logits = written(engine, [PROMPT], words)
    ids, dropped = PROMPT + words, context.dropped[0]
    assert dropped > len(PROMPT) or number < 13
    every = weighed(PROMPT, words)
    read = [*every[1 : 1 + dropped], (-1, 1.0), every[0], *every[1 + dropped :]]
    assert logs(context) == [read]
    kept = [ids[0], *ids[1 + dropped :]]
    close(logits[0], logits_reference(engine, read, dropped + 1, kept))
    forgotten = logits_reference(engine, read[dropped + 1 :], 0, kept)
    assert (logits[0] - forgotten).nan_to_num().abs().max() > 1e-2, "what was dropped is felt"


def test_a_window_drops_nothing_that_the_echo_read(make_engine, reader):
    engine = make_engine(max_seq_len=12, attention_window=4)
    context, _ = written(engine, [PROMPT], OWN)
    assert logs(context) == [weighed(PROMPT, OWN)]


@pytest.mark.parametrize("number", [5, 20])
def test_rows_of_a_batch_have_read_what_each_would_alone(make_engine, number):
    """The short row is read again when the longest is full, and counts nothing twice."""
    prompts = [PROMPT, [0, 80, 70], [0, 72]]
    engine = make_engine(max_seq_len=16)
    context, logits = written(engine, prompts, OWN[:number])
    together, compared = logs(context), 0
    for row, prompt in enumerate(prompts):
        alone, expected = written(engine, [prompt], OWN[:number])
        if alone.dropped == [context.dropped[row]]:  # a row that is alone may be cut elsewhere
            assert logs(alone) == [together[row]]
            close(logits[row], expected[0])
            compared += 1
        read = sorted(pair for pair in together[row] if pair[0] >= 0)
        assert read == sorted(weighed(prompt, OWN[:number]))
    assert compared > 0


def test_stored_texts_are_read_before_all_else(make_engine, reader):
    engine = make_engine(max_seq_len=12)
    ids = engine.tokenizer.encode("stored")
    context, _ = written(engine, [PROMPT], OWN, Memories(echo=((tuple(ids), 2.0),)))
    assert logs(context)[0][: len(ids) + 1] == [*((t, 2.0) for t in ids), (-1, 2.0)]
    assert logs(context)[0][len(ids) + 1] == (PROMPT[1], 1.0), "the first that was dropped"


# --- values ---------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_saved_state_goes_on_as_the_state_does(make_engine, copied):
    """Also where it went stale: another line went on in its buffer."""
    model = make_engine().model
    state = model(torch.tensor([PROMPT]), model.init_state()).state
    stale, fresh = state, model(torch.tensor([OWN[:4]]), state).state
    for value in (stale, fresh):
        expected = model(torch.tensor([OWN[4:8]]), value).logits
        close(model(torch.tensor([OWN[4:8]]), copied(value)).logits, expected)


@torch.inference_mode()
def test_stacked_and_selected_rows_count_apart(make_engine):
    """Copies of one row share its counts until each goes on with its own words."""
    model = make_engine().model
    rows = [PROMPT, PROMPT[:3]]
    states = [
        model(torch.tensor([ids]), padded(model.init_state(), 6 - len(ids))).state for ids in rows
    ]
    both = stacked(states)
    copies = selected(both, [1] * 3)
    assert [counts.length for counts in both.stages["echo"].rows] == [6, 3]
    words = torch.tensor([[70, 71, 72], [71, 71, 72], [72, 70, 71]])
    output = model(words, copies)
    for i in range(3):
        alone = model(words[i : i + 1], states[1])
        close(output.logits[i], alone.logits[0])
        (counts,) = alone.state.stages["echo"].rows
        mine = output.state.stages["echo"].rows[i]
        assert mine.buffer.log[: mine.length] == counts.buffer.log[: counts.length]
    assert [counts.length for counts in both.stages["echo"].rows] == [6, 3]
    assert model(words[:2], both).state.stages["echo"].rows[1].length == 6
