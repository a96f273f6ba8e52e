"""Calibrations of a trained model: of goals, and of the stability monitor.

A reply was not written for the question of another conversation. The cosines of such pairs are
the resonance that comes by chance, from which `agency.calibrate` sets the threshold of a goal. All
texts share a direction, that of the mean reply; it is taken off first. The monitor's calibration
reads clean and damaged texts (`decoding/text_class.py`).

Shapes: N conversations or texts, T tokens, V vocabulary, D width.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_core.information import entropy_nats
from reso_llm.data.token_cache import Split
from reso_llm.decoding.text_class import MIN_TEXTS, StabilityCalibration, calibrated
from reso_llm.network import ResoNetwork
from reso_llm.session.agency import GoalCalibration, calibrate
from reso_llm.stages.goal import text_vector
from reso_llm.tokenizer import SPECIAL_TOKENS

MAX_CONVERSATIONS = 200
PARTNERS = 5  # questions of other conversations that each reply is compared with
MIN_TOKENS = 3  # of a question or reply
MIN_CONVERSATIONS = 20
STABILITY_TEXTS, STABILITY_TOKENS = 24, 256  # at most; the texts are read four times
MIN_TOKENS_OF_A_TEXT = 48  # more than the class looks back


def goal_calibration(split: Split, table: Tensor) -> GoalCalibration | None:
    """The calibration for token vectors `table` (V,D); None for too few conversations."""
    pairs = list(_questions_and_replies(split))
    if len(pairs) < MIN_CONVERSATIONS:
        return None
    questions, replies = (
        torch.stack([text_vector(table, ids) for ids in side]) for side in zip(*pairs, strict=True)
    )
    centre = replies.mean(0)
    replies, questions = replies - centre, questions - centre
    cosines = [F.cosine_similarity(replies, questions.roll(k, 0)) for k in range(1, PARTNERS + 1)]
    return calibrate(torch.cat(cosines), centre=centre.tolist())


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


def _questions_and_replies(split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids before the first reply, and of all replies, of the first conversations that have both."""
    stops = [*split.doc_starts[1:], split.num_tokens]
    count = 0
    for start, stop in zip(split.doc_starts.tolist(), stops, strict=True):
        ids = np.asarray(split.tokens[start:stop], dtype=np.int64)
        reply = np.asarray(split.reply_mask[start:stop], dtype=bool)
        words = ids >= len(SPECIAL_TOKENS)
        question = ids[words & (np.cumsum(reply) == 0)]
        answer = ids[words & reply]
        if min(len(question), len(answer)) >= MIN_TOKENS:
            yield question, answer
            count += 1
        if count == MAX_CONVERSATIONS:
            return
