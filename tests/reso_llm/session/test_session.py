"""The session: the README's snippets, a reader for every option, memory that changes the words."""

import copy
import dataclasses
import math
import pickle
import random

import pytest
import torch

from reso_llm.config import (
    AgencyConfig,
    CoherenceGateConfig,
    EchoConfig,
    EntanglementConfig,
    KuramotoConfig,
    PrimeEmbeddingConfig,
    PRSCConfig,
    ResoLLMConfig,
    StabilityConfig,
    TemporalSMFConfig,
    small_config,
)
from reso_llm.generation.engine import Engine
from reso_llm.inference import ResoLLMInference
from reso_llm.model import ResoLLMModel
from reso_llm.session.entanglement import EntanglementNetwork
from reso_llm.session.session import Session
from reso_llm.stages.echo import FIRST_STRENGTHS
from reso_llm.tour.probes import recollected

FACT = "Mara Quill keeps the blue ledger in Torvik."
TINY = dict(
    vocab_size=261, dim=32, num_layers=2, num_heads=2, max_seq_len=64, num_value_embeddings=1
)
STAGES = dict(
    prime_embedding=PrimeEmbeddingConfig(num_places=3),
    kuramoto=KuramotoConfig(num_oscillators=2),
    temporal_smf=TemporalSMFConfig(num_heads=2, num_channels=2),
)


@pytest.fixture
def make_model(byte_tokenizer):
    """A tiny model with the byte tokenizer; every parameter is moved off its start."""

    def make(tokenizer=byte_tokenizer, **changes):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = ResoLLMModel(ResoLLMConfig(**(TINY | STAGES | changes)))
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.1 * torch.randn_like(p))
        model.tokenizer = tokenizer
        return model.eval()

    return make


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- the README's snippets, on random weights -----------------------------------------------------


def test_the_readme_of_the_enhanced_features():
    """With the default tokenizer and configuration, and nothing else set."""
    model = ResoLLMModel(small_config())
    goal = model.create_goal(
        description="Generate coherent technical documentation", goal_type="exploratory"
    )
    model.session.agency.observe("documentation", surprise_nats=9.0, vector=goal.vector)
    lines = [f"{f.type}:{f.target} - intensity: {f.intensity:.2f}" for f in
             model.get_attention_foci()]  # fmt: skip
    assert lines == ["relevance:documentation - intensity: 0.00"]
    lines = [f"{g.description}: {g.progress:.0%}" for g in model.get_active_goals()]
    assert lines == ["Generate coherent technical documentation: 0%"]

    binding = model.bind_concept("mathematics", token_id=42)
    assert binding.prime == 191  # the 43rd
    model.bind_concept("logic", token_id=7)
    both = model.compose(["mathematics", "logic"])
    assert both.product == 191 * 19
    assert model.unbind(both.pattern, "logic").nearest[0].name == "mathematics"

    assert model.get_stability() == 1
    assert model.get_suggested_temperature(current_temp=0.7) == 0.7

    model.update_memory("Important context to remember", importance=1.0)
    model.session.advance(30)
    found = model.recall("which context?")[0]
    assert (found.moment.text, found.moment.time, found.age) == (
        "Important context to remember", 0.0, 30.0,
    )  # fmt: skip
    assert model.update_memory("More of it").time == 30


def test_a_goal_is_the_mean_of_its_tokens_rare_ones_counting_more(make_model):
    model = make_model()
    goal = model.create_goal("Be brief", "maintenance")
    V, total = model.config.vocab_size, 0.0
    for i in model.tokenizer.encode("Be brief"):
        row = model.embedding.weight[i].detach()
        frequency = 1 / ((i + 2.7) * math.log(1 + V / 2.7))  # Zipf's law
        total += row / row.square().mean().sqrt() * 1e-3 / (1e-3 + frequency)
    torch.testing.assert_close(goal.vector, total / total.square().mean().sqrt())
    assert goal.goal_type == "maintenance"
    assert not goal.vector.requires_grad


def test_a_text_that_says_its_words_ends_a_goal(make_model):
    model = make_model()
    goal = model.create_goal("Be brief")
    assert model.session.agency.update_progress("In brief, no.") == (goal,)
    assert model.get_active_goals() == ()


def test_stability_falls_in_a_loop(make_model):
    model = make_model()
    for _ in range(40):
        model.session.stability.observe(1.0, 5)
    assert 0 <= model.get_stability() < 0.5
    assert model.get_suggested_temperature(current_temp=0.7) > 0.7


# --- every option has a reader --------------------------------------------------------------------

COMPONENTS = {
    "agency": [
        ("create_goal", ("Be brief",)), ("get_active_goals", ()), ("get_attention_foci", ()),
    ],
    "prsc": [
        ("bind_concept", ("a", 1)), ("compose", (["a"],)), ("unbind", (torch.ones(2), "a")),
    ],
    "stability": [("get_stability", ()), ("get_suggested_temperature", (0.7,))],
    "temporal_smf": [("update_memory", ("text",)), ("recall", ("text",))],
}  # fmt: skip


NEEDED_BY = [(CoherenceGateConfig, "prsc"), (EchoConfig, "temporal_smf")]
"""The gate does not work without counts; with an echo there is a memory without a field."""


@pytest.mark.parametrize("key", COMPONENTS)
def test_a_disabled_component_says_which_key_enables_it(make_model, key):
    off = dataclasses.replace(getattr(ResoLLMConfig(), key), enabled=False)
    gate, echo = (kind(enabled=key != other) for kind, other in NEEDED_BY)
    model = make_model(**{key: off}, coherence_gate=gate, echo=echo)
    for method, arguments in COMPONENTS[key]:
        with pytest.raises(ValueError, match=rf"^{method} needs {key}.enabled=true"):
            getattr(model, method)(*arguments)
    assert key == "temporal_smf" or not read_before(model)


def read_before(model, query=FACT):
    """(id, weight) of all that the echo of a text which asks for `query` has read."""
    (counts,) = recollected(model, query).stages["echo"].rows
    return counts.buffer.log[: counts.length]


def test_entanglement(make_model):
    """node_id names the agent in a network; two agents need two names."""
    network = EntanglementNetwork()
    for name in ("alpha", "beta"):
        config = EntanglementConfig(enabled=True, node_id=name)
        assert make_model(entanglement=config).session.join(network) == name
    assert network.nodes == ("alpha", "beta")
    with pytest.raises(ValueError, match="exists already"):
        make_model(entanglement=config).session.join(network)
    with pytest.raises(ValueError, match=r"without a name needs entanglement\.enabled=true"):
        make_model().session.join(network)
    session = make_model().session
    assert session.join(network, "gamma") == session.node_id == network.nodes[-1] == "gamma"


def test_agency_max_foci(make_model):
    model = make_model(agency=AgencyConfig(max_foci=2))
    for word in "abc":
        model.session.agency.observe(word, surprise_nats=1.0)
    assert len(model.get_attention_foci()) == 2


def test_agency_max_goals(make_model):
    model = make_model(agency=AgencyConfig(max_goals=2))
    model.create_goal("one")
    model.create_goal("two")
    with pytest.raises(ValueError, match="max_goals = 2"):
        model.create_goal("three")


def test_agency_novelty_weight(make_model):
    def kind(weight):
        model = make_model(agency=AgencyConfig(novelty_weight=weight))
        goal = model.create_goal("Be brief")
        model.session.agency.observe("a", surprise_nats=3.0, vector=goal.vector)
        return model.get_attention_foci()[0].type

    assert (kind(0.1), kind(0.9)) == ("relevance", "novelty")


def test_prsc_coherence_threshold(make_model):
    """Two unrelated tokens under one name have a coherence of 2 / pi."""
    for threshold in (0.5, 0.7):
        model = make_model(prsc=PRSCConfig(coherence_threshold=threshold))
        model.bind_concept("a", 1)
        if threshold < 2 / math.pi:
            assert model.bind_concept("a", 2).token_ids == (1, 2)
        else:
            with pytest.raises(ValueError, match=r"coherence_threshold = 0\.7"):
                model.bind_concept("a", 2)


def test_prsc_max_bindings(make_model):
    model = make_model(prsc=PRSCConfig(max_bindings=1))
    model.bind_concept("a", 1)
    with pytest.raises(ValueError, match="max_bindings = 1"):
        model.bind_concept("b", 2)


def test_prsc_tables(make_model):
    """max_order, max_slots and max_entries bound what the binding memory holds."""

    def entries(**changes):
        model = make_model(prsc=PRSCConfig(**changes))
        rng = random.Random(0)
        model.fit_bindings([rng.randrange(40) for _ in range(500)])
        return len(model.prsc.entry_ids), model.prsc.tail_length

    full, tail = entries(max_order=2)
    assert tail == 1
    assert entries(max_order=1)[0] < full
    assert entries(max_order=2, max_slots=8)[0] < full
    assert entries(max_order=2, max_entries=50)[0] <= 60 < full


def test_memory_num_heads_and_num_channels(make_model):
    model = make_model(temporal_smf=TemporalSMFConfig(num_heads=3, num_channels=5))
    assert model.update_memory(FACT).field.shape == (3, 5, 16)


def test_memory_decay_rate(make_model):
    """weight = importance * exp(-rate * age), on the field and on the texts."""
    model = make_model(temporal_smf=memory_config(memory_decay_rate=0.5))
    moment = model.update_memory(FACT, importance=3.0, time=2.0)
    model.session.advance(4)
    kept = 3 * math.exp(-0.5 * 4)
    assert model.session.clock == 6
    torch.testing.assert_close(
        model.recollected_state().stages["temporal_smf"].field[0], kept * moment.field
    )
    assert [token for token, _ in read_before(model)] == [*model.tokenizer.encode(FACT), -1]
    assert [weight for _, weight in read_before(model)] == pytest.approx(
        [Engine.echo_times * kept] * 44
    )
    assert read_before(model, "What is two plus three?") == []
    assert model.recall("Mara")[0].weight == pytest.approx(kept)


def test_memory_max_moments(make_model):
    model = make_model(temporal_smf=memory_config(max_moments=2))
    for name in ("first mark", "second mark", "third mark"):
        model.update_memory(name)
        model.session.advance(1)
    assert {r.moment.text for r in model.recall("mark")} == {"second mark", "third mark"}


def test_memory_episodic_tagging(make_model):
    """Without it the field is kept, and no text."""
    model = make_model(temporal_smf=memory_config(episodic_tagging=False))
    model.update_memory(FACT)
    state = model.recollected_state()
    assert state.stages["temporal_smf"].field.any()
    assert not read_before(model)
    with pytest.raises(ValueError, match="episodic_tagging"):
        model.recall("Mara")


def memory_config(**changes):
    return dataclasses.replace(STAGES["temporal_smf"], **changes)


def test_stability_auto_temperature_adjust(make_model):
    model = make_model(stability=StabilityConfig(auto_temperature_adjust=False))
    for _ in range(40):
        model.session.stability.observe(1.0, 5)
    assert model.get_suggested_temperature(current_temp=0.7) == 0.7


def test_stability_predictive_horizon(make_model):
    """The longer damage is expected to last, the surer are three surprising tokens damage."""

    def after_three(horizon):
        model = make_model(stability=StabilityConfig(predictive_horizon=horizon))
        for token in range(3):
            model.session.stability.observe(1.0, token, surprise_nats=30.0)
        return model.get_stability()

    assert after_three(30) < after_three(2) < 0.1


def test_stability_lyapunov_threshold(make_model):
    """An exponent of the states above the threshold is a warning."""

    def stability(threshold):
        model = make_model(stability=StabilityConfig(lyapunov_threshold=threshold))
        model.session.stability.take_exponent(0.5)
        model.session.stability.observe(1.0, 5)
        return model.get_stability()

    assert stability(0.1) < 0.1 < 0.9 < stability(2.0)


# --- memory changes what is said ------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("path", ["temporal_smf", "echo"])
def test_update_memory_changes_the_logits(make_model, path):
    """Without the text in the context, by either path alone."""
    model = make_model()
    ids = torch.tensor([model.tokenizer.encode("Where does Mara Qu")])
    before = model(ids, recollected(model, "Where does Mara Quill")).logits
    close(before, model(ids).logits)
    model.update_memory(FACT, importance=2.0)
    empty, told = model.init_state(), recollected(model, "Where does Mara Quill")
    state = empty._replace(stages=empty.stages | {path: told.stages[path]})
    assert (model(ids, state).logits - before).abs().max() > 1e-2
    close(model(ids, empty).logits, before)


@torch.no_grad()
def test_a_stored_text_is_believed_as_much_as_it_is_important(make_model):
    """What follows a context that only it has gains by importance times its strength."""
    model, gains = make_model(echo=EchoConfig(max_order=1)), []
    model.echo.reset_parameters()
    ids = torch.tensor([model.tokenizer.encode("cdefg")])
    (token,) = model.tokenizer.encode("h")
    p = model(ids).logits[0, -1].softmax(-1)
    for importance in (1.0, 3.0):
        model.session = Session(model.config)
        model.update_memory("abcdefgh", importance=importance)
        echo = recollected(model, "abcdefgh").stages["echo"]
        told = model(ids, model.init_state().with_stage("echo", echo)).logits[0, -1].softmax(-1)
        s = FIRST_STRENGTHS[0] * Engine.echo_times * importance
        expected = p / (1 + s)
        expected[token] += s / (1 + s)
        close(told, expected)
        gains.append(told[token])
    assert gains[1] > gains[0]


@torch.no_grad()
def test_carried_state_equals_one_pass(make_model):
    """Contexts reach across the pieces a text is read in; rows of a batch share the memory."""
    model = make_model()
    for text in (FACT, "Mara Vance sold a violin."):
        model.update_memory(text)
    texts = [(model.tokenizer.encode(FACT), 2.0)]
    ids = torch.tensor(
        [model.tokenizer.encode(t) for t in ("Mara Quill keeps", "Elsa Vance sold ")]
    )
    whole = model(ids, model.recollected_state(texts, 2)).logits
    for sizes in ([1] * 16, [5, 11]):
        state, logits = model.recollected_state(texts, 2), []
        for piece in ids.split(sizes, dim=1):
            output = model(piece, state)
            state = output.state
            logits.append(output.logits)
        close(torch.cat(logits, dim=1), whole)
    for row in range(2):
        close(
            model(ids[row : row + 1], model.recollected_state(texts)).logits, whole[row : row + 1]
        )


@torch.no_grad()
def test_a_long_text_is_read_in_pieces(make_model):
    """Each of 63 tokens behind <|bos|>, the field carried on."""
    model = make_model()
    text = "x" * 60 + FACT
    field, ids = None, model.tokenizer.encode(text)
    for start in (0, 63):
        piece = torch.tensor([[model.tokenizer.bos_id, *ids[start : start + 63]]])
        state = model.init_state()
        if field is not None:
            state = state._replace(stages=state.stages | {"temporal_smf": field})
        field = model(piece, state).state.stages["temporal_smf"]
    close(model.update_memory(text).field, field.field[0])
    assert model.train().update_memory(text).field.grad_fn is None
    assert model.training


def test_generation_says_what_memory_holds(make_model, byte_tokenizer):
    """A text that outweighs the model is repeated, also once the context was full."""
    model = make_model(None)
    engine = ResoLLMInference(model, byte_tokenizer, model.config)
    assert model.tokenizer is byte_tokenizer
    plain = engine.generate("Mara Q", max_length=37, temperature=0.0).text
    model.update_memory(FACT, importance=1e9)
    assert engine.generate("Mara Q", max_length=37, temperature=0.0).text == FACT[6:] != plain
    full = engine.generate("Mara Quill. " * 5 + "Mara Q", max_length=37, temperature=0.0)
    assert full.text == FACT[6:]
    assert full.warnings


def test_recall_says_when(make_model):
    model = make_model()
    for time, name in enumerate(["the violin", "the blue ledger", "the teapot"]):
        model.update_memory(f"Mara keeps {name}.", time=10.0 * time)
    model.session.advance(5)
    best, *others = model.recall("Does Mara keep the blue ledger?", count=2)
    assert (best.moment.time, best.age) == (10.0, 15.0)
    assert len(others) == 1
    assert best.resonance > others[0].resonance


def test_forward_leaves_the_session_alone(make_model):
    """Bit by bit; a generation, too, starts from it and does not write to it."""
    model = make_model()
    model.update_memory(FACT)
    model.create_goal("Be brief")
    model.bind_concept("a", 1)
    before, state = pickle.dumps(model.session), recollected(model, FACT)
    kept = read_before(model)
    ids = torch.tensor([model.tokenizer.encode("Mara keeps")])
    with torch.no_grad():
        first = model(ids, state)
        model(ids, first.state)
        again = model(ids, state)
    assert torch.equal(first.logits, again.logits)
    (counts,) = state.stages["echo"].rows
    assert counts.buffer.log[: counts.length] == kept
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    assert pickle.dumps(model.session) == before


def test_a_copied_model_has_its_own_session(make_model):
    model = make_model()
    other = copy.deepcopy(model)
    other.update_memory(FACT)
    assert len(model.session.episodes) == 0
    assert model.session == copy.copy(model.session)
    assert model.session != Session(model.config)


def test_a_model_may_change_its_precision(make_model):
    for tagging in (True, False):
        model = make_model(temporal_smf=memory_config(episodic_tagging=tagging))
        model.update_memory(FACT)
        model.double().update_memory(FACT)
        assert model.session.episodes.field(0.0).dtype == torch.float32
        assert model.recollected_state().stages["temporal_smf"].field.dtype == torch.float64


# --- errors ---------------------------------------------------------------------------------------


def test_text_needs_a_tokenizer(make_model):
    model = make_model(None)
    for call in (model.update_memory, model.create_goal):
        with pytest.raises(ValueError, match=r"4096 tokens .* has 261: set model\.tokenizer"):
            call("text")


def test_what_cannot_be_stored_changes_nothing(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="no token"):
        model.update_memory("")
    with pytest.raises(ValueError, match="importance"):
        model.update_memory(FACT, importance=-1.0)
    with pytest.raises(ValueError, match="time = -1"):
        model.session.advance(-1)
    with pytest.raises(ValueError, match="not all 0"):
        model.create_goal("")
    assert (model.session.clock, len(model.session.episodes)) == (0, 0)
    model.update_memory(FACT, time=5.0)
    with pytest.raises(ValueError, match="not before the latest"):
        model.update_memory(FACT, time=4.0)
