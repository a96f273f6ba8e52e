"""Several agents answer one prompt: the strategies of `ResoLLMInference.generate_multi_agent`.

    parallel     each agent writes its own text; agent i uses seed + i
    sequential   each agent goes on from what its predecessor wrote
    consensus    one text, each token drawn from the agents' product of experts

        log p(v) = sum_a w_a log p_a(v) - log Z,    w_a = r_a / sum_b r_b

r_a is the agent's order parameter at the token (1 without Kuramoto): an agent whose past is in
phase has more weight (Hinton 2002). In an entanglement network the agents begin with a mixture of
their sedenion fields, and mix their order parameters, by the fidelity of their links
(`entanglement.py`); without one each keeps its own.

Shapes: A agents, V vocabulary, D width.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from entropy_core.checks import nearest
from reso_llm.data.conversation import Message
from reso_llm.decoding.sampling import sample
from reso_llm.generation.engine import Engine, Job
from reso_llm.generation.loop import finish, measured_rows
from reso_llm.generation.options import GenerationOptions, seed_or_drawn
from reso_llm.generation.prompt import Prompt
from reso_llm.generation.results import GenerationResult
from reso_llm.generation.row import Prediction
from reso_llm.session.entanglement import EntanglementNetwork, consensus_logits

STRATEGIES = ("parallel", "sequential", "consensus")


def coordinate(
    agents: Sequence[Engine],
    prompt: Prompt,
    strategy: str,
    options: GenerationOptions,
    network: EntanglementNetwork | None,
    seed: int | None,
) -> list[GenerationResult]:
    """One result for each agent, after Ctrl-C of those that began; see the module's docstring.

    Raises ValueError for an unknown strategy, agents whose tokenizers or fields differ, agents
    outside the network, and controllers in a consensus.
    """
    if strategy not in STRATEGIES:
        hint = nearest(strategy, list(STRATEGIES))
        raise ValueError(
            f"coordination_strategy = {strategy!r}: expected one of {STRATEGIES}{hint}"
        )
    if len({agent.tokenizer.fingerprint for agent in agents}) > 1:
        raise ValueError("the agents have different tokenizers: they cannot share tokens")
    seed = seed_or_drawn(seed, len(agents))
    fields = _shared_fields(agents, network)
    if strategy == "consensus":
        return _consensus(agents, prompt, options, network, fields, seed)
    results = []
    for i, (agent, field) in enumerate(zip(agents, fields, strict=True)):
        results += agent.finish(agent.start([prompt], options, [seed + i], field=field))
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
    agents: Sequence[Engine],
    prompt: Prompt,
    options: GenerationOptions,
    network: EntanglementNetwork | None,
    fields: Sequence[Tensor | None],
    seed: int,
) -> list[GenerationResult]:
    """Every agent reads the same text, and its traces are of its own distribution."""
    if options.controllers:
        raise ValueError("controllers act on one agent's text: use them with another strategy")
    jobs = [
        agent.start([prompt], options, [seed], field=field)
        for agent, field in zip(agents, fields, strict=True)
    ]
    finish(_agree(agents, jobs, options, network, seed), [job.rows[0] for job in jobs])
    return [agent.close(job)[0] for agent, job in zip(agents, jobs, strict=True)]


def _agree(
    agents: Sequence[Engine],
    jobs: Sequence[Job],
    options: GenerationOptions,
    network: EntanglementNetwork | None,
    seed: int,
) -> Iterator[None]:
    """Draw token after token from the product of all distributions; every agent takes it."""
    device, shared = agents[0].device, agents[0].tokenizer.vocab_size
    generator = torch.Generator(device).manual_seed(seed)
    rows = [job.rows[0] for job in jobs]
    while not rows[0].stop_reason:
        predictions = [job.context.predict() for job in jobs]
        measures = [measured_rows(p, [row])[0] for p, row in zip(predictions, rows, strict=True)]
        turns = list(zip(rows, measures, predictions, strict=True))
        for row, measured, prediction in turns:
            row.decide(measured, prediction, 0)  # raises for logits that are no distribution
        logits = torch.stack([p.logits[:, :shared].to(device) for p in predictions])
        mixed = consensus_logits(logits, _trust(agents, predictions, network).to(device))
        token = int(sample(mixed, rows[0].penalised(device), options.sampling, generator))
        for row, measured, prediction in turns:
            row.take(token, "", measured, prediction, 0)
        yield


def _trust(
    agents: Sequence[Engine],
    predictions: Sequence[Prediction],
    network: EntanglementNetwork | None,
) -> Tensor:
    """Order parameters (A,), as each agent sees them in the network."""
    seen = [prediction.coherence[0] for prediction in predictions]
    own = [1.0 if math.isnan(coherence) else coherence for coherence in seen]
    if network is not None:
        names = [agent.model.session.node_id for agent in agents]
        states = dict(zip(names, own, strict=True))
        own = [network.share(name, states) for name in names]
    return torch.tensor(own)


# --- entanglement


def _shared_fields(
    agents: Sequence[Engine], network: EntanglementNetwork | None
) -> list[Tensor | None]:
    """The field (H,C,S) each agent starts with; None where the agent uses its own."""
    if network is None:
        return [None] * len(agents)
    names = [agent.model.session.node_id for agent in agents]
    unknown = [name for name in names if name not in network.nodes]
    if unknown:
        raise ValueError(
            f"agents {unknown} are not in the network: expected agent.model.session.join(network)"
        )
    fields = [_own_field(agent) for agent in agents]
    if any(field is None for field in fields):
        raise ValueError("a network shares sedenion fields: every agent needs temporal_smf")
    states = dict(zip(names, fields, strict=True))
    return [network.share(name, states) for name in names]


def _own_field(agent: Engine) -> Tensor | None:
    state = agent.model.recollected_state().stages.get("temporal_smf")
    return None if state is None else state.field[0]
