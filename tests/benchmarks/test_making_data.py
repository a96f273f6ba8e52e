"""make data: what it makes has its sha256, what is there is left alone, what fails is named."""

import hashlib
import urllib.request

import pytest

from benchmarks.making import data
from reso_llm.data.errors import DataError

ROWS = data.REPOSITORY.parent / "shared" / "data" / "guanaco_900.jsonl"


@pytest.fixture
def sources(monkeypatch):
    """Small sources in the place of those of the network, with their own sha256."""
    lines = [b'{"text": "row %d"}\n' % n for n in range(900)]
    contents = {
        "tinyshakespeare.txt": b"Speak, speak.",
        "guanaco_900.jsonl": b"".join(lines),
        "train.jsonl": b"".join(lines[:810]),
        "heldout.jsonl": b"".join(lines[810:]),
        "clean.jsonl": b"".join(lines[810:855]),
        "unseen.jsonl": b"".join(lines[855:]),
    }
    hashes = {name: hashlib.sha256(text).hexdigest() for name, text in contents.items()}
    monkeypatch.setattr(data, "SHA256", hashes)
    monkeypatch.setattr(data, "shakespeare", lambda: contents["tinyshakespeare.txt"])
    monkeypatch.setattr(data, "guanaco", lambda: contents["guanaco_900.jsonl"])
    return contents


def test_everything_is_made_and_made_once(sources, tmp_path, monkeypatch, capsys):
    data.prepare(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == sources
    assert capsys.readouterr().out.count(": made") == 6
    monkeypatch.setattr(data, "shakespeare", lambda: pytest.fail("downloaded again"))
    data.prepare(tmp_path)
    assert capsys.readouterr().out.count(": there already") == 6


def test_another_file_of_the_name_is_refused_and_kept(sources, tmp_path, capsys):
    (tmp_path / "heldout.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"^heldout\.jsonl could not be had"):
        data.prepare(tmp_path)
    assert (tmp_path / "heldout.jsonl").read_text() == "mine"
    assert "heldout.jsonl: the file is another one; remove it" in capsys.readouterr().err


def test_a_source_that_changed_writes_nothing(sources, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "shakespeare", lambda: b"Speak!")
    with pytest.raises(DataError, match=r"^tinyshakespeare\.txt could not be had"):
        data.prepare(tmp_path)
    assert "tinyshakespeare.txt: the source has changed" in capsys.readouterr().err
    assert len([*tmp_path.iterdir()]) == 5, "the others are made all the same"


def test_without_a_network_it_says_what_to_put_where(tmp_path, monkeypatch, capsys):
    def refuse(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"put tinyshakespeare\.txt and guanaco_900\.jsonl into"):
        data.prepare(tmp_path / "data")
    told = capsys.readouterr().err
    assert "tinyshakespeare.txt: no route to host" in told
    assert "guanaco_900.jsonl: timdettmers/openassistant-guanaco: not in the local cache" in told
    assert not any((tmp_path / "data").iterdir())


@pytest.mark.skipif(not ROWS.is_file(), reason=f"needs {ROWS.name}")
def test_rows_are_found_in_any_order_among_others(tmp_path, monkeypatch):
    hub = tmp_path / "openassistant_best_replies_train.jsonl"
    lines = ROWS.read_text(encoding="utf-8").splitlines()
    hub.write_text("\n".join(['{"text": "another"}', *reversed(lines)]), encoding="utf-8")
    monkeypatch.setattr(data, "dataset_files", lambda *args, **kwargs: {hub.name: hub})
    assert hashlib.sha256(data.guanaco()).hexdigest() == data.SHA256["guanaco_900.jsonl"]
    hub.write_text("\n".join(lines[1:]), encoding="utf-8")
    with pytest.raises(ValueError, match="1 of the 900 rows are not in"):
        data.guanaco()
