"""Several agents answer one prompt, and tell each other what they were told.

    parallel     each agent writes its own text; agent i uses seed + i
    sequential   each agent goes on from what its predecessor wrote
    consensus    one text, each token drawn from the agents' product of experts

        log p(v) = sum_a w_a log p_a(v) - log Z,    w_a = r_a / sum_b r_b

r_a is the agent's order parameter at the token (1 without Kuramoto): an agent whose past is in
phase has more weight (Hinton 2002). In an entanglement network (`entanglement.py`) the agents first
`hear` each other, and mix their order parameters, by the fidelity of their links.

Shapes: A agents, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from entropy_core.checks import nearest, require
from reso_llm.data.conversation import Message
from reso_llm.generation.loop import Job, finish, measured_rows
from reso_llm.generation.options import GenerationOptions, options_of, seed_or_drawn
from reso_llm.generation.prompt import Prompt
from reso_llm.generation.results import GenerationResult
from reso_llm.generation.row import Prediction
from reso_llm.generation.text_engine import TextEngine
from reso_llm.session.entanglement import EntanglementNetwork, concurrence, consensus_logits
from reso_llm.session.episodes import Moment

STRATEGIES = ("parallel", "sequential", "consensus")

SAME = 1e-4
"""Largest difference of two agents' probabilities of a token that is rounding alone."""

ALIKE = "the agents gave every token equal probabilities: this consensus is the text of one of them"


class Agent(TextEngine):
    """An engine among others."""

    def hear(self, teller: TextEngine, network: EntanglementNetwork) -> tuple[Moment, ...]:
        """Remember what another agent was told; returns that, oldest first.

        Each text weighs in the teller's memory now times C of the link (`entanglement.py`), so
        nothing passes at a fidelity up to 1/2, and is read by this agent's own network. It replaces
        what this agent heard from that node before; what the teller itself heard is not told on.
        Raises ValueError for the agent itself, for an agent outside the network, and for one
        without episodic memory.
        """
        told, heard = teller.session, self.session
        if told is heard:
            raise ValueError(f"agent {told.node_id!r} twice: expected another agent to hear")
        for session in (told, heard):
            if session.node_id not in network.nodes:
                raise ValueError(
                    f"agent {session.node_id!r} is not in the network: expected "
                    "agent.session.join(network)"
                )
            session.require_memory("hear")
        share = concurrence(network.fidelity(heard.node_id, told.node_id))
        heard.forget_source(told.node_id)
        if not share:
            return ()
        return tuple(
            self.update_memory(text, share * weight, source=told.node_id)
            for text, weight in told.own_texts()
        )

    def generate_multi_agent(
        self,
        prompt: Prompt,
        other_agents: Sequence["Agent"],
        coordination_strategy: str = "parallel",
        max_length: int = 100,
        *,
        network: EntanglementNetwork | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> list[GenerationResult]:
        """One result for each agent, this one first; after Ctrl-C of those that began.

        Raises ValueError for anything but a list of agents, for an unknown strategy, in a consensus
        for agents whose tokenizers differ and for controllers, and as `hear` and `generate` do.
        """
        listed = isinstance(other_agents, Sequence) and all(
            isinstance(agent, Agent) for agent in other_agents
        )
        require(listed, "other_agents", other_agents, "a list of agents, such as [other]")
        checked, agents = options_of(max_length, options), [self, *other_agents]
        strategy = coordination_strategy
        if strategy not in STRATEGIES:
            hint = nearest(strategy, list(STRATEGIES))
            raise ValueError(
                f"coordination_strategy = {strategy!r}: expected one of {STRATEGIES}{hint}"
            )
        seed = seed_or_drawn(seed, len(agents))
        if network is not None:
            for listener, teller in permutations(agents, 2):
                listener.hear(teller, network)
        if strategy == "consensus":
            return _consensus(agents, prompt, checked, network, seed)
        results = []
        for i, agent in enumerate(agents):
            results += agent.finish(agent.start([prompt], checked, [seed + i]))
            if results[-1].stop_reason == "interrupted":
                break
            if strategy == "sequential":
                prompt = _continued(prompt, results[-1].text)
        return results


def _continued(prompt: Prompt, text: str) -> Prompt:
    if isinstance(prompt, str):
        return prompt + text
    return [*prompt, Message("assistant", text)]


# --- consensus


def _consensus(
    agents: Sequence[TextEngine],
    prompt: Prompt,
    options: GenerationOptions,
    network: EntanglementNetwork | None,
    seed: int,
) -> list[GenerationResult]:
    """Every agent reads the same text, and its traces are of its own distribution.

    A warning says where all distributions were the same.
    """
    if len({agent.tokenizer.fingerprint for agent in agents}) > 1:
        raise ValueError("the agents have different tokenizers: they cannot share tokens")
    if options.controllers:
        raise ValueError("controllers act on one agent's text: use them with another strategy")
    jobs = [agent.start([prompt], options, [seed]) for agent in agents]
    apart = [0.0]
    steps = _agree(agents, jobs, options, network, seed, apart)
    finish(steps, [job.rows[0] for job in jobs])
    results = [agent.close(job)[0] for agent, job in zip(agents, jobs, strict=True)]
    if max(apart) > SAME or not results[0].token_ids:
        return results
    return [replace(result, warnings=(*result.warnings, ALIKE)) for result in results]


def _agree(
    agents: Sequence[TextEngine],
    jobs: Sequence[Job],
    options: GenerationOptions,
    network: EntanglementNetwork | None,
    seed: int,
    apart: list[float],
) -> Iterator[None]:
    """Draw token after token from the product of all distributions; every agent takes it.

    apart receives for each token the largest difference of two agents' probabilities of a word.
    """
    device, shared = agents[0].device, min(agent.vocab_size for agent in agents)
    generator = torch.Generator(device).manual_seed(seed)
    rows = [job.rows[0] for job in jobs]
    while not rows[0].stop_reason:
        predictions = [job.context.predict() for job in jobs]
        measures = [measured_rows(p, [row])[0] for p, row in zip(predictions, rows, strict=True)]
        turns = list(zip(rows, measures, predictions, strict=True))
        for row, measured, prediction in turns:
            row.decide(measured, prediction, 0)  # raises for logits that are no distribution
        logits = torch.stack([p.logits[:, :shared].to(device) for p in predictions])
        p = logits.softmax(-1)
        apart.append(float((p.amax(0) - p.amin(0)).max()))
        mixed = consensus_logits(logits, _trust(agents, predictions, network).to(device))
        said = rows[0].penalised(device)
        token = rows[0].decoding.sampled(rows[0].allowed(mixed), said, options.sampling, generator)
        for row, measured, prediction in turns:
            row.take(token, "", measured, prediction, 0)
        yield


def _trust(
    agents: Sequence[TextEngine],
    predictions: Sequence[Prediction],
    network: EntanglementNetwork | None,
) -> Tensor:
    """Order parameters (A,), as each agent sees them in the network."""
    own = [1.0 if p.coherence is None else p.coherence[0] for p in predictions]
    if network is not None:
        names = [agent.session.node_id for agent in agents]
        states = dict(zip(names, own, strict=True))
        own = [network.share(name, states) for name in names]
    return torch.tensor(own)
