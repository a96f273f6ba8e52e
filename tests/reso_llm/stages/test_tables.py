"""The binding memory's tables: any chunks give the same, and they are kept beside the tokens."""

import numpy as np
import pytest
import torch

from reso_llm.config import PRSCConfig
from reso_llm.stages import counting, prsc, runs, tables
from reso_llm.stages.prsc import FOLD_TABLES, TABLES, BindingMemory

V, DIM, ORDERS = 23, 6, 3


def make_text(size=400, seed=0):
    """Ids, the lower ones frequent, so that contexts come again."""
    return (V * np.random.default_rng(seed).random(size) ** 2.5).astype(np.uint16)


def fitted(tokens, directory=None, **changes):
    memory = BindingMemory(V, DIM, PRSCConfig(**{"max_order": ORDERS, "max_slots": 16} | changes))
    memory.fit(tokens, directory)
    return memory


def assert_same(one, two):
    for name in (*TABLES, *FOLD_TABLES):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def not_counted(*_):
    raise AssertionError("counted again")


@pytest.mark.parametrize("max_entries", [10**6, 700, 300, 1])
def test_small_chunks_give_the_same_tables(monkeypatch, max_entries):
    """Runs, ranges and blocks of any size; also where ties are cut and suffixes are pruned."""
    tokens = make_text(1200)
    whole = fitted(tokens, max_entries=max_entries)
    for chunk, merged, smoothed in ((61, 97, 50), (10**6, 1000, 10**6), (150, 10**6, 1)):
        monkeypatch.setattr(runs, "CHUNK", chunk)
        monkeypatch.setattr(counting, "MERGED", merged)
        monkeypatch.setattr(tables, "SMOOTHED", smoothed)
        assert_same(fitted(tokens, max_entries=max_entries), whole)


def test_the_most_frequent_contexts_do_not_depend_on_the_order_they_come_in():
    """One that does not fit keeps out all rarer ones, however small."""
    totals, sizes = np.array([9, 7, 7, 5, 3, 2]), np.array([3, 2, 2, 9, 1, 1])
    keys = np.arange(10, 16)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(6)
        frequent = counting.Frequent(9)
        for piece in np.array_split(order, 3):
            frequent.add(0, keys[piece], totals[piece], sizes[piece])
        assert frequent.of(0).tolist() == [10, 11, 12]
        assert frequent.least == 5


def test_tables_are_counted_once_and_mapped_afterwards(monkeypatch, tmp_path):
    tokens = make_text()
    first = fitted(tokens, tmp_path)
    assert_same(first, fitted(tokens))
    names = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert names == {"bindings"}, "nothing is left of the counting"
    monkeypatch.setattr(prsc, "count_tables", not_counted)
    second = fitted(tokens, tmp_path)
    assert_same(second, first)
    assert second.num_fitted == len(tokens)
    second.evidence.fill_(1.0)
    assert_same(fitted(tokens, tmp_path), first)  # writing to a mapped table leaves its file


def test_other_settings_are_other_tables(tmp_path):
    for changes in ({}, {"max_order": 2}, {"max_slots": 8}, {"max_entries": 100}):
        assert_same(fitted(make_text(), tmp_path, **changes), fitted(make_text(), **changes))
    assert len(list(tmp_path.glob("bindings-*.lock"))) == 4


@pytest.mark.parametrize("name", ["evidence.npy", "keys.npy", "tables.json"])
def test_damaged_tables_are_counted_again(tmp_path, caplog, name):
    fitted(make_text(), tmp_path)
    (path,) = tmp_path.glob(f"bindings-*/{name}")
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    assert_same(fitted(make_text(), tmp_path), fitted(make_text()))
    assert "damaged tables" in caplog.text


def test_what_a_killed_process_left_is_removed(tmp_path):
    first = fitted(make_text(), tmp_path)
    (kept,) = (path for path in tmp_path.iterdir() if path.is_dir())
    kept.rename(kept.with_suffix(".tmp"))
    (kept.with_suffix(".tmp") / "counting.x").mkdir()
    assert_same(fitted(make_text(), tmp_path), first)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [kept.name]


def test_without_the_right_to_write_tables_are_read_or_counted(monkeypatch, tmp_path):
    first = fitted(make_text(), tmp_path)
    monkeypatch.setattr("reso_llm.stages.kept_tables.os.access", lambda *_: False)
    before = sorted(tmp_path.rglob("*"))
    assert_same(fitted(make_text(), tmp_path, max_order=2), fitted(make_text(), max_order=2))
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(prsc, "count_tables", not_counted)
    assert_same(fitted(make_text(), tmp_path), first)
