"""Token cache, split, training windows and evaluation windows (FAULTS 16, 19, 22)."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reso_llm.data import split, token_cache, tokenise
from reso_llm.data.errors import BadRows, DataError
from reso_llm.data.prepare import prepare, tokenise_all, tokenizer_texts
from reso_llm.data.sources import read_documents
from reso_llm.data.token_cache import Split
from reso_llm.data.windows import BatchStream, eval_batches, eval_windows
from reso_llm.tokenizer import ResoTokenizer

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = REPOSITORY.parent / "shared" / "data"
TOKENIZER = ResoTokenizer.train(["hello there, how are you? fine, thanks. "] * 9, 280)


def guanaco(index: int) -> str:
    return f"### Human: question {index}?### Assistant: answer é{index * index}!"


def write_rows(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return str(path)


@pytest.fixture
def rows(tmp_path) -> str:
    """200 guanaco rows and one plain text row."""
    return write_rows(tmp_path / "rows.jsonl", [*map(guanaco, range(200)), "plain <|end|> text"])


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def documents_of(split: Split) -> list[str]:
    """Each document of a split as text with its control tokens."""
    stops = [*split.doc_starts[1:], split.num_tokens]
    spans = zip(split.doc_starts, stops, strict=True)
    return [TOKENIZER.decode(split.tokens[a:b], keep_special=True) for a, b in spans]


# -- what the cache holds


def test_cache_holds_every_document_as_the_tokenizer_lays_it_out(rows, cache):
    data = prepare(rows, TOKENIZER, cache_dir=cache)
    expected = {}
    for document in read_documents(rows):
        if document.messages:
            ids, mask = TOKENIZER.encode_conversation(document.messages)
        else:
            ids = [TOKENIZER.bos_id, *TOKENIZER.encode(document.text)]
            mask = [0] * len(ids)
        expected[tuple(ids)] = (mask, document.num_bytes)
    found = 0
    for side in (data.train, data.val):
        assert side.tokens.dtype == np.uint16
        assert len(side.tokens) == len(side.reply_mask) == side.num_tokens
        assert len(side.doc_starts) == side.num_documents
        num_bytes = 0
        stops = [*side.doc_starts[1:], side.num_tokens]
        for start, stop in zip(side.doc_starts, stops, strict=True):
            mask, size = expected[tuple(side.tokens[start:stop].tolist())]
            assert side.reply_mask[start:stop].tolist() == mask
            num_bytes += size
            found += 1
        assert side.num_bytes == num_bytes
    assert found == 201
    assert data.bad_rows.count == 0


def test_large_vocabulary_uses_32_bits(rows, cache, monkeypatch):
    monkeypatch.setattr(ResoTokenizer, "vocab_size", property(lambda self: 1 << 17))
    data = prepare(rows, TOKENIZER, cache_dir=cache)
    assert data.train.tokens.dtype == np.uint32


def test_batches_of_any_size_write_the_same_cache(rows, cache, monkeypatch):
    whole = prepare(rows, TOKENIZER, cache_dir=cache / "a")
    monkeypatch.setattr(tokenise, "BATCH_DOCUMENTS", 3)
    calls = []
    small = prepare(
        rows, TOKENIZER, cache_dir=cache / "b", progress=lambda *seen: calls.append(seen)
    )
    for name in ("tokens", "reply_mask", "doc_starts"):
        for side in ("train", "val"):
            assert np.array_equal(getattr(getattr(whole, side), name),
                                  getattr(getattr(small, side), name))  # fmt: skip
    assert len(calls) == 67
    assert calls[-1] == (201, whole.train.num_bytes + whole.val.num_bytes)


def test_default_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("RESO_CACHE", raising=False)
    assert token_cache.default_cache_dir() == tmp_path / "reso_llm"
    monkeypatch.setenv("RESO_CACHE", str(tmp_path / "own"))
    assert token_cache.default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("RESO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert token_cache.default_cache_dir() == Path.home() / ".cache" / "reso_llm"


# -- split


def test_split_ignores_order_and_other_rows_and_keeps_duplicates_together(tmp_path, cache):
    texts = [guanaco(i) for i in range(300)]
    shuffled = texts[:] + texts[::3]
    random.Random(0).shuffle(shuffled)
    a = prepare(write_rows(tmp_path / "a.jsonl", texts), TOKENIZER, cache_dir=cache)
    b = prepare(write_rows(tmp_path / "b.jsonl", shuffled), TOKENIZER, cache_dir=cache)
    assert set(documents_of(a.val)) == set(documents_of(b.val))
    assert not set(documents_of(b.train)) & set(documents_of(b.val))
    assert b.train.num_documents + b.val.num_documents == 400
    assert 4 <= a.val.num_documents <= 30  # 15 expected


def test_the_same_conversation_in_two_formats_is_on_one_side(tmp_path):
    llama = "<s>[INST] question 1? [/INST] answer é1! </s>"
    hashes = [
        split.content_hash(next(read_documents(write_rows(tmp_path / f"{i}.jsonl", [text]))))
        for i, text in enumerate([guanaco(1), llama, guanaco(2)])
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(("fraction", "sides"), [(0.0001, (4, 1)), (0.9999, (1, 4))])
def test_a_side_that_would_be_empty_gets_one_document(tmp_path, cache, caplog, fraction, sides):
    path = write_rows(tmp_path / "rows.jsonl", [guanaco(i) for i in range(5)])
    with caplog.at_level(logging.WARNING):
        data = prepare(path, TOKENIZER, cache_dir=cache, val_fraction=fraction)
    assert (data.train.num_documents, data.val.num_documents) == sides
    assert "one document is put there" in caplog.text


def test_one_document_cannot_be_split(tmp_path, cache):
    path = write_rows(tmp_path / "one.jsonl", [guanaco(1)] * 3)
    with pytest.raises(DataError, match=r"one\.jsonl: only one document"):
        prepare(path, TOKENIZER, cache_dir=cache)
    assert not list(cache.glob("*.tmp"))
    other = write_rows(tmp_path / "other.jsonl", [guanaco(2)])
    data = prepare(path, TOKENIZER, cache_dir=cache, val_spec=other)
    assert (data.train.num_documents, data.val.num_documents) == (3, 1)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1, 2, float("nan")])
def test_fraction_out_of_range_is_refused(rows, cache, fraction):
    with pytest.raises(DataError, match="val_fraction is"):
        prepare(rows, TOKENIZER, cache_dir=cache, val_fraction=fraction)


def test_validation_file_takes_nothing_from_training_and_overlap_is_told(rows, cache, caplog):
    data = prepare(rows, TOKENIZER, cache_dir=cache, val_spec=rows)
    assert data.train.num_documents == data.val.num_documents == 201
    assert "201 training documents are also validation documents" in caplog.text


@pytest.mark.parametrize("piece", [1 << 20, 50, 7])
def test_plain_text_file_is_cut_at_its_last_bytes(tmp_path, cache, monkeypatch, piece):
    monkeypatch.setattr("reso_llm.data.readers.PIECE_BYTES", piece)
    content = "ab\ncé🫥def\n" * 50
    path = tmp_path / "book.txt"
    path.write_text(content, encoding="utf-8")
    for percent in range(1, 100, 7):
        data = prepare(str(path), TOKENIZER, cache_dir=cache, val_fraction=percent / 100)
        encoded = content.encode()
        cut = int(len(encoded) * (1 - percent / 100))
        while encoded[cut] & 0xC0 == 0x80:
            cut -= 1
        assert documents_of(data.train) == ["<|bos|>" + encoded[:cut].decode()]
        assert documents_of(data.val) == ["<|bos|>" + encoded[cut:].decode()]
        assert (data.train.num_bytes, data.val.num_bytes) == (cut, len(encoded) - cut)
        assert not data.train.reply_mask.any()


def test_two_text_files_are_two_documents_each_cut(tmp_path, cache):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} line\n" * 100)
    spec = f"{tmp_path / 'a.txt'}+{tmp_path / 'b.txt'}"
    data = prepare(spec, TOKENIZER, cache_dir=cache, val_fraction=0.1)
    assert data.train.num_documents == data.val.num_documents == 2
    assert documents_of(data.val) == [
        f"<|bos|>{name} line\n" + f"{name} line\n" * 9 for name in "ab"
    ]


def test_text_files_on_both_sides_stay_whole(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("reso_llm.data.readers.PIECE_BYTES", 8)
    for name in ("train", "held"):
        (tmp_path / f"{name}.txt").write_text(f"{name} line é\n" * 9, encoding="utf-8")
    train, held = str(tmp_path / "train.txt"), str(tmp_path / "held.txt")
    data = prepare(train, TOKENIZER, cache_dir=cache, val_spec=held)
    assert documents_of(data.train) == ["<|bos|>" + "train line é\n" * 9]
    assert documents_of(data.val) == ["<|bos|>" + "held line é\n" * 9]
    (tmp_path / "tiny.txt").write_text("x")
    with pytest.raises(DataError, match=r"tiny\.txt: only one document"):
        prepare(str(tmp_path / "tiny.txt"), TOKENIZER, cache_dir=cache)


def test_tinyshakespeare_has_the_usual_split(cache):
    path = DATA / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    characters = ResoTokenizer.train(["x"], 261)
    data = prepare(str(path), characters, cache_dir=cache, val_fraction=0.1)
    assert (data.train.num_tokens, data.val.num_tokens) == (1_003_854 + 1, 111_540 + 1)
    assert characters.decode(data.val.tokens[:30]) == path.read_text()[1_003_854:][:29]


def test_tokenise_all_holds_nothing_out(rows, cache, tmp_path):
    whole = tokenise_all(rows, TOKENIZER)
    data = prepare(rows, TOKENIZER, cache_dir=cache, val_spec=rows)
    for name in Split._fields:
        assert np.array_equal(getattr(whole, name), getattr(data.val, name)), name
    book = tmp_path / "book.txt"
    book.write_text("line\n" * 9)
    assert documents_of(tokenise_all(f"{book}+{rows}", TOKENIZER))[0] == "<|bos|>" + "line\n" * 9
    one = tmp_path / "one.jsonl"
    one.write_text('"a"\nbroken\n')
    report = BadRows()
    assert tokenise_all(str(one), TOKENIZER, on_bad_row="skip", report=report).num_documents == 1
    assert [bad.line for bad in report.rows] == [2]
    with pytest.raises(DataError, match=r"one\.jsonl:2: broken JSON"):
        tokenise_all(str(one), TOKENIZER)


# -- tokenizer texts


def test_tokenizer_texts_are_the_training_side_and_nothing_else(rows, cache):
    for fraction in (0.05, 0.5, 0.00001):
        data = prepare(rows, TOKENIZER, cache_dir=cache, val_fraction=fraction)
        expected = [
            text
            for d in documents_of(data.train)
            for text in d.replace("<|assistant|>", "<|user|>").split("<|user|>")[1:]
        ]
        texts = list(tokenizer_texts(rows, val_fraction=fraction))
        assert [t + "<|end|>" for t in texts if not t.startswith("plain")] == expected


def test_tokenizer_texts_stop_at_the_limit_and_share_it(tmp_path):
    a = write_rows(tmp_path / "a.jsonl", ["a" * 10 + str(i) for i in range(500)])
    b = write_rows(tmp_path / "b.jsonl", ["b" * 10 + str(i) for i in range(500)])
    texts = list(tokenizer_texts(f"{a}+{b}", limit_bytes=2000))
    assert texts == list(tokenizer_texts(f"{a}+{b}", limit_bytes=2000))
    for letter in "ab":
        assert 1000 <= sum(len(t) for t in texts if t[0] == letter) <= 1013
    book = tmp_path / "book.txt"
    book.write_text("train\n" * 90 + "held!\n" * 10)
    assert "".join(tokenizer_texts(str(book), val_fraction=0.1)) == "train\n" * 90
    assert "".join(tokenizer_texts(a, val_spec=b)).count("a") == 5000


# -- bad rows


def test_skipped_rows_are_reported_again_from_the_cache(tmp_path, cache):
    lines = [json.dumps({"text": guanaco(i)}) for i in range(60)]
    lines[10] = "{"
    lines[50] = '{"text": null}'
    for name in ("first", "renamed"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(lines))
        data = prepare(str(path), TOKENIZER, cache_dir=cache, on_bad_row="skip")
        assert [row[:2] for row in data.bad_rows.rows] == [(str(path), 11), (str(path), 51)]
        assert data.train.num_documents + data.val.num_documents == 58
    assert len(list(cache.glob("*/manifest.json"))) == 1
    with pytest.raises(DataError, match=r"renamed\.jsonl:11: broken JSON"):
        prepare(str(path), TOKENIZER, cache_dir=cache)


# -- damage (FAULTS 22)


def snapshot(data) -> list[bytes]:
    return [
        array.tobytes()
        for split in (data.train, data.val)
        for array in (split.tokens, split.reply_mask, split.doc_starts)
    ]


def build_count(monkeypatch) -> list:
    built = []
    original = token_cache._write_cache
    monkeypatch.setattr(
        token_cache, "_write_cache", lambda *args: (built.append(args[0]), original(*args))
    )
    return built


def test_an_intact_cache_is_used_and_not_built_again(rows, cache, monkeypatch):
    built = build_count(monkeypatch)
    first = prepare(rows, TOKENIZER, cache_dir=cache)
    assert snapshot(prepare(rows, TOKENIZER, cache_dir=cache)) == snapshot(first)
    assert len(built) == 1


@pytest.mark.parametrize("change", ["tokenizer", "content", "fraction"])
def test_another_tokenizer_content_or_split_is_another_cache(rows, cache, monkeypatch, change):
    built = build_count(monkeypatch)
    prepare(rows, TOKENIZER, cache_dir=cache)
    tokenizer, fraction = TOKENIZER, 0.05
    if change == "tokenizer":
        tokenizer = ResoTokenizer.train(["x"], 261)
    if change == "fraction":
        fraction = 0.06
    if change == "content":
        Path(rows).write_bytes(Path(rows).read_bytes().replace(b"question 7?", b"question 8!"))
    data = prepare(rows, tokenizer, cache_dir=cache, val_fraction=fraction)
    assert len(built) == 2
    ids = np.concatenate([data.train.tokens, data.val.tokens])
    assert tokenizer.decode(ids).count("question 8!") == (change == "content")


NAMES = [f"{side}.{kind}" for side in ("train", "val") for kind in ("tokens", "mask", "starts")]


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "grow"])
def test_damage_is_found_and_repaired_with_one_warning(rows, cache, caplog, name, damage):
    first = prepare(rows, TOKENIZER, cache_dir=cache)
    good, victim = snapshot(first), first.path / name
    numbers = (first.train.num_bytes, first.val.num_bytes)
    content = bytearray(victim.read_bytes())
    rng = random.Random(f"{name}{damage}")
    if damage == "flip":
        position = rng.randrange(len(content))
        while name == "manifest.json" and not chr(content[position]).isalnum():
            position = rng.randrange(len(content))
        content[position] ^= 1 << rng.randrange(7)
    if damage == "truncate":
        del content[rng.randrange(len(content)) :]
    if damage == "grow":
        content += b"\0\0"
    # A new file, as the first one is still mapped.
    victim.unlink()
    if damage != "remove":
        victim.write_bytes(content)
    caplog.clear()
    again = prepare(rows, TOKENIZER, cache_dir=cache)
    assert snapshot(again) == good
    assert (again.train.num_bytes, again.val.num_bytes) == numbers
    assert len(caplog.records) == 1
    assert "damaged token cache" in caplog.text
    assert not list(cache.glob("*.tmp"))


def test_a_changed_number_in_the_manifest_is_found(rows, cache, caplog):
    # Valid JSON and every file intact, but bits per byte would be wrong.
    data = prepare(rows, TOKENIZER, cache_dir=cache)
    manifest = data.path / "manifest.json"
    size = str(data.val.num_bytes)
    manifest.write_text(manifest.read_text().replace(size, str(data.val.num_bytes + 1)))
    assert prepare(rows, TOKENIZER, cache_dir=cache).val.num_bytes == data.val.num_bytes
    assert "manifest.json does not match its own hash" in caplog.text


BUILD = """
import sys
from reso_llm.data.prepare import prepare
from reso_llm.tokenizer import ResoTokenizer

rows, tokenizer, cache = sys.argv[1:]
prepare(rows, ResoTokenizer.load(tokenizer), cache_dir=cache)
"""


def test_any_number_of_threads_writes_the_same_files(rows, tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    built = []
    for threads in ("1", "4"):
        arguments = [rows, str(tmp_path / "tokenizer.json"), str(tmp_path / threads)]
        environment = os.environ | {"RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", BUILD, *arguments]
        subprocess.run(command, check=True, cwd=REPOSITORY, env=environment)
        built.append({p.name: p.read_bytes() for p in (tmp_path / threads).glob("*/*")})
    assert built[0] == built[1]
    assert len(built[0]) == 7, "three files a side and the manifest"


KILLED = """
import os, signal, sys
from reso_llm.data import prepare, tokenise
from reso_llm.tokenizer import ResoTokenizer

batches, write = [], tokenise.write_batch

def write_batch(*arguments):
    batches.append(arguments)
    if len(batches) > 25:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)

tokenise.BATCH_DOCUMENTS, tokenise.JOURNAL_EVERY, tokenise.write_batch = 3, 4, write_batch
rows, tokenizer, cache = sys.argv[1:]
prepare.prepare(rows, ResoTokenizer.load(tokenizer), cache_dir=cache)
"""


def killed_build(rows, cache, tmp_path) -> Path:
    """The directory of a build killed in its 26th batch of three documents."""
    TOKENIZER.save(tmp_path / "tokenizer.json")
    arguments = [rows, str(tmp_path / "tokenizer.json"), str(cache)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    (partial,) = cache.glob("*.partial")
    return partial


def encoded(monkeypatch) -> list[str]:
    """The texts that are encoded from now on."""
    texts, encode = [], ResoTokenizer.encode_pieces
    monkeypatch.setattr(
        ResoTokenizer, "encode_pieces", lambda self, some: texts.extend(some) or encode(self, some)
    )
    return texts


def test_a_killed_build_goes_on_where_it_was(rows, cache, tmp_path, monkeypatch):
    whole = prepare(rows, TOKENIZER, cache_dir=cache / "whole")
    partial, texts, seen = killed_build(rows, cache, tmp_path), encoded(monkeypatch), []
    with open(partial / "train.tokens", "ab") as file:
        file.write(b"more than the journal knows")
    data = prepare(rows, TOKENIZER, cache_dir=cache, progress=lambda *now: seen.append(now))
    assert len(texts) == 2 * (200 - 24 * 3) + 1, "24 batches of 3 questions and answers were there"
    assert snapshot(data) == snapshot(whole)
    names = {path.name for path in data.path.iterdir()}
    assert names == {path.name for path in whole.path.iterdir()}
    assert seen[-1] == (201, whole.train.num_bytes + whole.val.num_bytes)
    assert not list(cache.glob("*.partial"))


def test_a_journal_that_does_not_fit_its_files_is_not_followed(rows, cache, tmp_path, monkeypatch):
    partial = killed_build(rows, cache, tmp_path)
    texts = encoded(monkeypatch)
    whole = snapshot(prepare(rows, TOKENIZER, cache_dir=tmp_path / "whole"))
    for name in ("journal.json", "train.tokens", "val.starts"):
        damaged = tmp_path / name / partial.name
        shutil.copytree(partial, damaged)
        (damaged / name).write_bytes((damaged / name).read_bytes()[:5])
        texts.clear()
        assert snapshot(prepare(rows, TOKENIZER, cache_dir=tmp_path / name)) == whole
        assert len(texts) == 401


def test_interrupted_build_leaves_nothing_that_is_used(rows, cache, monkeypatch):
    def failed(*args):
        raise failure

    for failure in (KeyboardInterrupt(), OSError("no room")):
        with monkeypatch.context() as patch:
            patch.setattr(tokenise, "write_batch", failed)
            with pytest.raises((KeyboardInterrupt, DataError)):
                prepare(rows, TOKENIZER, cache_dir=cache)
        kept = [p.suffix for p in cache.iterdir() if p.is_dir()]
        assert kept == ([".partial"] if isinstance(failure, KeyboardInterrupt) else [])
    data = prepare(rows, TOKENIZER, cache_dir=cache)
    stale = cache / f"{data.path.name}.abc.tmp"  # as earlier versions left it
    stale.mkdir()
    prepare(rows, TOKENIZER, cache_dir=cache)
    assert not stale.exists()


def test_complete_cache_serves_who_may_only_read_it(rows, cache, monkeypatch):
    good = snapshot(prepare(rows, TOKENIZER, cache_dir=cache))

    def refused(final):
        raise PermissionError(13, "Permission denied", str(final))

    monkeypatch.setattr(token_cache, "_build_lock", refused)
    assert snapshot(prepare(rows, TOKENIZER, cache_dir=cache)) == good
    with pytest.raises(DataError, match=r"cannot write the token cache.*RESO_CACHE"):
        prepare(rows, TOKENIZER, cache_dir=cache, val_fraction=0.06)


def test_cache_of_another_tokenizer_is_built_again(rows, cache, caplog):
    other = ResoTokenizer.train(["x"], 261)
    path = prepare(rows, TOKENIZER, cache_dir=cache).path
    aside = cache / "aside"
    path.rename(aside)
    target = prepare(rows, other, cache_dir=cache).path
    good = (target / "train.tokens").read_bytes()
    target.rename(cache / "gone")
    aside.rename(target)
    data = prepare(rows, other, cache_dir=cache)
    assert "it is of another tokenizer" in caplog.text
    assert (data.path / "train.tokens").read_bytes() == good


def test_unwritable_cache_is_named_with_what_to_do(rows, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match=r"cannot write the token cache.*RESO_CACHE"):
        prepare(rows, TOKENIZER, cache_dir=blocked / "cache")


BUILD = """
import sys
from reso_llm.data.prepare import prepare
from reso_llm.tokenizer import ResoTokenizer
data = prepare(sys.argv[1], ResoTokenizer.load(sys.argv[2]), cache_dir=sys.argv[3])
print(data.train.num_tokens, int(data.train.tokens.astype(int).sum()))
"""


def test_processes_that_build_at_once_agree(rows, cache, tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    command = [sys.executable, "-c", BUILD, rows, str(tmp_path / "tokenizer.json"), str(cache)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    results = [process.communicate() for process in processes]
    data = prepare(rows, TOKENIZER, cache_dir=cache)
    expected = f"{data.train.num_tokens} {int(data.train.tokens.astype(int).sum())}\n"
    assert results == [(expected, "")] * 2
    assert not list(cache.glob("*.tmp"))


# -- training windows (FAULTS 16)


def counting_split(num_tokens: int) -> Split:
    """Token i is i, a reply when i is a multiple of 3."""
    tokens = np.arange(num_tokens, dtype=np.uint16)
    mask = (tokens % 3 == 0).astype(np.uint8)
    return Split(tokens, mask, np.zeros(1, np.int64), num_tokens, num_tokens, 1)


def test_targets_and_mask_follow_the_inputs():
    inputs, targets, mask, starts = BatchStream(counting_split(1000), 16, 4, seed=0).next()
    assert inputs.shape == targets.shape == mask.shape == (4, 16)
    assert (inputs.dtype, targets.dtype, mask.dtype) == (torch.int64, torch.int64, torch.bool)
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(mask, targets % 3 == 0)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(16))
    assert torch.equal(starts, inputs[:, 0]), "the token at place n is n"


@pytest.mark.parametrize("num_tokens", [9, 10, 16, 17, 100, 103])
def test_an_epoch_is_a_permutation_of_disjoint_windows(num_tokens):
    context = 8
    stream = BatchStream(counting_split(num_tokens), context, 1, seed=3)
    offsets, orders = set(), set()
    for epoch in range(30):
        starts = [int(stream.next()[0][0, 0]) for _ in range(stream.windows_per_epoch)]
        offset = min(starts)
        expected = [offset + i * context for i in range(stream.windows_per_epoch)]
        assert sorted(starts) == expected
        assert stream.epoch == epoch + 1
        offsets.add(offset)
        orders.add(tuple(s - offset for s in starts))
    assert len(offsets) > 5 or num_tokens < 17
    assert len(orders) > 20 or num_tokens < 100


def test_every_token_is_seen_within_some_epochs():
    stream = BatchStream(counting_split(1000), 8, 10, seed=0)
    seen = torch.cat([torch.cat(stream.next()[:2]).flatten() for _ in range(12 * 30)])
    assert set(seen.tolist()) == set(range(1000))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_position_alone_continues_the_stream_exactly(batch_size):
    split = counting_split(200)
    reference = BatchStream(split, 8, batch_size, seed=5)
    batches, positions = [], []
    for _ in range(40):
        positions.append(reference.position)
        batches.append(reference.next())
    for index in random.Random(0).sample(range(40), 20):
        resumed = BatchStream(split, 8, batch_size, seed=5, position=positions[index])
        for one, other in zip(resumed.next(), batches[index], strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(batches[0][0], BatchStream(split, 8, batch_size, seed=6).next()[0])
    assert torch.equal(next(iter(BatchStream(split, 8, batch_size, seed=5)))[0], batches[0][0])


def test_data_shorter_than_a_window_is_refused():
    assert BatchStream(counting_split(9), 8, 1, seed=0).next()[0].tolist() == [list(range(8))]
    with pytest.raises(DataError, match="has 8 tokens, but one window of context 8 needs 9"):
        BatchStream(counting_split(8), 8, 1, seed=0)
    with pytest.raises(ValueError, match="context=0"):
        BatchStream(counting_split(8), 0, 1, seed=0)


# -- evaluation windows


def random_documents(rng: random.Random, context: int, stride: int):
    """(tokens, doc_starts) with lengths that include 1, 2 and exact multiples."""
    special = [1, 2, context, context + 1, context + 2, 2 * context + 1, context + stride + 1]
    lengths = [*special, *(rng.randint(1, 5 * context) for _ in range(20))]
    rng.shuffle(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    return np.arange(sum(lengths), dtype=np.uint16), starts.astype(np.int64), lengths


@pytest.mark.parametrize(("context", "stride"), [(1, 1), (8, 1), (8, 3), (8, 4), (8, 8), (64, 16)])
def test_every_token_is_scored_once_with_enough_context(context, stride):
    tokens, starts, lengths = random_documents(random.Random(context), context, stride)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    scored = []
    for window in eval_windows(tokens, starts, context, stride):
        assert 1 <= len(window.inputs) <= context
        assert np.array_equal(window.targets, window.inputs + 1)
        assert window.start == window.inputs[0], "a token's id is its place here"
        assert len(set(owner[[*window.inputs, window.targets[-1]]])) == 1
        first_of_document = window.inputs[0] in starts and window.scored[0]
        for index in np.flatnonzero(window.scored):
            assert first_of_document or index + 1 >= context - stride + 1
        scored += window.targets[window.scored].tolist()
    assert scored == sorted(set(range(len(tokens))) - set(starts.tolist()))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batched_windows_score_the_same_tokens(batch_size):
    tokens, starts, _ = random_documents(random.Random(1), 8, 4)
    scored = []
    for inputs, targets, mask, places in eval_batches(tokens, starts, 8, 4, batch_size):
        assert torch.equal(places, inputs[:, 0])
        assert inputs.shape == targets.shape == mask.shape
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] <= 8
        assert torch.equal(targets[mask], inputs[mask] + 1)
        scored += targets[mask].tolist()
    assert sorted(scored) == sorted(set(range(len(tokens))) - set(starts.tolist()))


@pytest.mark.parametrize("stride", [0, 9, -1])
def test_stride_out_of_range_is_refused(stride):
    with pytest.raises(ValueError, match="stride is"):
        next(eval_windows(np.arange(5), np.zeros(1, np.int64), 8, stride))
