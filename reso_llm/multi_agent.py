"""Several agents, one prompt: what `ResoLLMInference.generate_multi_agent` does.

    parallel     each agent writes its own text; agent i uses seed + i
    sequential   each agent goes on from what its predecessor wrote
    consensus    one text, each token drawn from the agents' product of experts

        log p(v) = sum_a w_a log p_a(v) - log Z,    w_a = r_a / sum_b r_b

r_a is the agent's order parameter at the token (1 without Kuramoto): whose past is in phase has
more say (Hinton 2002). In an entanglement network the agents begin with a mixture of their memory
fields, and mix their order parameters, by the fidelity of their links (`entanglement.py`); without
one each keeps its own.

Shapes: A agents, V vocabulary, D width.
"""

import math
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reso_llm.config import nearest
from reso_llm.context import Context, Read
from reso_llm.conversation import Message
from reso_llm.decoding.sampling import sample
from reso_llm.entanglement import EntanglementNetwork, consensus_logits
from reso_llm.generation import GenerationOptions, RowRun, measured_rows, write
from reso_llm.results import GenerationResult, summarised

if TYPE_CHECKING:
    from reso_llm.inference import Prompt, ResoLLMInference

STRATEGIES = ("parallel", "sequential", "consensus")


def coordinate(
    agents: Sequence["ResoLLMInference"],
    prompt: "Prompt",
    strategy: str,
    options: GenerationOptions,
    network: EntanglementNetwork | None,
    seed: int | None,
) -> list[GenerationResult]:
    """One result for each agent; see the module's docstring.

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
    seed = secrets.randbelow(2**31) if seed is None else seed
    fields = _shared_fields(agents, network)
    if strategy == "consensus":
        return _consensus(agents, prompt, options, network, fields, seed)
    results = []
    for i, (agent, field) in enumerate(zip(agents, fields, strict=True)):
        results.append(_alone(agent, prompt, options, field, seed + i))
        if strategy == "sequential":
            prompt = _continued(prompt, results[-1].text)
    return results


def _alone(
    agent: "ResoLLMInference",
    prompt: "Prompt",
    options: GenerationOptions,
    field: Tensor | None,
    seed: int,
) -> GenerationResult:
    started = time.perf_counter()
    context = agent.context([agent.prompt_ids(prompt)], field)
    run = agent.row_run(options, seed, agent.model.session.stability)
    for _ in write(context, [run], agent.unusable_ids):
        pass
    return _noted(agent, context, run, started)


def _continued(prompt: "Prompt", text: str) -> "Prompt":
    if isinstance(prompt, str):
        return prompt + text
    return [*prompt, Message("assistant", text)]


def _noted(
    agent: "ResoLLMInference", context: Context, run: RowRun, started: float
) -> GenerationResult:
    result = summarised(agent.model, agent.tokenizer, context, 0, run, started)
    agent.model.session.advance()
    return result


# --- consensus


@torch.inference_mode()
def _consensus(
    agents: Sequence["ResoLLMInference"],
    prompt: "Prompt",
    options: GenerationOptions,
    network: EntanglementNetwork | None,
    fields: Sequence[Tensor | None],
    seed: int,
) -> list[GenerationResult]:
    """Each agent watches the same text with its own distribution; the traces are its own."""
    if options.controllers:
        raise ValueError("controllers act on one agent's text: use them with another strategy")
    started = time.perf_counter()
    contexts = [
        agent.context([agent.prompt_ids(prompt)], field)
        for agent, field in zip(agents, fields, strict=True)
    ]
    runs = [agent.row_run(options, seed, agent.model.session.stability) for agent in agents]
    generator = torch.Generator(contexts[0].device).manual_seed(seed)
    while not runs[0].stop_reason:
        reads = [context.read() for context in contexts]
        logits = [
            read.logits.to(contexts[0].device).index_fill(-1, agents[0].unusable_ids, -torch.inf)
            for read in reads
        ]
        mixed = consensus_logits(torch.stack(logits), _trust(agents, reads, network))
        seen = runs[0].seen(contexts[0].ids[0], mixed.device)
        token = int(sample(mixed, seen, options.sampling, generator))
        for context, run, read, own in zip(contexts, runs, reads, logits, strict=True):
            _watch(context, run, read, own, token)
            context.append([token])
    return [
        _noted(agent, context, run, started)
        for agent, context, run in zip(agents, contexts, runs, strict=True)
    ]


def _watch(context: Context, run: RowRun, read: Read, logits: Tensor, token: int) -> None:
    """Let an agent take note of a token that all have drawn, by its own distribution (1,V)."""
    (measured,), (embedding,) = measured_rows(context, [run], logits)
    run.decide(measured, embedding)
    surprise = measured.log_total - float(logits[0, token]) if measured else 0.0
    run.take(token, "", surprise, read, 0)


def _trust(
    agents: Sequence["ResoLLMInference"],
    reads: Sequence[Read],
    network: EntanglementNetwork | None,
) -> Tensor:
    """Order parameters (A,), as each agent sees them in the network."""
    own = [1.0 if math.isnan(read.coherence[0]) else read.coherence[0] for read in reads]
    if network is not None:
        names = [agent.model.session.node_id for agent in agents]
        states = dict(zip(names, own, strict=True))
        own = [network.share(name, states) for name in names]
    return torch.tensor(own)


# --- entanglement


def _shared_fields(
    agents: Sequence["ResoLLMInference"], network: EntanglementNetwork | None
) -> list[Tensor | None]:
    """What each agent has in memory at the start (H,C,S); None where it is its own affair."""
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
        raise ValueError("a network shares memory fields: every agent needs temporal_smf")
    states = dict(zip(names, fields, strict=True))
    return [network.share(name, states) for name in names]


def _own_field(agent: "ResoLLMInference") -> Tensor | None:
    state = agent.model.recollected_state().field
    return None if state is None else state.field[0]
