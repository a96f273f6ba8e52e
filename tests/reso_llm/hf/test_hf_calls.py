"""Calls of a controlled `generate`: what it takes and refuses, seeds, results and copies."""

import copy
import math
import pickle

import pytest
import tokenizers
import torch
from tiny_hf import (
    IDS,
    MASK,
    NEW,
    NOTHING,
    PAD,
    SLIPS,
    TINY,
    Script,
    V,
    make,
    plain,
    run,
    transformers,
)  # fmt: skip

from reso_llm.decoding.controllers import SRB, Decision, Deepen, StochasticResonance
from reso_llm.decoding.sampling import SamplingOptions, filter_logits
from reso_llm.hf.control import controlled
from reso_llm.hf.processors import sampling_of

HOT = Script(dict.fromkeys(range(99), Decision("hot", 1.5, full_vocabulary=True)))
ALLOWED = 10  # tokens from this one on are banned


class Ban(transformers.LogitsProcessor):
    """Bans tokens and raises the others, in place or not; counts its calls as a grammar does."""

    def __init__(self, in_place=False):
        self.in_place, self.calls = in_place, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        scores = scores if self.in_place else scores.clone()
        scores += 3
        scores[:, ALLOWED:] = -math.inf
        return scores


# --- processors of the user -----------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("before", [[], ["Temperature", 0.9], ["TopK", 30], ["MinP", 0.01]])
def test_bans_hold_in_forced_draws_wherever_they_stand(before, in_place):
    """Guards bans after a warper, which only acted on the draws of `generate` itself."""
    ban = Ban(in_place)
    kind = [getattr(transformers, f"{before[0]}LogitsWarper")(before[1])] if before else []
    given = dict(do_sample=True, eos_token_id=V - 1, max_new_tokens=55)
    every_other = Script({step: Decision("hot", 1.5, True) for step in range(0, 55, 2)})
    ids, results = run(TINY["gpt2"], [every_other], logits_processor=[*kind, ban], **given)
    assert all(max(row.token_ids) < ALLOWED for row in results)
    assert len(results[0].events) == 28
    assert ban.calls == 55
    assert max(s.entropy_nats for s in results[0].signals) > math.log(ALLOWED)  # of all tokens
    with torch.no_grad():
        log_p = TINY["gpt2"](ids[1:2, :-1]).logits[0, IDS.shape[1] - 1 :].log_softmax(-1)
    surprises = [-float(log_p[t, token]) for t, token in enumerate(results[1].token_ids)]
    assert results[1].surprises_nats == pytest.approx(surprises, abs=1e-3)


def test_a_warper_of_the_user_is_the_sampler_of_a_forced_draw():
    """Temperature 3 alone would leave the greedy path; the user's top-k of 1 keeps it there."""
    model, given = TINY["gpt2"], dict(do_sample=True, eos_token_id=V - 1, temperature=0.7)
    warm = Script(dict.fromkeys(range(12), Decision("warm", 3.0)))
    top_1 = [transformers.TopKLogitsWarper(1)]
    ids, results = run(model, [warm], logits_processor=top_1, **given)
    assert torch.equal(ids, plain(model, eos_token_id=V - 1))
    _, results = run(model, [NOTHING], logits_processor=[transformers.TemperatureLogitsWarper(0.4)])
    assert set(results[0].temperatures) == {0.0}  # greedy
    user = dict(logits_processor=[transformers.TemperatureLogitsWarper(0.4)], do_sample=True)
    _, results = run(model, [NOTHING], **user)
    assert set(results[0].temperatures) == {0.4}


def test_two_warpers_of_a_kind_act_one_after_the_other():
    warpers = [
        transformers.TemperatureLogitsWarper(0.5), transformers.TopKLogitsWarper(9),
        transformers.TopKLogitsWarper(7), transformers.TemperatureLogitsWarper(0.5),
        transformers.MinPLogitsWarper(0.2), transformers.MinPLogitsWarper(0.1),
    ]  # fmt: skip
    options = sampling_of(warpers, do_sample=True)
    assert options == SamplingOptions(temperature=0.25, top_k=7, min_p=0.2)
    assert sampling_of(warpers, do_sample=False) == SamplingOptions(temperature=0)
    scores = logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    for warper in warpers:
        scores = warper(None, scores)
    torch.testing.assert_close(filter_logits(logits, options), scores)


def test_a_watermark_marks_forced_draws_too():
    mark = transformers.WatermarkingConfig(
        bias=50.0, greenlist_ratio=0.5, seeding_scheme="lefthash"
    )
    given = dict(do_sample=True, eos_token_id=V - 1, max_new_tokens=30, watermarking_config=mark)
    ids, _ = run(TINY["gpt2"], [HOT], **given)
    processor = mark.construct_processor(V, "cpu")
    for row in ids:
        for t in range(IDS.shape[1], ids.shape[1]):
            assert row[t] in processor._get_greenlist_ids(row[:t])


# --- arguments ------------------------------------------------------------------------------------


def test_arguments_by_position():
    model, config = TINY["gpt2"], transformers.GenerationConfig(max_new_tokens=6, pad_token_id=PAD)
    stop = transformers.StoppingCriteriaList([lambda ids, scores: ids[:, -1] == 7])
    args = (IDS[1:2], config, transformers.LogitsProcessorList([Ban()]), stop, lambda i, x: [2, 7])
    expected = model.generate(*args)
    with controlled(model, [NOTHING], seed=0) as control:
        assert torch.equal(model.generate(*args), expected)
        with pytest.raises(TypeError, match="multiple values"):
            model.generate(IDS, inputs=IDS)
    assert set(control.results[0].token_ids) <= {2, 7}


def test_stop_strings_need_the_tokenizer_only():
    letters = tokenizers.models.BPE({chr(97 + i): i for i in range(V)}, [])
    backend = tokenizers.Tokenizer(letters)
    backend.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    model = TINY["gpt2"]
    fourth = int(plain(model, eos_token_id=V - 1)[1, IDS.shape[1] + 3])
    given = dict(stop_strings=[chr(97 + fourth)], tokenizer=tokenizer, eos_token_id=V - 1)
    ids, results = run(model, [NOTHING], **given)
    assert torch.equal(ids, plain(model, **given))
    assert results[1].token_ids[-1] == fourth
    assert results[1].stop_reason == "stop"
    config = transformers.GenerationConfig(max_new_tokens=NEW, pad_token_id=PAD, eos_token_id=V - 1)
    config.stop_strings = given["stop_strings"]
    with controlled(model, [NOTHING], seed=0):
        again = model.generate(IDS, config, attention_mask=MASK, tokenizer=tokenizer)
    assert torch.equal(again, ids)


def test_attentions_and_hidden_states_of_a_deepened_text():
    given = dict(output_attentions=True, output_hidden_states=True, return_dict_in_generate=True)
    deepen = Script({1: Decision("deepen", deepen=Deepen(2, 2))})
    model = make("gpt2", _attn_implementation="eager")
    out, results = run(model, [deepen], **given)
    assert len(out.attentions) == len(out.hidden_states) == len(results[0].token_ids)


# --- seeds and results ----------------------------------------------------------------------------


def test_results_are_those_of_every_call_and_each_row_has_its_seed():
    """Best of n: n calls draw what one call with n sequences draws, and then block after block."""
    model, given = TINY["llama"], dict(eos_token_id=V - 1, max_new_tokens=20)
    blocks = []
    for _ in range(2):
        with controlled(model, [HOT], seed=5) as control:
            for _ in range(4):
                model.generate(IDS[1:2], **given)
        blocks.append([row.token_ids for row in control.results])
        assert [row.call for row in control.results] == [0, 1, 2, 3]
    assert blocks[0] == blocks[1]
    assert len(set(blocks[0])) == 4
    with controlled(model, [HOT], seed=5) as control:
        model.generate(IDS[1:2].expand(3, -1), **given)
        model.generate(IDS[1:2], **given)
    assert [row.token_ids for row in control.results] == blocks[0]
    assert [row.call for row in control.results] == [0, 0, 0, 1]


def test_a_call_that_raises_adds_no_results_and_uses_no_seed():
    model, given = TINY["llama"], dict(eos_token_id=V - 1, max_new_tokens=8)

    def broken(ids, scores):
        raise OSError("disk")

    with controlled(model, [HOT], seed=5) as control:
        with pytest.raises(OSError, match="disk"):
            model.generate(IDS[1:2], stopping_criteria=[broken], **given)
        assert control.results == ()
        after = model.generate(IDS[1:2], **given)
    with controlled(model, [HOT], seed=5):
        assert torch.equal(model.generate(IDS[1:2], **given), after)


# --- the model itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_a_copy_made_inside_the_block_is_a_plain_model(copied):
    model = make("gpt2")
    expected = plain(model)
    with controlled(model, [SLIPS], seed=0) as control:
        twin = copied(model)
        assert torch.equal(plain(twin), expected)
        assert control.results == ()
        with controlled(twin, [SLIPS], seed=0) as other:
            plain(twin)
        assert len(other.results) == len(IDS)
        assert not torch.equal(plain(model), expected)
    assert torch.equal(plain(twin), expected)
    assert vars(twin).keys() == vars(model).keys()


def test_the_controlled_generate_shows_the_signature_of_the_original():
    import inspect

    model = TINY["gpt2"]
    expected = inspect.signature(model.generate)
    with controlled(model, [], seed=0):
        assert inspect.signature(model.generate) == expected


# --- what is refused, before the first token ------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_beams=2), "beam"),
        (dict(assistant_model=object()), "assistant_model"),
        (dict(custom_generate=print), "custom_generate"),
        (dict(prompt_lookup_num_tokens=2), "assisted"),
        (dict(cache_implementation="paged"), "cache_implementation = 'paged'"),
        (dict(stop_strings=["x"]), "tokenizer"),
        (dict(do_sample=True, eta_cutoff=0.1), "eta_cutoff"),
        (dict(do_sample=True, epsilon_cutoff=0.1), "epsilon_cutoff"),
        (dict(do_sample=True, top_h=0.5), "top_h"),
        (dict(attention_mask=MASK.flip(1)), "pad on the left"),
    ],
)
def test_what_does_not_work_says_so(kwargs, message):
    model = TINY["llama"]
    with controlled(model, [NOTHING], seed=0) as control:
        with pytest.raises(ValueError, match=message):
            plain(model, **kwargs)
        assert control.results == ()


@pytest.mark.parametrize("controllers", [[], [NOTHING], [SRB.published()], [StochasticResonance()]])
def test_inputs_beside_the_ids_are_refused_at_entry(controllers):
    """Guards a refusal at the first deepening, hundreds of tokens into a text."""
    with pytest.raises(ValueError, match="token_type_ids: "):
        run(TINY["gpt2"], controllers, token_type_ids=IDS)


SMALL = dict(vocab_size=V, hidden_size=16, num_hidden_layers=2, intermediate_size=24)
SMALL_MAMBA = dict(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4)
HEADS = dict(num_attention_heads=2, num_key_value_heads=2)


@pytest.mark.parametrize("controllers", [[], [SRB.published()], [HOT]])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mamba", dict(state_size=4)),
        ("RecurrentGemma", dict(lru_width=16, attention_window_size=8, **HEADS)),
        ("Lfm2", dict(layer_types=["conv", "full_attention"], **HEADS)),
        ("MiniMax", dict(num_local_experts=2, **HEADS)),
    ],
)
def test_recurrent_models_are_refused_at_entry(name, options, controllers):
    config = getattr(transformers, f"{name}Config")(**SMALL, **options)
    with torch.random.fork_rng():
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with pytest.raises(ValueError, match=f"{name}ForCausalLM is recurrent"):
        run(model, controllers, pad_token_id=PAD)


def test_a_model_known_as_recurrent_is_refused_before_any_call():
    with torch.random.fork_rng():
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**SMALL_MAMBA))
    with pytest.raises(ValueError, match="recurrent"), controlled(model, [], seed=0):
        pass


@pytest.mark.parametrize("seed", [None, True, 2.5, math.nan, "5", 2**64])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match=r"^seed = "), controlled(TINY["gpt2"], [], seed=seed):
        pass


def test_encoders_are_refused():
    small = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=V)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**small)).eval()
    with pytest.raises(ValueError, match="encoder-decoder"), controlled(model, [], seed=0):
        pass


def test_more_errors():
    model = make("gpt2")
    with controlled(model, [], seed=0):
        with pytest.raises(ValueError, match="already"), controlled(model, [], seed=0):
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
