"""Several agents: each strategy against the same thing done by hand."""

import math

import pytest
import torch
from conftest import FULL

from reso_llm.config import EntanglementConfig
from reso_llm.data.conversation import Message
from reso_llm.decoding.controllers import SRB
from reso_llm.generation import multi_agent
from reso_llm.inference import ResoLLMInference
from reso_llm.session.entanglement import EntanglementNetwork
from reso_llm.tokenizer import ResoTokenizer

HOT = dict(temperature=5.0, seed=3)  # cooler texts of a random model end at once
NODES = ("alpha", "beta")


@pytest.fixture
def make_agent(tiny_model, byte_tokenizer):
    def make(seed=0, node_id="node", tokenizer=byte_tokenizer, entangled=True, **changes):
        changes = dict(stages=FULL, vocab_size=264, max_seq_len=48) | changes
        node = EntanglementConfig(node_id=node_id)
        stages = (*changes.pop("stages"), *(("entanglement",) if entangled else ()))
        model = tiny_model(seed, stages=stages, entanglement=node, **changes)
        return named(ResoLLMInference(model, tokenizer, model.config), node_id, entangled)

    return make


def named(engine, node_id, entangled):
    """The fixture's configuration forgets which node a component was."""
    if entangled:
        engine.model.session.node_id = node_id
    return engine


@pytest.fixture
def pair(make_agent):
    return [make_agent(seed, node) for seed, node in enumerate(NODES)]


def network_of(agents, fidelity):
    network = EntanglementNetwork()
    for agent in agents:
        agent.model.session.join(network)
    network.link(*NODES, fidelity)
    return network


def test_in_parallel_each_writes_as_it_would_alone(pair):
    results = pair[0].generate_multi_agent("Once upon", pair[1:], "parallel", 12, **HOT)
    for i, (agent, result) in enumerate(zip(pair, results, strict=True)):
        alone = agent.generate("Once upon", 12, temperature=5.0, seed=3 + i)
        assert (result.token_ids, result.seed) == (alone.token_ids, alone.seed)
    assert results[0].token_ids != results[1].token_ids


def test_in_sequence_each_goes_on_from_the_one_before(pair):
    first, second = pair[0].generate_multi_agent("Once upon", pair[1:], "sequential", 12, **HOT)
    onward = pair[1].generate("Once upon" + first.text, 12, temperature=5.0, seed=4)
    assert second.token_ids == onward.token_ids
    assert second.prompt_tokens == onward.prompt_tokens > first.prompt_tokens
    chat = [("user", "Hi")]
    first, second = pair[0].generate_multi_agent(chat, pair[1:], "sequential", 12, **HOT)
    told = [*chat, Message("assistant", first.text)]
    assert second.token_ids == pair[1].generate(told, 12, temperature=5.0, seed=4).token_ids


@pytest.mark.parametrize("penalty", [1.0, 3.0])
def test_agents_of_one_mind_agree_on_what_one_would_say(make_agent, penalty):
    """With a penalty too, which is no function of the distribution alone."""
    agents = [make_agent(0, node, vocab_size=261) for node in NODES]
    options = HOT | {"repetition_penalty": penalty}
    results = agents[0].generate_multi_agent("Once upon", agents[1:], "consensus", 14, **options)
    alone = agents[0].generate("Once upon", 14, **options)
    for result in results:
        assert result.token_ids == alone.token_ids
        assert result.entropy_trace == pytest.approx(alone.entropy_trace, abs=1e-4)
        assert (result.text, result.stop_reason) == (alone.text, alone.stop_reason)
        assert len(result.coherence_trace) == result.tokens_generated


@torch.no_grad()
def consensus_reference(agents, ids, count, weigh):
    """Greedy, by full passes: the most probable token of the weighted product."""
    tokenizer, new, ids = agents[0].tokenizer, [], list(ids)
    while len(new) < count and not {tokenizer.end_id, tokenizer.bos_id} & set(new):
        outputs = [agent.model(torch.tensor([ids])) for agent in agents]
        order = weigh([out.diagnostics["coherence"][0, -1].item() for out in outputs])
        total = 0.0
        for out, r in zip(outputs, order, strict=True):
            logits = out.logits[0, -1, : tokenizer.vocab_size].clone()
            logits[[1, 2, 3]] = -math.inf
            total = total + r * logits.softmax(-1).double()[[0, *range(4, 261)]].log()
        new.append([0, *range(4, 261)][int(total.argmax())])
        ids.append(new[-1])
    return new


@pytest.mark.parametrize("fidelity", [None, 0.8])
@pytest.mark.parametrize("prompt", ["Once", "abcdef"])
def test_a_consensus_is_the_product_weighted_by_coherence(pair, prompt, fidelity):
    """In a network each agent's order parameter is what it sees of both."""
    network = None if fidelity is None else network_of(pair, fidelity)

    def weigh(own):
        if network is None:
            return own
        c = 2 * fidelity - 1
        return [(own[0] + c * own[1]) / (1 + c), (own[1] + c * own[0]) / (1 + c)]

    results = pair[0].generate_multi_agent(
        prompt, pair[1:], "consensus", 12, network=network, temperature=0.0
    )
    expected = consensus_reference(pair, pair[0].prompt_ids(prompt), 12, weigh)
    assert [list(result.token_ids) for result in results] == [expected] * 2


def test_the_coherence_of_an_agent_counts(pair, monkeypatch):
    """One whose past is out of phase is not heard."""

    def said(weights):
        monkeypatch.setattr(multi_agent, "_trust", lambda *args: torch.tensor(weights))
        return pair[0].generate_multi_agent("x", pair[1:], "consensus", 8, temperature=0.0)[0]

    for i, weights in enumerate(([1.0, 0.0], [0.0, 1.0])):
        alone = pair[i].generate("x", 8, temperature=0.0)
        assert said(weights).token_ids == alone.token_ids


def test_an_agent_without_oscillators_counts_in_full(make_agent):
    agents = [make_agent(0, stages=()), make_agent(1, "beta", stages=())]
    results = agents[0].generate_multi_agent("x", agents[1:], "consensus", 6, **HOT)
    assert results[0].coherence_trace == ()
    assert results[0].token_ids == results[1].token_ids


def test_agents_of_several_sizes_share_their_tokens(make_agent):
    """A model may have ids without a token, and more of them than another."""
    agents = [make_agent(0, vocab_size=261), make_agent(1, "beta", vocab_size=270)]
    results = agents[0].generate_multi_agent("x", agents[1:], "consensus", 8, **HOT)
    assert results[0].token_ids == results[1].token_ids
    assert max(results[0].token_ids) < 261


def heard(agent):
    return [(m.text, m.source, m.importance) for m in agent.model.session.episodes.moments]


def test_an_agent_hears_what_another_was_told(pair):
    """By concurrence of the link, as it weighs now, with its source; not what that one heard."""
    network, (alpha, beta) = network_of(pair, 0.75), pair
    alpha.model.update_memory("red sky", importance=4.0)
    alpha.model.update_memory("told by a third", source="gamma")
    beta.model.update_memory("own")
    alpha.model.session.advance(100)
    decay = math.exp(-100 * alpha.config.temporal_smf.memory_decay_rate)
    moments = beta.hear(alpha, network)
    expected = ("red sky", "alpha", pytest.approx(0.5 * 4 * decay))
    assert heard(beta) == [("own", "", 1.0), expected]
    assert list(moments) == [m for m in beta.model.session.episodes.moments if m.source]
    alone = beta.model._field_after(beta.tokenizer.encode("red sky"))
    assert torch.equal(moments[0].field, alone)  # read by its own network
    assert beta.model.recall("red sky")[0].moment.source == "alpha"


@pytest.mark.parametrize("fidelity", [0.25, 0.5])
def test_a_separable_pair_tells_nothing(pair, fidelity):
    pair[0].model.update_memory("red sky")
    assert pair[1].hear(pair[0], network_of(pair, fidelity)) == ()
    assert heard(pair[1]) == []


def test_hearing_again_replaces_what_was_heard(pair):
    network, (alpha, beta) = network_of(pair, 0.75), pair
    alpha.model.update_memory("red sky")
    for fidelity, importance in ((0.75, 0.5), (1.0, 1.0)):
        network.link(*NODES, fidelity)
        beta.hear(alpha, network)
        beta.hear(alpha, network)
        assert heard(beta) == [("red sky", "alpha", pytest.approx(importance))]
    network.link(*NODES, 0.5)
    beta.hear(alpha, network)
    assert heard(beta) == []


def test_agents_in_a_network_hear_each_other_first(make_agent):
    """As if each had heard the other by hand; without a link each writes as alone."""

    def traces(fidelity, by_hand=False):
        agents = [make_agent(0, node) for node in NODES]
        for agent, fact in zip(agents, ("one thing", "the other has read this"), strict=True):
            agent.model.update_memory(fact, importance=5.0)
        network = None if fidelity is None else network_of(agents, fidelity)
        if by_hand:
            agents[1].hear(agents[0], network)
            agents[0].hear(agents[1], network)
            network = None
        results = agents[0].generate_multi_agent(
            "x", agents[1:], "parallel", 6, network=network, **HOT
        )
        return [result.entropy_trace for result in results]

    assert traces(0.5) == traces(None)
    assert traces(1.0) == traces(1.0, by_hand=True)
    assert all(map(lambda a, b: a != b, traces(1.0), traces(None)))


def test_a_consensus_of_equals_says_so(make_agent):
    equal = [make_agent(0, node) for node in NODES]
    for result in equal[0].generate_multi_agent("x", equal[1:], "consensus", 6, **HOT):
        assert result.warnings[-1] == multi_agent.ALIKE
    equal[1].model.update_memory("x red sky x", importance=5.0)
    unlike = [make_agent(0), make_agent(1, "beta")]
    for agents in (equal, unlike):
        for result in agents[0].generate_multi_agent("x", agents[1:], "consensus", 6, **HOT):
            assert multi_agent.ALIKE not in result.warnings


def test_ctrl_c_stops_all_of_them(pair, monkeypatch):
    from reso_llm.decoding.row import Row

    def interrupted(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Row, "observe", interrupted)
    for strategy, count in (("parallel", 1), ("sequential", 1), ("consensus", 2)):
        results = pair[0].generate_multi_agent("x", pair[1:], strategy, 6, **HOT)
        assert [r.stop_reason for r in results] == ["interrupted"] * count


def test_a_seed_is_drawn_and_reported(pair):
    first = pair[0].generate_multi_agent("x", pair[1:], "consensus", 6, temperature=5.0)
    again = pair[0].generate_multi_agent(
        "x", pair[1:], "consensus", 6, temperature=5.0, seed=first[0].seed
    )
    assert [r.token_ids for r in again] == [r.token_ids for r in first]


def test_what_does_not_fit_is_refused(pair, make_agent):
    def ask(others, strategy="parallel", **options):
        return pair[0].generate_multi_agent("x", others, strategy, 4, **options)

    for others in (3, [3], "x", [type(pair[0])], None):
        with pytest.raises(ValueError, match=r"other_agents = .*: expected a list of agents"):
            ask(others)
    with pytest.raises(ValueError, match="did you mean consensus"):
        ask(pair[1:], "consensu")
    other = ResoTokenizer.train(["aabb " * 20], 263)
    with pytest.raises(ValueError, match="different tokenizers"):
        ask([make_agent(1, "beta", tokenizer=other)], "consensus")
    with pytest.raises(ValueError, match="controllers act on one agent"):
        ask(pair[1:], "consensus", controllers=[SRB()])
    with pytest.raises(ValueError, match=r"'beta'.* not in the network"):
        ask(pair[1:], network=EntanglementNetwork(["alpha"]))
    with pytest.raises(ValueError, match="temperature"):
        ask(pair[1:], temperature=-1.0)
    with pytest.raises(ValueError, match="expected another agent to hear"):
        ask(pair[:1], network=EntanglementNetwork(NODES))
    bare = make_agent(1, "beta", stages=())
    with pytest.raises(ValueError, match="hear needs temporal_smf"):
        ask([bare], network=EntanglementNetwork(NODES))
