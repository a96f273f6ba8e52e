"""Windows of held-out text, and the model's own text with its loops.

Shapes: N windows, T tokens, P tokens of a prompt.
"""

import itertools

import numpy as np
import torch

from reso_llm.data.token_cache import Split
from reso_llm.decoding.text_class import LOOP_WINDOW, MAX_PERIOD
from reso_llm.model import ResoLLMModel

MIN_DOCUMENTS = 4  # two for each half


def windows(split: Split, T: int, max_windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows (N, T) of T tokens that do not overlap, and their documents (N,).

    No document has so many of them that the least number of documents could not be met.
    """
    bounds, share = np.append(split.doc_starts, len(split.tokens)), max_windows // MIN_DOCUMENTS
    pieces = [
        (doc, np.asarray(split.tokens[t : t + T], dtype=np.int64))
        for doc, (a, b) in enumerate(itertools.pairwise(bounds))
        for t in range(a, b - T + 1, T)[:share]
    ][:max_windows]
    docs = np.array([doc for doc, _ in pieces], dtype=np.int64)
    if len(np.unique(docs)) < MIN_DOCUMENTS:
        raise ValueError(
            f"{len(np.unique(docs))} documents of {T} tokens or more; expected at least "
            f"{MIN_DOCUMENTS}"
        )
    return np.stack([ids for _, ids in pieces]), docs


def loop_onset(ids: np.ndarray, start: int) -> int | None:
    """First token from `start` on of 2 LOOP_WINDOW or more that repeat with one period, or None."""
    onsets = []
    for period in range(1, MAX_PERIOD + 1):
        run = 0
        for t in range(max(start, period), len(ids)):
            run = run + 1 if ids[t] == ids[t - period] else 0
            if run == 2 * LOOP_WINDOW:
                onsets.append(t - run + 1)
                break
    return min(onsets, default=None)


@torch.inference_mode()
def sampled(
    model: ResoLLMModel, prompts: np.ndarray, temperature: float, generator: torch.Generator
) -> np.ndarray:
    """Continue prompts (N, P) to the full context by sampling: (N, max_seq_len) ids."""
    ids = torch.from_numpy(prompts)
    output = model(ids, model.init_state(len(ids)))
    while ids.shape[1] < model.config.max_seq_len:
        probs = (output.logits[:, -1] / temperature).softmax(-1)
        token = torch.multinomial(probs, 1, generator=generator)
        ids = torch.cat([ids, token], dim=1)
        if ids.shape[1] < model.config.max_seq_len:
            output = model(token, output.state)
    return ids.numpy()
