"""The logits processors of Hugging Face's `generate`, for rows that controllers draw.

The sampler's own processors (temperature, top-k, top-p, min-p, typical) become the
`SamplingOptions` of a row. All others, such as penalties, bans, grammars and watermarks, act on
every token.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from operator import mul
from typing import Any

import torch
from torch import Tensor

from reso_llm.decoding.sampling import SamplingOptions

SAMPLER = {
    "TemperatureLogitsWarper": "temperature",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
    "MinPLogitsWarper": "min_p",
    "TypicalLogitsWarper": "typical_p",
}
"""Classes that `SamplingOptions` replaces, each with the option that makes it."""
ATTRIBUTES = {"typical_p": "mass"}
"""Attributes of these classes that have another name than their option."""
IN_A_ROW = {"temperature": mul, "top_k": min, "top_p": mul, "min_p": max, "typical_p": min}
"""The value that acts as two processors one after the other (top-p: up to one token; typical: the
narrower, as the second would begin from what the first has left)."""
OTHER_FILTERS = {
    "TopHLogitsWarper": "top_h",
    "EpsilonLogitsWarper": "epsilon_cutoff",
    "EtaLogitsWarper": "eta_cutoff",
}
"""Classes of filters that `SamplingOptions` lacks, each with the option that makes it."""


def option_of(processor: Any, options: Mapping[str, str]) -> str | None:
    """The option that a processor stands for, by its class or a base class; None for no option."""
    names = (kind.__name__ for kind in type(processor).__mro__)
    return next((options[name] for name in names if name in options), None)


def sampling_of(processors: Sequence[Any], do_sample: bool) -> SamplingOptions:
    """Read the sampler of `generate` off its processors; temperature 0 if it is greedy.

    Raises ValueError for a filter that `SamplingOptions` lacks.
    """
    values: dict[str, Any] = {}
    for processor in processors:
        other = option_of(processor, OTHER_FILTERS)
        if other is not None:
            raise ValueError(f"{other}: controllers do not know this filter; leave it unset")
        name = option_of(processor, SAMPLER)
        if name is not None:
            value = getattr(processor, ATTRIBUTES.get(name, name))
            values[name] = IN_A_ROW[name](values[name], value) if name in values else value
    return SamplingOptions(**{"temperature": 1.0} | values if do_sample else {"temperature": 0.0})


def process(processors: Any, input_ids: Tensor, logits: Tensor, drawn: Sequence[bool]) -> Tensor:
    """Scores (B,V) of logits (B,V) after ids (B,T); the sampler leaves the rows `drawn` alone.

    Every processor is called once, with all rows and in the order of `generate`: a grammar may
    advance with each call.
    """
    scores = logits.clone()  # a processor may write into its argument
    if not any(drawn):
        return processors(input_ids, scores)
    rows = torch.tensor(drawn, device=scores.device)[:, None]  # (B,1)
    for processor in processors:
        changed = type(processors)([processor])(input_ids, scores)
        is_sampler = option_of(processor, SAMPLER) is not None
        scores = torch.where(rows, scores, changed) if is_sampler else changed
    return scores


def only(scores: Tensor, tokens: Mapping[int, int]) -> Tensor:
    """Scores (B,V) that leave row i of `tokens` the token tokens[i] alone."""
    scores = scores.clone()
    for i, token in tokens.items():
        scores[i] = -torch.inf
        scores[i, token] = 0
    return scores
