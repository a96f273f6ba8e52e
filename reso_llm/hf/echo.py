"""The echo for any Hugging Face model: what was read of a text predicts its next token.

    model.generate(**inputs, logits_processor=LogitsProcessorList([EchoProcessor()]))

It is the stage of `reso_llm.stages.echo` with the trust that a new model has, s_m = constant *
N_m / U_m, since such a model has learned none. Stored texts are read before every text. Inside
`controlled`, the controllers measure the model's own logits. A token that was ruled out before
(score -inf) stays ruled out, whatever it followed.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from reso_llm.config import EchoConfig
from reso_llm.stages.echo import Echo, EchoState, TextCounts

DEFAULT = EchoConfig()


class EchoProcessor:
    """Mixes what followed the newest tokens before into the scores (B,V).

    config: order and weight of the model's own words. texts: stored ones, as ids and weight.
    pad_token_id: padding, which is not read. One processor serves many calls of `generate`: ids
    that do not go on from those of the call before begin new texts.
    """

    def __init__(
        self,
        config: EchoConfig = DEFAULT,
        texts: Iterable[tuple[Sequence[int], float]] = (),
        pad_token_id: int | None = None,
    ) -> None:
        self.echo, self.texts, self.pad = Echo(1, config), tuple(texts), pad_token_id
        self.rows: list[list[int]] = []
        self.state = EchoState(())

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = input_ids.tolist()
        if not self._goes_on(rows):
            stored = TextCounts.of_texts(self.texts, self.echo.max_order)
            read = [self._read(stored, row[:-1], 1.0) for row in rows]
            self.state = EchoState(tuple(read), weight=1.0)
        newest = input_ids[:, -1:]
        x = torch.zeros(len(rows), 1, 1)
        logits, state = self.echo(scores.cpu().float().unsqueeze(1), x, newest, self.state)
        self.rows, self.state = rows, state._replace(weight=self.echo.own_weight)
        return logits[:, 0].to(scores).masked_fill(scores.isneginf(), -torch.inf)

    def _goes_on(self, rows: list[list[int]]) -> bool:
        """Whether each row is that of the last call and one more token."""
        return self.rows == [row[:-1] for row in rows]

    def _read(self, counts: TextCounts, ids: Sequence[int], weight: float) -> TextCounts:
        for token in ids:
            counts = counts.read(-1 if token == self.pad else token, weight)
        return counts
