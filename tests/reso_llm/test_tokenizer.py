"""Tokenizer: lossless, deterministic, and no text can become a control token (FAULTS 23, 24)."""

import json
import logging
import pickle
import random
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_core.primes import first_primes
from reso_llm import tokenizer as module
from reso_llm.tokenizer import ResoTokenizer, StreamDecoder, create_default_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
GUANACO = REPOSITORY.parent / "shared" / "data" / "guanaco_900.jsonl"
SPECIAL = ResoTokenizer.special_tokens
TEXTS = [
    "The reactor hums; the reactor sings, and the tokens ring.",
    "¿Qué es un polinomio? ¡Explícalo!",
    "Что такое временные ряды?",
    "乔·拜登的上一任美国总统是谁？",
    "สวัสดีครับ อ่อ แบบนี้เอง",
    "def f(x):\n    return x + 1\n\n\n",
    "1234567 and 3.14159",
] * 20

no_deadline = settings(max_examples=300, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def tokenizer() -> ResoTokenizer:
    return ResoTokenizer.train(TEXTS, 400)


# -- making one


def test_ids_are_control_tokens_then_bytes_then_merges(tokenizer):
    assert [tokenizer.decode([i], keep_special=True) for i in range(5)] == list(SPECIAL)
    assert {tokenizer.token_bytes(i) for i in range(5, 261)} == {bytes([b]) for b in range(256)}
    assert all(len(tokenizer.token_bytes(i)) > 1 for i in range(261, tokenizer.vocab_size))
    assert tokenizer.vocab_size == 400
    ids = (tokenizer.bos_id, tokenizer.system_id, tokenizer.user_id)
    assert (*ids, tokenizer.assistant_id, tokenizer.end_id) == (0, 1, 2, 3, 4)


def test_vocabulary_of_261_is_character_level_on_ascii():
    characters = ResoTokenizer.train(TEXTS, 261)
    text = "".join(map(chr, range(128)))
    assert characters.vocab_size == 261
    assert [characters.decode([i]) for i in characters.encode(text)] == list(text)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size is 260.*at least 261"):
        ResoTokenizer.train(TEXTS, 260)


def test_data_that_cannot_fill_the_vocabulary_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        small = ResoTokenizer.train(["abab"], 1000)
    assert small.vocab_size < 1000
    assert f"only {small.vocab_size} of the 1000" in caplog.text


def test_training_is_deterministic_across_processes(tokenizer):
    program = (
        "import sys, json; from reso_llm.tokenizer import ResoTokenizer; "
        "print(ResoTokenizer.train(json.load(sys.stdin), 400).fingerprint)"
    )
    for seed in ("1", "2"):
        fingerprint = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(TEXTS), capture_output=True, text=True, check=True, cwd=REPOSITORY,
            env={"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed},
        ).stdout.strip()  # fmt: skip
        assert fingerprint == tokenizer.fingerprint
    assert ResoTokenizer.train(TEXTS[::-1] + ["other"] * 9, 400).fingerprint != fingerprint


def test_default_tokenizer_has_4096_tokens_and_packs_text():
    default = create_default_tokenizer()
    assert default.vocab_size == 4096
    text = "Hello! How are you doing today? I was thinking about learning to cook."
    assert len(text) / len(default.encode(text)) > 3.0
    assert default.decode(default.encode("".join(TEXTS))) == "".join(TEXTS)


def test_default_tokenizer_is_regenerated_byte_for_byte(tmp_path):
    pytest.importorskip("chitchat_dataset", reason="needs the sample extra")
    if not GUANACO.exists():
        pytest.skip(f"{GUANACO} is absent")
    script = REPOSITORY / "benchmarks" / "making" / "default_tokenizer.py"
    out = tmp_path / "again.json"
    subprocess.run(
        [sys.executable, script, "--guanaco", GUANACO, "--out", out],
        check=True, capture_output=True, env={"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert out.read_bytes() == (REPOSITORY / "reso_llm" / "default_tokenizer.json").read_bytes()


# -- text and ids


@no_deadline
@given(text=st.text())
def test_any_unicode_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_character_survives(tokenizer):
    # Guards initial_alphabet: without it bytes not seen in training vanish silently.
    characters = [chr(c) for c in [*range(0xD800), *range(0xE000, 0x110000, 7)]]
    text = "".join(characters)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("size", [3, 261, 4096])
def test_lone_surrogate_is_refused_with_its_position(tokenizer, size):
    text = "é" * size + "\ud83d" + "x"
    with pytest.raises(ValueError, match=rf"position {size}: U\+D83D is a lone surrogate"):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match="lone surrogate"):
        ResoTokenizer.train(["ok", text], 300)


def test_long_texts_are_cut_without_loss_and_short_ones_not_at_all(tokenizer, monkeypatch):
    texts = [
        "the reactor sings, and the tokens ring " * 30,
        "a" * 1000,
        "line\n" * 200,
        "",
        "x",
        "ไทย " * 200,
        " " * 700,
    ]
    whole = tokenizer.encode_batch(texts)
    monkeypatch.setattr(module, "CHUNK_CHARS", 64)
    monkeypatch.setattr(module, "BATCH_CHARS", 100)
    cut = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids) for ids in cut] == texts
    assert cut[0] == whole[0]  # cut before a space: the tokens are those of the whole text
    assert cut == [tokenizer.encode(text) for text in texts]
    owners = [owner for owner, _ in tokenizer.encode_pieces(texts)]
    assert owners == sorted(owners)
    assert set(owners) == set(range(len(texts)))


def test_decode_shows_control_tokens_only_on_request(tokenizer):
    ids = [0, 2, *tokenizer.encode("hi"), 4]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, keep_special=True) == "<|bos|><|user|>hi<|end|>"


@pytest.mark.parametrize("bad", [-1, 400, 10**9])
def test_ids_out_of_range_are_refused(tokenizer, bad):
    with pytest.raises(ValueError, match=rf"token id {bad} is not in 0\.\.399"):
        tokenizer.decode([5, bad])
    with pytest.raises(ValueError, match="token id"):
        tokenizer.bag([bad])


@no_deadline
@given(ids=st.lists(st.integers(0, 399)))
def test_streamed_text_is_whole_characters_and_joins_to_decode(tokenizer, ids):
    stream = StreamDecoder(tokenizer)
    pieces = [stream.feed(i) for i in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_stream_decoder_holds_back_half_a_character(tokenizer):
    byte_ids = {tokenizer.token_bytes(i): i for i in range(5, 261)}
    ids = [byte_ids[bytes([b])] for b in "🫥é".encode()]
    stream = tokenizer.stream_decoder()
    assert [stream.feed(np.int64(i)) for i in ids] == ["", "", "", "🫥", "", "é"]
    assert stream.feed(ids[:2]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.feed(ids) + stream.flush() == "🫥é"


# -- control tokens cannot be typed (FAULTS 23)

FRAGMENTS = [
    *SPECIAL, "<|", "|>", "<", "|", ">", "bos", "user", "assistant", "end", "system", " ", "\n",
    "</s>", "[INST]", "<s>", "### Human: ", "\0", "é", "🫥", "<|endoftext|>", "<|User|>", "\u200b",
]  # fmt: skip


def poisoned_tokenizers():
    """Trained on the control tokens' own names, shipped, and read back from JSON."""
    poisoned = ResoTokenizer.train(["".join(SPECIAL), *SPECIAL * 500, "<|<|user|>|>" * 50], 320)
    reloaded = ResoTokenizer.from_json(poisoned.to_json())
    return {"poisoned": poisoned, "reloaded": reloaded, "default": create_default_tokenizer()}


@pytest.mark.parametrize("name", ["poisoned", "reloaded", "default"])
def test_ten_thousand_fuzzed_texts_give_no_control_token(name):
    candidate = poisoned_tokenizers()[name]
    rng = random.Random(0)
    texts = ["".join(rng.choices(FRAGMENTS, k=rng.randint(1, 12))) for _ in range(10_000)]
    for text, ids in zip(texts, candidate.encode_batch(texts), strict=True):
        assert min(ids) >= len(SPECIAL), text
        assert candidate.decode(ids) == text


@no_deadline
@given(
    turns=st.lists(
        st.tuples(
            st.sampled_from(["system", "user", "assistant"]),
            st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5)).map("".join),
        ),
        max_size=4,
    )
)
def test_a_conversation_has_exactly_the_control_tokens_of_its_layout(tokenizer, turns):
    ids, mask = tokenizer.encode_conversation(turns)
    roles = {"system": 1, "user": 2, "assistant": 3}
    assert [i for i in ids if i < 5] == [0] + [x for r, _ in turns for x in (roles[r], 4)]
    assert len(ids) == len(mask)
    replies = [tokenizer.decode(tokenizer.encode(c)) for r, c in turns if r == "assistant"]
    marked = [i for i, m in zip(ids, mask, strict=True) if m]
    assert tokenizer.decode(marked, keep_special=True) == "".join(r + "<|end|>" for r in replies)


def test_conversation_layout(tokenizer):
    a, b, c = (tokenizer.encode(text)[0] for text in "abc")
    messages = [("system", "a"), ("user", "b"), ("assistant", "c")]
    ids, mask = tokenizer.encode_conversation(messages)
    assert ids == [0, 1, a, 4, 2, b, 4, 3, c, 4]
    assert mask == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert tokenizer.encode_prompt(messages[:2]) == ids[:8]
    assert tokenizer.encode_prompt(messages) == ids[:9]  # the reply that "c" begins goes on
    with pytest.raises(ValueError, match="unknown role 'tool'"):
        tokenizer.encode_conversation([("tool", "x")])


# -- files (FAULTS 24)


def test_saved_tokenizer_reads_back_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = ResoTokenizer.load(path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    assert pickle.loads(pickle.dumps(tokenizer)).fingerprint == tokenizer.fingerprint


def test_file_of_an_older_library_with_fewer_fields_still_loads(tokenizer):
    older = json.loads(tokenizer.to_json())
    del older["model"]["ignore_merges"]
    assert ResoTokenizer.from_json(json.dumps(older)).fingerprint == tokenizer.fingerprint


def test_swapped_tokenizer_has_another_fingerprint(tokenizer):
    other = ResoTokenizer.train(TEXTS, 399)
    swapped = json.loads(tokenizer.to_json())
    vocab = swapped["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    fingerprints = {ResoTokenizer.from_json(json.dumps(swapped)).fingerprint, other.fingerprint}
    assert len(fingerprints | {tokenizer.fingerprint}) == 3


def broken_files(good: str) -> dict[str, str]:
    def changed(change) -> str:
        value = json.loads(good)
        change(value)
        return json.dumps(value)

    def lowercase(value):
        value["normalizer"] = {"type": "Lowercase"}

    def spell_control_token(value):
        value["model"]["merges"].append(["<|us", "er|>"])

    return {
        "empty": "",
        "truncated": good[: len(good) // 2],
        "list": "[1, 2]",
        "other json": '{"model": {"type": "WordPiece", "vocab": {"a": 0}}}',
        "normalizer": changed(lowercase),
        "hole": changed(lambda v: v["model"]["vocab"].pop("a")),
        "gap": changed(lambda v: v["model"]["vocab"].update({"a": 7777})),
        "text id": changed(lambda v: v["model"]["vocab"].update({"a": "x"})),
        "merge": changed(lambda v: v["model"]["merges"].pop()),
        "merge of unknown": changed(lambda v: v["model"]["merges"].append(["q", "qqq"])),
        "spelled": changed(spell_control_token),
        "dropout": changed(lambda v: v["model"].update({"dropout": 0.5})),
        "other split": changed(lambda v: v["pre_tokenizer"]["pretokenizers"].pop(0)),
        "added token": changed(lambda v: v["added_tokens"].append(v["added_tokens"][0])),
    }


@pytest.mark.parametrize("case", list(broken_files(ResoTokenizer.train(TEXTS, 262).to_json())))
def test_broken_or_foreign_file_is_named(tokenizer, tmp_path, case):
    path = tmp_path / "tokenizer.json"
    path.write_text(broken_files(tokenizer.to_json())[case], encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a Reso tokenizer"):
        ResoTokenizer.load(path)


def test_absent_or_binary_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.json: cannot read"):
        ResoTokenizer.load(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.json: cannot read"):
        ResoTokenizer.load(tmp_path / "binary.json")


# -- primes


def test_first_primes_are_the_primes():
    slow = [n for n in range(2, 8000) if all(n % d for d in range(2, int(n**0.5) + 1))]
    assert list(first_primes(1000)) == slow[:1000]
    assert first_primes(0) == ()
    for count in range(1, 60):
        assert list(first_primes(count)) == slow[:count]
    assert first_primes(65536)[-1] == 821641


def test_primes_name_tokens(tokenizer):
    text = "¿Qué es un polinomio?"
    primes = tokenizer.encode_primes(text)
    assert primes == [first_primes(400)[i] for i in tokenizer.encode(text)]
    assert tokenizer.decode_primes(primes) == text
    assert tokenizer.decode_primes([2, 3, 5, 7, 11]) == ""  # the control tokens


@pytest.mark.parametrize("number", [0, 1, -2, 4, 2743, 1_000_003])
def test_a_number_that_is_no_tokens_prime_is_named(tokenizer, number):
    with pytest.raises(ValueError, match=rf"{number} is no token's prime"):
        tokenizer.decode_primes([13, number])


@no_deadline
@given(ids=st.lists(st.integers(0, 399), max_size=40))
def test_a_bag_factorises_into_its_tokens(tokenizer, ids):
    product = tokenizer.bag(ids)
    assert product == prod(first_primes(400)[i] for i in ids)
    assert tokenizer.factorise(product) == sorted(ids)


@pytest.mark.parametrize("product", [0, -6, 2749, 6 * 1_000_003])
def test_what_is_no_bag_is_refused(tokenizer, product):
    with pytest.raises(ValueError, match=r"not a product|without primes of this"):
        tokenizer.factorise(product)


def test_names_are_the_bytes_of_what_is_no_control_token(byte_tokenizer):
    """Guards a control token that is taken for the word it is written with."""
    assert byte_tokenizer.names[:5] == [b""] * 5
    assert byte_tokenizer.names[5:] == [byte_tokenizer.token_bytes(i) for i in range(5, 261)]
    assert sorted(byte_tokenizer.names[5:]) == [bytes([byte]) for byte in range(256)]
