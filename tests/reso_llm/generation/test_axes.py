"""The semantic axes: what each tied name reads of a text, on the shipped model and on measures."""

import copy
import math
import re
from pathlib import Path

import pytest

from reso_llm.generation.axes import AXES, TextMeasures, axes_of, described
from reso_llm.inference import ResoLLMInference

NAMES = """
coherence identity duality harmony truth consciousness beauty compassion intention wisdom creativity
stability complexity connection presence transcendence
"""
TIED = """
coherence identity intention creativity stability complexity connection presence
"""
ASKED = [("user", "Where does my sister Olga live?")]
STORY = "We went for a long walk in the mountains. It was great, and we saw a lot of snow."
MEASURES = TextMeasures(
    order=[0.2, 0.4], entropy_nats=[1.0, 2.0], surprise_nats=[0.0, math.inf], warning=[0.1, 0.3],
    num_read=6, goal_shares=[0.2, 0.6], resonance=0.5, recency=0.25,
)  # fmt: skip


@pytest.fixture(scope="module")
def shipped():
    return ResoLLMInference.from_pretrained()


@pytest.fixture
def engine(shipped):
    """The shipped model with a session of its own."""
    before = shipped.session
    shipped.session = copy.deepcopy(before)
    yield shipped
    shipped.session = before


def test_the_names_are_the_sixteen_of_the_readme_and_half_are_tied():
    assert list(AXES) == NAMES.split()
    assert [name for name, axis in AXES.items() if axis is not None] == TIED.split()


def test_each_value_is_its_signal():
    values = axes_of(MEASURES)
    assert values == pytest.approx(
        dict(coherence=0.3, identity=0.25, intention=0.6, creativity=0.5, stability=0.8,
             complexity=1.5, connection=0.5, presence=0.25)
    )  # fmt: skip


def test_what_a_text_does_not_define_is_left_out():
    """Guards an axis that shows a number where nothing was measured."""
    bare = MEASURES._replace(order=[], warning=[], goal_shares=[], resonance=0.0)
    assert list(axes_of(bare)) == ["identity", "creativity", "complexity", "connection"]
    assert axes_of(MEASURES._replace(surprise_nats=[])) == {}


def test_free_names_show_nothing_and_tied_ones_their_unit_and_reason():
    shown = dict(described({"complexity": 1.5, "truth": 1.0}))
    assert shown["truth"] == "free: tied to no signal"
    assert shown["complexity"].startswith("1.50, nats a token: entropy before each token; ")
    assert shown["coherence"].startswith("not known, 0 to 1: ")


def test_the_document_has_the_same_signals():
    document = Path(__file__).parents[3] / "docs" / "concepts.md"
    rows = re.findall(r"^\| (\w+) \| (.+) \| (.+) \| (.+) \|$", document.read_text(), re.MULTILINE)
    tied = [(name, *axis[:3]) for name, axis in AXES.items() if axis is not None]
    assert [row for row in rows if row[0] in AXES] == tied
    free = re.search(r"Free: (.+?)\.", document.read_text()).group(1).split(", ")
    assert free == [name for name, axis in AXES.items() if axis is None]


# --- a text that should move an axis moves it, on the shipped model


def axis(engine, name, text, prompt=""):
    return engine.read(text, prompt).axes[name]


def test_coherence_is_higher_in_a_text_that_stays_with_its_words(engine):
    assert axis(engine, "coherence", "It was great. " * 6) > axis(engine, "coherence", STORY)


def test_identity_is_higher_in_a_longer_reply(engine):
    assert axis(engine, "identity", STORY, ASKED) > axis(engine, "identity", "In Oslo.", ASKED)


def test_intention_is_higher_in_a_text_about_the_goal(engine):
    engine.create_goal("mountains, snow and walks", "maintenance")
    other = "I like rock music. My favorite band plays the guitar."
    assert axis(engine, "intention", STORY) > axis(engine, "intention", other) + 0.1


def test_creativity_is_higher_where_words_are_not_expected(engine):
    odd = "We went for a violet walk in the teapots. It was seven, and we saw a lot of verbs."
    assert axis(engine, "creativity", odd) > axis(engine, "creativity", STORY)


def test_stability_is_lower_where_a_text_falls_apart(engine):
    broken = "We went for a long walk. xq zzv kkj wpf vvq jx qqz xkw zv pq jjk wz xq vk qz."
    assert axis(engine, "stability", broken) < axis(engine, "stability", STORY) - 0.1


def test_complexity_is_lower_where_one_sentence_comes_again(engine):
    assert axis(engine, "complexity", "It was great. " * 6) < axis(engine, "complexity", STORY)


def test_connection_is_higher_where_the_question_was_answered_before(engine):
    engine.update_memory("My sister Olga lives in Oslo.")
    other = [("user", "What should I cook for dinner?")]
    assert axis(engine, "connection", "In Oslo.", ASKED) > 0.5
    assert axis(engine, "connection", "In Oslo.", other) == 0


def test_presence_fades_with_the_age_of_what_is_recalled(engine):
    engine.update_memory("My sister Olga lives in Oslo.")
    now = axis(engine, "presence", "In Oslo.", ASKED)
    engine.session.advance(100.0)
    assert (now, axis(engine, "presence", "In Oslo.", ASKED)) == (1, pytest.approx(math.exp(-1)))


# --- reading


def test_reading_a_written_text_measures_what_writing_it_did(engine):
    written = engine.generate("We went", 4, seed=3, temperature=0)
    known = (engine.session.clock, engine.session.get_attention_foci())
    monitor = engine.session.stability
    read = engine.read(written.text, "We went")
    ids = engine.tokenizer.encode(written.text)
    assert tuple(ids) == written.token_ids, "another text would be measured"
    assert read.entropy_trace == pytest.approx(written.entropy_trace, abs=1e-4)
    assert read.axes == pytest.approx(written.axes, abs=1e-4)
    assert known == (engine.session.clock, engine.session.get_attention_foci())
    assert engine.session.stability is monitor


def test_a_text_without_a_token_is_refused(engine):
    with pytest.raises(ValueError, match="text = '': expected a text with a token"):
        engine.read("")
