"""The study of counting and tokenising: its text, its points, its picture."""

import numpy as np

from benchmarks.studies import data_scale


def test_the_synthetic_text_is_its_definition(monkeypatch):
    monkeypatch.setattr(data_scale, "PIECE", 2048)
    first, again, other = (
        np.concatenate(list(data_scale.synthetic_tokens(5000, seed))) for seed in (0, 0, 1)
    )
    assert len(first) == 5000
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.max() < data_scale.VOCABULARY
    follows = (first[1:].astype(int) - 31 * first[:-1].astype(int)) % data_scale.VOCABULARY
    near = np.mean(follows < 100)  # as of .8 tokens by Zipf's law
    assert 0.35 < near < 0.6
    assert np.mean(first < 100) < 0.4


def test_a_corpus_has_as_many_bytes_and_files_as_asked(tmp_path):
    data_scale.write_corpus(tmp_path, 1, file_bytes=300_000)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "rows").iterdir())]
    assert len(sizes) == 4
    assert 1_000_000 <= sum(sizes) < 1_005_000
    assert all(300_000 <= size < 305_000 for size in sizes[:-1])


def test_points_say_what_they_cost_and_are_drawn(tmp_path):
    rows = [{"kind": "counting", "size": 20_000}, {"kind": "tokenising", "size": 1}]
    for row in rows:
        data_scale.WRITTEN[row["kind"]](tmp_path, row["size"])
        row |= data_scale.MEASURED[row["kind"]](tmp_path)
        assert row["disk_bytes"] >= 0
        assert row["cpu_seconds"] > 0
        assert row["peak_bytes"] > 50e6
    counted, tokenised = rows
    assert counted["contexts"] > 1000
    assert counted["kept_bytes"] > 100_000
    assert tokenised["tokens"] > 100_000
    axes = data_scale.draw(rows).axes
    assert [len(a.lines[0].get_xdata()) for a in axes] == [1, 1, 1, 1]
