"""A chat's later turns read what is new: counted at the model, and equal to reading all anew."""

import itertools

import pytest
import torch
from conftest import FULL

from reso_llm.chat.session import ChatSession
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import PhaseSlip
from reso_llm.generation.prompt_cache import NEWEST, PromptCache
from reso_llm.inference import ResoLLMInference

STAGES = tuple(stage for stage in FULL if stage != "stochastic_resonance")


@pytest.fixture(params=["reso", "hf"])
def engine(request, tiny_model, byte_tokenizer):
    if request.param == "reso":
        model = tiny_model(stages=STAGES, vocab_size=264, max_seq_len=512)
        return ResoLLMInference(model, byte_tokenizer, model.config)
    pytest.importorskip("transformers")
    from tests.reso_llm.hf import tiny_engine  # transformers is there

    return tiny_engine.engine(positions=512)


@pytest.fixture
def widths(engine, monkeypatch):
    """Tokens in each pass over more than one."""
    found, forward = [], type(engine.model).forward

    def counted(self, input_ids=None, *args, **kwargs):
        if input_ids.shape[1] > 1:
            found.append(input_ids.shape[1])
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(engine.model), "forward", counted)
    return found


def said(session, *questions):
    """Results of some turns."""
    return [session.reply(question, lambda text: None).result for question in questions]


def turns(engine, cache=True, **options):
    session = ChatSession(engine, 6, seed=0, **options)
    if not cache:
        session.cache = None
    return session


def sizes(session):
    """Tokens of the prompt of each turn."""
    exchanges = session.exchanges
    prompts = ([*session.system, *_turns(exchanges[:n])] for n in range(len(exchanges)))
    asked = zip(prompts, exchanges, strict=True)
    return [len(session.engine.prompt_ids([*p, ("user", e.question)])) for p, e in asked]


def _turns(exchanges):
    return [turn for exchange in exchanges for turn in exchange.turns]


def assert_same(one, other):
    assert one.token_ids == other.token_ids
    assert one.entropy_trace == pytest.approx(other.entropy_trace, abs=1e-4)
    assert (one.stability, one.events) == (other.stability, other.events)


QUESTIONS = [f"question {n}?" for n in range(10)]


def test_ten_turns_read_each_prompt_from_where_the_one_before_ends(engine, widths):
    session = turns(engine)
    cached = said(session, *QUESTIONS)
    prompts = sizes(session)
    assert widths == [prompts[0], *(b - a for a, b in itertools.pairwise(prompts))]
    assert max(widths[1:]) < prompts[-1] / 4
    assert (session.cache.num_read, session.cache.reused) == (prompts[-1], sum(prompts[:-1]))
    whole = said(turns(engine, cache=False), *QUESTIONS)
    assert sum(widths[10:]) == sum(prompts)
    for one, other in zip(cached, whole, strict=True):
        assert_same(one, other)


def test_a_retry_goes_on_from_the_prompt_before(engine, widths):
    session = turns(engine)
    said(session, *QUESTIONS[:3])
    session.retry(lambda text: None)
    assert widths[-1] == widths[-2]


@pytest.mark.parametrize(
    "controllers", [(), (PhaseSlip.published(spike_nats=0.1, noise=CacheNoise(scale=2.0)),)]
)
def test_noise_in_a_cache_stays_out_of_the_next_turn(engine, controllers):
    options = dict(controllers=controllers, temperature=3.0)
    pairs = (said(turns(engine, c, **options), *QUESTIONS[:4]) for c in (True, False))
    for one, other in zip(*pairs, strict=True):
        assert_same(one, other)


def test_a_goal_and_a_new_text_begin_anew(tiny_model, byte_tokenizer):
    results = []
    for cache in (True, False):
        model = tiny_model(stages=STAGES, vocab_size=264, max_seq_len=512)
        engine = ResoLLMInference(model, byte_tokenizer, model.config)
        session = turns(engine, cache)
        results.append(said(session, *QUESTIONS[:2]))
        session.set_goal("the sea")
        results[-1] += said(session, "and now?")
        engine.update_memory("The sea is red.")
        results[-1] += said(session, "what of the sea?", "and the rest?")
        if cache:
            assert session.cache.reused < sum(sizes(session)[1:])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)


def test_a_full_context_is_cut_as_without_a_cache(tiny_model, byte_tokenizer):
    model = tiny_model(stages=STAGES, vocab_size=264, max_seq_len=64)
    engine = ResoLLMInference(model, byte_tokenizer, model.config)
    pairs = (said(turns(engine, cache), *QUESTIONS) for cache in (True, False))
    for one, other in zip(*pairs, strict=True):
        assert_same(one, other)


# --- the cache alone


def kept(cache, ids, start=None, state=None):
    return cache.keep(start, ids, state, torch.zeros(len(ids), 3))


def test_the_longest_prompt_of_an_equal_start_is_gone_on_from():
    cache = PromptCache()
    for state, ids in enumerate(([1], [1, 2], [1, 3], [1, 2, 4])):
        kept(cache, ids, "goal", state)
    assert cache.before("goal", [1, 2, 4, 5]).state == 3
    assert cache.before("goal", [1, 2, 4]).state == 1  # one token at least is to be read
    assert cache.before("another", [1, 2, 4]) is None
    assert cache.before("goal", [2, 1]) is None


def test_the_oldest_prompts_are_let_go():
    cache = PromptCache()
    for n in range(NEWEST + 1):
        kept(cache, [n])
    assert cache.before(None, [0, 9]) is None
    assert cache.before(None, [1, 9]) is not None


def test_the_last_logits_reach_over_the_prompts_they_were_read_in():
    cache = PromptCache()
    first, second = torch.rand(70, 3), torch.rand(2, 3)
    cache.keep(None, range(70), None, first)
    before = cache.before(None, range(72))
    found = cache.keep(None, range(72), None, second, before)
    assert torch.equal(found, torch.cat((first, second))[-65:])
