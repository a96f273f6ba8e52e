"""What a window knows of its document before it: the newest ids, and what the echo has counted.

A model in use has read the whole document. Windows of training and of the `stateful` protocol of
evaluation are given the same: the ids that the n-grams of the binding memory reach back to, and the
counts of the document so far. Both stop at the document's start. A window may also be told to know
nothing: then it has no tail, and the echo counts its own tokens alone, all of them as one text.

Shapes: B windows, T tokens, W ids of a tail, M orders of the echo.
"""

from collections import OrderedDict

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from reso_llm.data.token_cache import Split
from reso_llm.network import ResoNetwork
from reso_llm.stages.echo import TargetEvidence, text_evidence

KEPT_TOKENS = 4_000_000  # of documents whose counts are kept, the newest ones used: some 300 MB


class DocumentPast:
    """The past of windows of one split, for one network; counts are taken when first needed."""

    def __init__(self, split: Split, network: ResoNetwork) -> None:
        self.tokens = split.tokens
        self.bounds = np.append(split.doc_starts, len(split.tokens)).astype(np.int64)
        self.tail_length = network.tail_length
        self.max_order = network.config.echo.max_order if network.echo is not None else 0
        self.device = network.head_weight.device
        self._kept: OrderedDict[int, ndarray] = OrderedDict()
        self._num_kept = 0  # tokens

    def tail(self, starts: Tensor, known: Tensor | None = None) -> Tensor:
        """Ids (B,W) before windows that start at places (B,) of the split, -1 for none.

        known (B,) bool: which windows know their past; None for all.
        """
        tail = np.full((len(starts), self.tail_length), -1, dtype=np.int64)
        for row, start in enumerate(starts.tolist()):
            if known is not None and not known[row]:
                continue
            document = np.searchsorted(self.bounds, start, side="right") - 1
            first = max(int(self.bounds[document]), start - self.tail_length)
            if start > first:
                tail[row, first - start :] = self.tokens[first:start]
        return torch.from_numpy(tail).to(self.device)

    def evidence(
        self, starts: Tensor, time: int, known: Tensor | None = None
    ) -> TargetEvidence | None:
        """What the echo knows of the targets of windows of T tokens; None without an echo."""
        if not self.max_order:
            return None
        found = np.zeros((3, len(starts), time, self.max_order), np.float32)
        for row, start in enumerate(starts.tolist()):
            if known is None or known[row]:
                self._copy(start, found[:, row])
            else:
                window = self.tokens[start : start + time + 1].astype(np.int64).tolist()
                found[:, row, : len(window) - 1] = text_evidence(window, self.max_order)
        return TargetEvidence(*torch.from_numpy(found)).to(self.device)

    def _copy(self, start: int, out: ndarray) -> None:
        """Fill out (3,T,M) with the evidence of the tokens from `start` on."""
        end = min(start + out.shape[1], len(self.tokens))
        document = int(np.searchsorted(self.bounds, start, side="right")) - 1
        at = start
        while at < end:
            first, stop = int(self.bounds[document]), min(int(self.bounds[document + 1]), end)
            counted = self._of_document(document)[:, at - first : stop - first]
            out[:, at - start : at - start + counted.shape[1]] = counted
            at, document = stop, document + 1

    def _of_document(self, document: int) -> ndarray:
        """`_counted`, kept until documents used later have KEPT_TOKENS together."""
        counted = self._kept.pop(document, None)
        if counted is None:
            counted = self._counted(document)
            self._num_kept += counted.shape[1]
        self._kept[document] = counted
        while self._num_kept > KEPT_TOKENS and len(self._kept) > 1:
            self._num_kept -= self._kept.popitem(last=False)[1].shape[1]
        return counted

    def _counted(self, document: int) -> ndarray:
        """Evidence (3,n-1,M) of one document of n tokens; its last token predicts another text."""
        first, stop = self.bounds[document : document + 2]
        return text_evidence(self.tokens[first:stop], self.max_order)
