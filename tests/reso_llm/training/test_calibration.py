"""Whether a text has enough system messages to learn from."""

import numpy as np
import pytest

from reso_llm.data.token_cache import Split
from reso_llm.training.calibration import has_system_messages


def split_of(documents):
    tokens = np.concatenate(documents).astype(np.uint16)
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    mask = np.zeros(len(tokens), np.uint8)
    return Split(tokens, mask, starts, len(tokens), len(tokens), len(documents))


SAID, UNSAID = [0, 1, 9, 4, 2, 8, 4, 3, 7, 4], [0, 2, 1, 4, 3, 7, 4]


@pytest.mark.parametrize(
    ("documents", "known"),
    [
        ([SAID] + [UNSAID] * 99, True),
        ([SAID] + [UNSAID] * 199, False),
        ([UNSAID] * 3, False),
        ([[0, 5], [0]], False),
        ([[0]], False),
        (([SAID] + [UNSAID] * 9) * 500, True),  # more than are looked at
    ],
)
def test_one_document_in_a_hundred_is_enough(documents, known):
    assert has_system_messages(split_of(documents)) is known
