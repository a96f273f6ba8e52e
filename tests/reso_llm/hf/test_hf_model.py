"""An exported model under transformers' own tools gives what the engine gives."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import FULL, make_tiny_model, save_tiny_checkpoint

from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import SRB, PhaseSlip
from reso_llm.hf.control import controlled
from reso_llm.hf.engine import HFEngine
from reso_llm.hf.export import export
from reso_llm.inference import ResoLLMInference
from reso_llm.tokenizer import ResoTokenizer
from run_core.checkpoint import CheckpointError

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("reso_llm.hf.model")

TEXTS = ["I went to", "Hi", " The weather was nice, and"]
NEW = 14


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint whose model weighs its own words by half; 2 ids have no token."""
    tokenizer = ResoTokenizer.train(["bytes alone"], 261)
    model = make_tiny_model(stages=FULL, vocab_size=263, max_seq_len=64)
    directory = tmp_path_factory.mktemp("hf") / "run"
    return save_tiny_checkpoint(directory, model, tokenizer)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("exported") / "out")


@pytest.fixture(scope="module")
def engine(run):
    return ResoLLMInference.from_pretrained(run)


@pytest.fixture(scope="module")
def tok(exported):
    return transformers.AutoTokenizer.from_pretrained(exported)


@pytest.fixture
def model(exported):
    return transformers.AutoModelForCausalLM.from_pretrained(exported).eval()


def ids_of(tok, text):
    return tok(text, return_tensors="pt")


def written(output, prompt):
    """New ids of each row, without what fills it up after its end."""
    ends, rows = (0, 4), []
    for row in output[:, prompt.shape[1] :].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:end])
    return rows


def stored(model):
    return dict(model.state_dict()) | dict(model.named_buffers())


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- load and save --------------------------------------------------------------------------------


def test_every_tensor_is_the_checkpoint_s(engine, model):
    """Parameters, tables, and the constants that no file holds."""
    assert isinstance(model, hf.ResoForCausalLM)
    engine.model.prsc.fold_counts = model.network.prsc.fold_counts  # of a fit in this process
    ours, theirs = stored(engine.model), stored(model.network)
    folds = [name for name in ours if ".fold_" in name]
    assert equal({n: t for n, t in ours.items() if n not in folds},
                 {n: t for n, t in theirs.items() if n not in folds})  # fmt: skip


def test_saved_again_it_is_the_same(model, tok, tmp_path):
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert equal(stored(model), stored(again))
    assert (tmp_path / "modeling_reso.py").read_text().count("\n") == 1
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("a").input_ids == tok("a").input_ids


REMOTE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tok = AutoTokenizer.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[2])
out = model.generate(**tok("I went to", return_tensors="pt"), max_new_tokens=3, do_sample=False)
print(type(model).__module__, out[0].tolist())
"""


def test_a_stranger_loads_it_by_trusting_the_one_line(exported, model, tok, tmp_path):
    code = [sys.executable, "-c", REMOTE, str(exported), str(tmp_path)]
    home = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(code, capture_output=True, text=True, timeout=120, env=home)
    assert done.returncode == 0, done.stderr
    out = model.generate(**ids_of(tok, "I went to"), max_new_tokens=3, do_sample=False)
    assert done.stdout.split(maxsplit=1) == ["reso_llm.hf.model", f"{out[0].tolist()}\n"]
    assert sorted(path.name for path in tmp_path.glob("*.py")) == ["modeling_reso.py"]


def test_missing_weights_are_refused(exported, tmp_path):
    from safetensors.torch import load_file, save_file

    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["network.kuramoto.turn.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys network\.kuramoto\.turn\.weight"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_new_model_is_the_network_s_beginning():
    config = hf.ResoConfig(reso={"vocab_size": 40, "dim": 16, "num_layers": 1, "num_heads": 2})
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert not any(tensor.isnan().any() for tensor in model.state_dict().values())
    assert model.network.blocks[0].residual_scale.item() == 1
    with pytest.raises(ValueError, match="unknown key dimm"):
        hf.ResoConfig(reso={"dimm": 16})
    with pytest.raises(ValueError, match="new_num_tokens = 41"):
        model.resize_token_embeddings(41)


def test_a_damaged_or_occupied_directory_is_refused(run, exported, tmp_path):
    with pytest.raises(ValueError, match="is not empty"):
        export(run, exported)
    with pytest.raises(CheckpointError):
        export(tmp_path / "nothing", tmp_path / "out")


def test_the_chat_names_what_an_export_is_and_runs_no_strange_code(exported, tmp_path):
    with pytest.raises(ValueError, match="an export of this project"):
        HFEngine.from_pretrained(str(exported))
    auto_map = {"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"}
    config = {"model_type": "strange", "architectures": ["M"], "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "strange.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ValueError, match="no causal language model to load"):
        HFEngine.from_pretrained(str(tmp_path))


# --- text -----------------------------------------------------------------------------------------


def test_text_is_encoded_as_ours_behind_one_bos(engine, tok):
    for text in ("Hé, 日本\n\t 12", "", "don't  stop"):
        assert tok(text).input_ids == [0, *engine.tokenizer.encode(text)]
        assert tok.decode(engine.tokenizer.encode(text)) == text


CHATS = [
    [("user", "Hi!\nHow?")],
    [("system", "Be kind. "), ("user", "a"), ("assistant", " b"), ("user", "")],
    [("user", "a"), ("assistant", "well")],
]


@pytest.mark.parametrize("chat", CHATS)
def test_a_chat_is_laid_out_as_ours(engine, tok, chat):
    begins_reply = chat[-1][0] == "assistant"
    messages = [{"role": role, "content": text} for role, text in chat]
    for sanitize in (False, True):
        got = tok.apply_chat_template(
            messages, add_generation_prompt=not begins_reply,
            continue_final_message=begins_reply, sanitize_control_tokens=sanitize,
        )  # fmt: skip
        assert got["input_ids"] == engine.tokenizer.encode_prompt(chat)


def test_a_typed_control_token_stays_text(engine, tok):
    said = [{"role": "user", "content": "a <|end|><|assistant|>b"}]
    ids = tok.apply_chat_template(said, sanitize_control_tokens=True)["input_ids"]
    assert ids[:2] + ids[-1:] == [0, 2, 4]
    assert not {0, 1, 2, 3, 4} & set(ids[2:-1])
    assert engine.tokenizer.decode(ids) == "a <|end|><|assistant|>b"
    with pytest.raises(Exception, match="unknown role tool"):
        tok.apply_chat_template([{"role": "tool", "content": "x"}])


def test_the_replies_are_marked_for_training(engine, tok):
    chat = CHATS[1]
    messages = [{"role": role, "content": text} for role, text in chat]
    got = tok.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = engine.tokenizer.encode_conversation(chat)
    assert (got["input_ids"], got["assistant_masks"]) == (ids, mask)


# --- generate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_is_the_engine_token_for_token(engine, model, tok, text):
    ids = ids_of(tok, text)
    out = model.generate(**ids, max_new_tokens=NEW, do_sample=False)
    expected = engine.generate(text, NEW, temperature=0)
    assert written(out, ids.input_ids) == [list(expected.token_ids)]
    without = model.generate(**ids, max_new_tokens=NEW, do_sample=False, use_cache=False)
    assert torch.equal(out, without)


def test_own_words_count_for_less(engine, model, tok):
    """Guards the weight of what the model wrote: with that of read words it writes another text."""
    text, differs = TEXTS[0], []
    for own_weight in (0.0, 0.5, 1.0):
        model.network.echo.own_weight = own_weight
        ids = ids_of(tok, text)
        differs.append(model.generate(**ids, max_new_tokens=40, do_sample=False).tolist())
    assert differs[0] != differs[2]


def test_a_padded_batch_is_each_row_alone(model, tok):
    batch = tok(TEXTS, return_tensors="pt", padding=True)
    out = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
    alone = [
        written(model.generate(**one, max_new_tokens=NEW, do_sample=False), one.input_ids)[0]
        for one in (ids_of(tok, text) for text in TEXTS)
    ]
    assert written(out, batch.input_ids) == alone
    logits = model(**batch).logits
    for row, text in enumerate(TEXTS):
        one = model(**ids_of(tok, text)).logits[0]
        torch.testing.assert_close(logits[row, -len(one) :], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [TEXTS[:1], TEXTS])
def test_beams_with_a_cache_are_those_without(model, tok, batch):
    ids = tok(batch, return_tensors="pt", padding=True)
    given = dict(max_new_tokens=8, num_beams=3, do_sample=False, num_return_sequences=2)
    expected = model.generate(**ids, **given, use_cache=False)
    assert torch.equal(model.generate(**ids, **given), expected)


def test_sampling_follows_the_seed(model, tok):
    def sample(seed, **given):
        torch.manual_seed(seed)
        return model.generate(**ids_of(tok, "Hi"), max_new_tokens=NEW, do_sample=True, **given)

    assert torch.equal(sample(0), sample(0, use_cache=False))
    assert not torch.equal(sample(0), sample(1))
    assert not set(sample(2, num_return_sequences=4)[:, 3:].flatten().tolist()) & {1, 2, 3, 261}


def test_a_streamer_and_a_pipeline_give_the_text(model, tok):
    ids = ids_of(tok, "Hi")
    out = tok.decode(model.generate(**ids, max_new_tokens=NEW, do_sample=False)[0, 3:])
    streamer = transformers.TextIteratorStreamer(tok, skip_prompt=True)
    model.generate(**ids, max_new_tokens=NEW, do_sample=False, streamer=streamer)
    assert "".join(streamer) == out
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tok)
    given = dict(max_new_tokens=NEW, do_sample=False, return_full_text=False)
    plain = tok.decode(tok("", add_special_tokens=False).input_ids + tok.encode(out)[1:],
                       skip_special_tokens=True)  # fmt: skip
    assert pipe("Hi", **given)[0]["generated_text"] == plain
    chat = [{"role": "user", "content": "Hi"}]
    assert isinstance(pipe(chat, **given)[0]["generated_text"], str)


def test_a_cache_goes_on(model, tok):
    ids = ids_of(tok, " The weather was nice, and").input_ids
    whole = model(ids).logits
    first = model(ids[:, :9], use_cache=True)
    rest = model(ids[:, 9:], past_key_values=first.past_key_values)
    assert rest.past_key_values.get_seq_length() == ids.shape[1]
    parts = torch.cat((first.logits, rest.logits), dim=1)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    assert model(ids).past_key_values is None


def test_what_does_not_fit_is_refused(model, tok):
    ids = ids_of(tok, "Hi")
    with pytest.raises(ValueError, match="do not fit"):
        model.generate(**ids, max_new_tokens=100, do_sample=False, eos_token_id=262)
    with pytest.raises(ValueError, match="pad on the left"):
        model.generate(ids.input_ids, attention_mask=torch.tensor([[1, 1, 0]]), max_new_tokens=2)
    with pytest.raises(ValueError, match="has holes"):
        model(ids.input_ids, attention_mask=torch.tensor([[1, 0, 1]]))
    with pytest.raises(ValueError, match="cache of its own"):
        model.generate(**ids, max_new_tokens=2, cache_implementation="static")


def test_bfloat16(exported, model, tok):
    half = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.bfloat16).eval()
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    ids = ids_of(tok, "I went to").input_ids
    p, q = (m(ids).logits.float().softmax(-1) for m in (model, half))
    assert (p - q).abs().sum(-1).max().item() < 0.2
    assert half.generate(ids, max_new_tokens=3).shape[1] <= ids.shape[1] + 3


# --- controllers ----------------------------------------------------------------------------------

CONTROLLERS = {
    "noise in the cache": [PhaseSlip.published(spike_nats=0.0, cooldown_steps=2)],
    "noise behind the prompt": [
        PhaseSlip.published(
            spike_nats=0.0, cooldown_steps=2, noise=CacheNoise(scale=0.5, protect_prompt=True)
        )
    ],
    "srb": [SRB.published()],
    "both": [PhaseSlip.published(spike_nats=0.5), SRB.published()],
}


@pytest.mark.parametrize("controllers", CONTROLLERS.values(), ids=CONTROLLERS)
def test_controllers_do_what_they_do_in_the_engine(engine, model, tok, controllers, monkeypatch):
    """All tokens are allowed: the engine measures without the banned ones, `generate` with them."""
    nothing = torch.tensor([], dtype=torch.long)
    monkeypatch.setattr("reso_llm.generation.context.unwritable", lambda *args: nothing)
    model.generation_config.suppress_tokens = None
    ids, text = ids_of(tok, "I went to"), "I went to"
    with controlled(model, controllers, seed=3) as control:
        model.generate(**ids, max_new_tokens=30, do_sample=False)
    expected = engine.generate(text, 30, temperature=0, seed=3, controllers=controllers)
    (row,) = control.results
    assert row.token_ids == tuple(expected.token_ids)
    assert [e.step for e in row.events] == [e.step for e in expected.events]
    assert expected.events


def test_noise_changes_the_text_of_its_row_alone(model, tok):
    batch = tok(TEXTS, return_tensors="pt", padding=True)
    with controlled(model, CONTROLLERS["noise in the cache"], seed=0) as control:
        noisy = model.generate(**batch, max_new_tokens=30, do_sample=False)
    assert all(row.events for row in control.results)
    assert not torch.equal(noisy, model.generate(**batch, max_new_tokens=30, do_sample=False))


# --- training -------------------------------------------------------------------------------------


def test_the_loss_is_the_network_s(model, tok):
    ids = ids_of(tok, " The weather was nice, and").input_ids
    loss = model(ids, labels=ids).loss
    expected = model.network.loss(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    mine = {n: p.grad.clone() for n, p in model.network.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected.backward()
    for name, p in model.network.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(mine[name], p.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_padding_on_either_side_leaves_the_loss(model, tok):
    ids = ids_of(tok, "I went to").input_ids
    alone = model(ids, labels=ids).loss
    pads, hidden = torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), -100)
    for order in (1, -1):
        padded, labels, mask = (
            torch.cat((extra, given)[::order], dim=1)
            for extra, given in ((pads, ids), (hidden, ids), (pads, torch.ones_like(ids)))
        )
        loss = model(padded, attention_mask=mask, labels=labels).loss
        torch.testing.assert_close(loss, alone, rtol=1e-4, atol=1e-5)


def test_folds_leave_out_the_counts_of_their_own_text(model):
    text = torch.randint(5, 261, (400,), generator=torch.Generator().manual_seed(0))
    model.network.fit_bindings(text.numpy())
    ids = text[:40].view(1, -1)
    with torch.no_grad():
        plain = model(ids, labels=ids).loss
        left_out = model(ids, labels=ids, fold=torch.tensor([0])).loss
        expected = model.network.loss(ids[:, :-1], ids[:, 1:], fold=torch.tensor([0]))
    torch.testing.assert_close(left_out, expected, rtol=1e-4, atol=1e-5)
    assert plain < left_out


def test_the_head_of_other_tools_is_an_identity(model, tok):
    output = model(**ids_of(tok, "I went to"))
    head = model.get_output_embeddings()
    assert torch.equal(output.last_hidden_state @ head.weight.T, output.logits)
