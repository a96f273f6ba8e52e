"""Calibration of goals on the training conversations: when a goal counts as achieved.

A reply was not written for the question of another conversation. The cosines of such pairs are
the resonance that comes by chance, from which `agency.calibrate` sets the threshold of a goal. All
texts share a direction, that of the mean reply; it is taken off first.

Shapes: N conversations, V vocabulary, D width.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reso_llm.data.token_cache import Split
from reso_llm.session.agency import GoalCalibration, calibrate
from reso_llm.stages.goal import text_vector
from reso_llm.tokenizer import SPECIAL_TOKENS

MAX_CONVERSATIONS = 200
PARTNERS = 5  # questions of other conversations that each reply is compared with
MIN_TOKENS = 3  # of a question or reply
MIN_CONVERSATIONS = 20


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
