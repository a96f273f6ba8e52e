"""Reading rows with padding on the left, for `ResoForCausalLM`: each row as it would be read alone.

No stage ever sees padding: rows with as much of it are read together, from their first token, and
stacked in one state (`reso_llm.generation.states`).

Shapes: B rows, T columns, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from reso_llm.generation.states import padded, selected, stacked
from reso_llm.network import ResoNetwork, ResoState

IGNORED = -100  # a label that is none


def read_rows(
    network: ResoNetwork,
    ids: Tensor,
    padding: list[int],
    num_read: int | None,
    fold: Tensor | None,
    *,
    with_state: bool,
) -> tuple[Tensor, ResoState | None]:
    """Read rows (B,T) from their start; logits (B,T,V), zero for padding, and the state after them.

    padding: columns before each row. num_read and fold as in `ResoForCausalLM.forward`.
    """
    groups: dict[int, list[int]] = {}
    for row, columns in enumerate(padding):
        groups.setdefault(columns, []).append(row)
    logits, states, order = [], [], []
    for columns, rows in groups.items():
        state = None
        if with_state or num_read is not None:
            state = padded(network.init_state(len(rows)), columns)
        some = None if fold is None else fold[rows]
        new, state = read(network, ids[rows, columns:], state, num_read, some)
        logits.append(F.pad(new, (0, 0, columns, 0)))
        states.append(state)
        order += rows
    if len(groups) == 1:
        return logits[0], states[0]
    places = torch.tensor(order).argsort().tolist()
    return torch.cat(logits)[places], selected(stacked(states), places) if with_state else None


def read(
    network: ResoNetwork,
    ids: Tensor,
    state: ResoState | None,
    num_read: int | None,
    fold: Tensor | None,
) -> tuple[Tensor, ResoState | None]:
    """Read ids (B,T) after a state; the columns from num_read on are the model's own words."""
    if state is None or num_read is None or network.echo is None:
        return network(ids, state, fold=fold)[:2]
    num_given = min(max(num_read - state.length, 0), ids.shape[1])
    parts = (ids[:, :num_given], 1.0), (ids[:, num_given:], network.echo.own_weight)
    logits = []
    for part, weight in parts:
        if part.shape[1]:
            output = network(part, _weighing(state, weight), fold=fold)
            logits.append(output.logits)
            state = _weighing(output.state, 1.0)
    return torch.cat(logits, dim=1), state


def _weighing(state: ResoState, weight: float) -> ResoState:
    """The state whose echo counts the words that come next by `weight`."""
    return state.with_stage("echo", state.stages["echo"]._replace(weight=weight))


def without_first(labels: Tensor | None, padding: list[int]) -> Tensor | None:
    """Labels (B,T) without those of the rows' first tokens: only padding comes before them."""
    if labels is None or not any(padding):
        return labels
    labels = labels.clone()
    labels[range(len(labels)), padding] = IGNORED
    return labels
