"""Episodic memory: what is recalled and in which order, weights by hand, and forgetting."""

import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from reso_llm import config as configuration
from reso_llm.session.episodes import CLOSE, EpisodicMemory
from reso_llm.session.resonance import WordIndex, features

GUANACO = Path(__file__).resolve().parents[4] / "shared" / "data" / "guanaco_900.jsonl"


def make_memory(**changes):
    return EpisodicMemory(configuration.TemporalSMFConfig(**changes))


def store_all(memory, texts, importance=1.0):
    for time, text in enumerate(texts):
        memory.store(text, [time], importance=importance, time=time)
    return memory


def found(memory, query, now=9.0, **options):
    """The texts that a query recalls, the best first."""
    return [r.moment.text for r in memory.recall(query, now=now, **options)]


# --- recall --------------------------------------------------------------------------------------


def test_real_sentences():
    """Three words in a row of one of 1,000 sentences, among three words of another one.

    The memory finds no fewer than BM25 over the same words (Robertson & Zaragoza 2009).
    """
    if not GUANACO.exists():
        pytest.skip(f"needs {GUANACO}")
    rng = random.Random(0)
    with GUANACO.open(encoding="utf-8") as file:
        rows = [json.loads(line)["text"] for line in file]
    pieces = [s.strip() for row in rows for s in re.split(r"(?<=[.!?])\s+|### \w+:", row)]
    sentences = list(dict.fromkeys(s for s in pieces if 60 < len(s) < 240 and len(s.split()) > 6))
    texts = rng.sample(sentences, 1000)
    memory, counts = store_all(make_memory(), texts), [Counter(features(t)) for t in texts]
    hits = {"ours": 0, "bm25": 0}
    for i in rng.sample(range(1000), 60):
        own, other = texts[i].split(), texts[rng.randrange(1000)].split()
        start = rng.randrange(len(own) - 3)
        query = " ".join(own[start : start + 3] + other[:3])
        hits["ours"] += found(memory, query, now=1000, count=1) == [texts[i]]
        hits["bm25"] += bm25_reference(counts, features(query)) == i
    assert hits["ours"] >= hits["bm25"] - 1
    assert hits["ours"] > 0.4 * 60


def bm25_reference(counts, query, k=1.2, b=0.75):
    """Index of the best of the counts of words; 0 where none holds any."""
    mean = sum(c.total() for c in counts) / len(counts)
    scores = [0.0] * len(counts)
    for feature in query:
        holders = [i for i, c in enumerate(counts) if feature in c]
        idf = math.log(1 + (len(counts) - len(holders) + 0.5) / (len(holders) + 0.5))
        for i in holders:
            n, length = counts[i][feature], counts[i].total()
            scores[i] += idf * n * (k + 1) / (n + k * (1 - b + b * length / mean))
    return max(range(len(counts)), key=scores.__getitem__)


def test_a_recollection_is_that_of_the_index():
    texts, index = ["a tall tree", "a red tree"], WordIndex()
    for number, text in enumerate(texts):
        index.add(number, text)
    first, second = store_all(make_memory(), texts).recall("tall trees in towns", now=3)
    matches = index.matches("tall trees in towns")
    assert [(r.resonance, r.asked_for) for r in (first, second)] == [
        (matches[i].resonance, matches[i].asked_for) for i in (0, 1)
    ]
    assert (first.moment.time, second.moment.time, first.age) == (0, 1, 3)


def test_weight_decides_between_texts_that_match_about_as_well():
    """Importance first, then the newer one; nothing shared: nothing found."""
    memory = make_memory(memory_decay_rate=0.01)
    for time, (text, importance) in enumerate(
        [("tree one", 1.0), ("tree two", 5.0), ("tree three", 1.0)]
    ):
        memory.store(text, [1], importance=importance, time=time)
    assert found(memory, "tree") == ["tree two", "tree three", "tree one"]
    assert found(memory, "tree", count=2) == ["tree two", "tree three"]
    assert found(memory, "river") == found(memory, "") == found(memory, "is it so?") == []


def test_neither_age_nor_importance_hide_a_better_match():
    memory = make_memory(memory_decay_rate=5.0)
    memory.store("the old faint lantern", [1], importance=0.1, time=0)
    memory.store("a new strong lantern", [1], importance=9.0, time=100)
    best, other = memory.recall("the faint lantern", now=200)
    assert best.moment.text == "the old faint lantern"
    assert best.weight < other.weight
    assert other.resonance < CLOSE * best.resonance


# --- weight, decay, forgetting -------------------------------------------------------------------


def test_weight_and_field_decay():
    memory = make_memory(memory_decay_rate=0.1)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 4, 16, generator=generator, dtype=torch.float64)
    first = memory.store("a", [1], importance=2.0, time=0.0, field=a)
    memory.store("no field", [2], importance=50.0, time=1.0)
    memory.store("b", [3], importance=0.5, time=4.0, field=b)
    assert memory.weight(first, 10.0) == pytest.approx(2 * math.exp(-1))
    expected = 2 * math.exp(-1) * a + 0.5 * math.exp(-0.6) * b
    torch.testing.assert_close(memory.field(10.0), expected)
    a.zero_()  # what was stored is a copy
    torch.testing.assert_close(memory.field(10.0), expected)


def test_the_lightest_goes_first():
    """By importance * decay at that moment; among equals the oldest; a new one may be it too."""
    memory = make_memory(max_moments=2, memory_decay_rate=0.1)
    memory.store("strong, old", [1], importance=10.0, time=0)
    memory.store("weak, new", [2], importance=1.0, time=10)  # 10 e^-1 = 3.7 against 1
    memory.store("middle", [3], importance=2.0, time=11)
    assert [m.text for m in memory.moments] == ["strong, old", "middle"]
    memory.store("unimportant", [4], importance=0.0, time=12)
    assert [m.text for m in memory.moments] == ["strong, old", "middle"]
    memory.store("late", [5], importance=2.0, time=20)  # 2 against 10 e^-2 = 1.4, 2 e^-0.9 = 0.8
    assert [m.text for m in memory.moments] == ["strong, old", "late"]
    memory.store("last", [6], importance=2.0, time=60)  # 10 e^-6 = 0.025 against 2 e^-4 = 0.037
    assert [m.text for m in memory.moments] == ["late", "last"]
    assert found(memory, "strong, weak, middle", now=60) == []
    memory.store("equal", [7], importance=2.0, time=60)
    memory.store("equal too", [8], importance=2.0, time=60)
    assert [m.text for m in memory.moments] == ["equal", "equal too"]


def test_forgetting_survives_underflow():
    """exp(-0.01 * 1e7) is 0 for both: the order of the weights must not be lost with it."""
    memory = make_memory(max_moments=2, memory_decay_rate=0.01)
    memory.store("strong", [1], importance=2.0, time=0)
    memory.store("weak", [2], importance=1.0, time=0)
    memory.store("now", [3], importance=1.0, time=1e7)
    assert [m.text for m in memory.moments] == ["strong", "now"]


def test_a_forgotten_moment_leaves_no_trace():
    """The memory is one that never saw it."""
    rng = random.Random(5)
    trees = ["birch", "elm", "fir", "oak", "ash", "yew"]
    texts = [" ".join(rng.choices(trees, k=3)) for _ in range(40)]
    memory, fresh = store_all(make_memory(max_moments=10), texts), make_memory()
    for time, text in list(enumerate(texts))[30:]:
        fresh.store(text, [time], importance=1.0, time=time)
    assert len(memory) == 10
    for query in ("birch elm", "fir", texts[0]):
        pairs = zip(memory.recall(query, now=40), fresh.recall(query, now=40), strict=True)
        assert all(a.moment.time == b.moment.time and a.resonance == b.resonance for a, b in pairs)


def test_without_tagging_only_the_sum_of_the_fields_is_kept():
    tagged, bare = (
        make_memory(episodic_tagging=tagging, memory_decay_rate=0.2) for tagging in (True, False)
    )
    generator = torch.Generator().manual_seed(0)
    for time, importance in [(0.0, 1.0), (3.0, 0.5), (3.0, 2.0), (7.0, 0.0)]:
        field = torch.randn(2, 3, 16, generator=generator, dtype=torch.float64)
        for memory in (tagged, bare):
            memory.store("secret", [1, 2], importance=importance, time=time, field=field)
    torch.testing.assert_close(bare.field(9.0), tagged.field(9.0))
    assert len(bare) == 0
    assert bare.moments == ()
    with pytest.raises(ValueError, match="episodic_tagging"):
        bare.recall("secret", now=9.0)
    with pytest.raises(ValueError, match="field="):
        bare.store("no field", [1], importance=1.0, time=9.0)
    assert "secret" not in repr(vars(bare))


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", [-1.0, math.inf, math.nan])
def test_importance_must_be_a_finite_number_from_0(importance):
    memory = make_memory()
    with pytest.raises(ValueError, match="importance"):
        memory.store("x", [1], importance=importance, time=0)
    assert len(memory) == 0


def test_time_and_shape_and_count_are_checked():
    memory = make_memory()
    assert memory.field(0.0) is None
    memory.store("x", [1], importance=1.0, time=5.0, field=torch.ones(2, 3, 16))
    for time in (4.9, math.nan, math.inf):
        with pytest.raises(ValueError, match="time"):
            memory.store("y", [1], importance=1.0, time=time)
        with pytest.raises(ValueError, match="time"):
            memory.recall("x", now=time)
        with pytest.raises(ValueError, match="time"):
            memory.field(time)
    with pytest.raises(ValueError, match=r"\(3, 16\).*\(2, 3, 16\)"):
        memory.store("y", [1], importance=1.0, time=6.0, field=torch.ones(3, 16))
    with pytest.raises(ValueError, match="count"):
        memory.recall("x", now=6.0, count=0)
    assert len(memory) == 1


def test_moments_stored_again_give_the_same_memory():
    """How a session is saved and loaded."""
    memory = make_memory(max_moments=3)
    for time in range(5):
        field = torch.full((1, 2, 16), float(time))
        memory.store(f"text {time}", [time, 7], importance=1 + time, time=time, field=field)
    again = make_memory(max_moments=3)
    for m in memory.moments:
        again.store(m.text, m.token_ids, importance=m.importance, time=m.time, field=m.field)
    torch.testing.assert_close(again.field(9.0), memory.field(9.0))
    a, b = (m.recall("text 3", now=9)[0] for m in (again, memory))
    assert (a.moment.text, a.resonance, a.weight) == (b.moment.text, b.resonance, b.weight)


def test_a_source_is_forgotten_by_itself():
    """What stays is recalled, and forgotten by its weight, as if the source had never told."""
    memory, other = make_memory(max_moments=3), make_memory(max_moments=3)
    texts = [("heavy", "", 3.0), ("told", "node", 9.0), ("light", "", 1.0)]
    for time, (text, source, importance) in enumerate(texts):
        for kept in (memory, other) if not source else (memory,):
            kept.store(text, [time, 7], importance=importance, time=time, source=source)
    memory.forget_source("node")
    assert [m.text for m in memory.moments] == ["heavy", "light"]
    found, expected = (m.recall("heavy light", now=3) for m in (memory, other))
    assert [r.resonance for r in found] == [r.resonance for r in expected]
    for time in (5, 6):
        memory.store("new", [8], importance=2.0, time=time)
    assert [m.text for m in memory.moments] == ["heavy", "new", "new"]
    with pytest.raises(ValueError, match="to hear other agents"):
        make_memory(episodic_tagging=False).forget_source("node")


def test_storing_in_a_full_memory_does_not_look_at_every_moment(monkeypatch):
    """Guards O(n) a text: the lightest moment is found from the top of a heap."""
    asked = []
    original = EpisodicMemory._lightness
    monkeypatch.setattr(
        EpisodicMemory, "_lightness", lambda self, m: (asked.append(m), original(self, m))[1]
    )
    memory = EpisodicMemory(configuration.TemporalSMFConfig(max_moments=50))
    rng = random.Random(0)
    kept = {}
    for time in range(200):
        importance = rng.choice([0.0, 0.5, 1.0, 2.0])
        memory.store(str(time), [time % 7], importance=importance, time=float(time))
        weight = math.log(importance) if importance else -math.inf
        kept[time] = (weight + 0.01 * time, time)
        if len(kept) > 50:
            del kept[min(kept, key=kept.get)]
    assert [int(m.text) for m in memory.moments] == sorted(kept)
    assert len(asked) == 200, "once for each text stored"
