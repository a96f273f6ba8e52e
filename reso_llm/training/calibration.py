"""What is known of a trained model: how it reads clean text, and whether it read system messages.

The monitor's calibration reads clean and damaged texts (`decoding/text_class.py`).

Shapes: N texts, T tokens, V vocabulary.
"""

from functools import partial

import numpy as np
import torch

from entropy_core.information import entropy_nats
from reso_llm.data.token_cache import Split
from reso_llm.decoding.text_class import MIN_TEXTS, StabilityCalibration, calibrated
from reso_llm.network import ResoNetwork
from reso_llm.tokenizer import ResoTokenizer

STABILITY_TEXTS, STABILITY_TOKENS = 24, 256  # at most; the texts are read four times
SYSTEM_DOCUMENTS, SYSTEM_SHARE = 1000, 0.01  # the least share that a model learns from
MIN_TOKENS_OF_A_TEXT = 48  # more than the class looks back


def has_system_messages(split: Split) -> bool:
    """Whether enough documents of a text begin with a system message to learn what it means.

    Up to SYSTEM_DOCUMENTS are looked at, evenly over the split.
    """
    places = np.linspace(0, split.num_documents - 1, min(SYSTEM_DOCUMENTS, split.num_documents))
    seconds = split.doc_starts[places.astype(int)] + 1
    begins = split.tokens[seconds[seconds < split.num_tokens]] == ResoTokenizer.system_id
    return bool(begins.any() and begins.mean() >= SYSTEM_SHARE)


def stability_calibration(
    split: Split, network: ResoNetwork, texts: int = STABILITY_TEXTS, seed: int = 0
) -> StabilityCalibration | None:
    """The calibration on up to `texts` texts of a split that was not trained on; None for too few.

    The texts lie evenly over the split; each is as long as the context and STABILITY_TOKENS allow,
    and may reach over documents.
    """
    context = network.config.max_seq_len
    T = min(STABILITY_TOKENS, context, split.num_tokens // MIN_TEXTS)
    if min(MIN_TOKENS_OF_A_TEXT, context) > T:
        return None
    starts = np.linspace(0, split.num_tokens - T, min(texts, split.num_tokens // T)).astype(int)
    clean = np.stack([np.asarray(split.tokens[at : at + T], dtype=np.int64) for at in starts])
    return calibrated(partial(surprises_and_entropies, network), clean, np.random.default_rng(seed))


@torch.inference_mode()
def surprises_and_entropies(
    network: ResoNetwork, ids: np.ndarray, batch: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Surprise and entropy (N,T-1), in nats, of every token but the first of texts (N,T)."""
    surprises, entropies = [], []
    for rows in torch.from_numpy(ids).to(network.head_weight.device).split(batch):
        log_p = network(rows).logits[:, :-1].float().log_softmax(-1)
        surprises.append(-log_p.gather(-1, rows[:, 1:, None])[..., 0].cpu())
        entropies.append(entropy_nats(log_p).cpu())
    return torch.cat(surprises).numpy(), torch.cat(entropies).numpy()
