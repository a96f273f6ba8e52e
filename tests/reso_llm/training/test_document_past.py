"""The past of a window against naive twins: ids before, counts of its document, what loss says."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import fitted_text
from references import followers_reference

from reso_llm.config import EchoConfig
from reso_llm.data.token_cache import Split
from reso_llm.data.windows import Batch, BatchStream
from reso_llm.stages.echo import EchoState, TargetEvidence, TextCounts
from reso_llm.training import document_past
from reso_llm.training.document_past import DocumentPast
from reso_llm.training.objective import StepObjective

VOCABULARY, ORDERS = 61, 3
LENGTHS = [1, 2, 30, 9, 1, 14, 3]


def split_of(lengths=LENGTHS, dtype=np.uint16):
    """Documents of these many tokens; each has few kinds, so that contexts come again."""
    tokens = fitted_text(VOCABULARY, sum(lengths))
    tokens = (tokens % 5 + 30).astype(dtype)
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    tokens[starts] = 0
    return Split(tokens, np.ones(len(tokens), np.uint8), starts, len(tokens), 99, len(lengths))


def document_before(split, place):
    """Ids of the document that holds the token at `place`, up to it and with it; and its end."""
    first = max(int(start) for start in split.doc_starts if start <= place)
    later = [int(start) for start in split.doc_starts if start > place]
    return split.tokens[first : place + 1].tolist(), min([*later, len(split.tokens)])


def evidence_reference(split, start, time, orders):
    """[share, total, kinds] (T,M,3), a token at a time; 0 for the last of a document or of all."""
    values = np.zeros((time, orders, 3))
    for t in range(time):
        place = start + t
        if place >= len(split.tokens):
            continue
        read, end = document_before(split, place)
        for m in range(orders) if place + 1 < end else ():
            follows = followers_reference([(read, [1.0] * len(read))], m + 1)
            total = sum(follows.values())
            if total:
                share = follows.get(int(split.tokens[place + 1]), 0.0) / total
                values[t, m] = share, total, len(follows)
    return values


@pytest.fixture
def network(tiny_model):
    return tiny_model(stages=("echo", "prsc"), max_seq_len=24)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_the_tail_is_what_stands_before_in_the_same_document(network, dtype):
    split = split_of(dtype=dtype)
    past, starts = DocumentPast(split, network), torch.arange(len(split.tokens))
    tail = past.tail(starts)
    assert tail.shape == (len(starts), network.tail_length)
    assert tail.dtype == torch.int64
    for start in starts.tolist():
        before = document_before(split, start)[0][:-1][-network.tail_length :]
        padding = [-1] * (network.tail_length - len(before))
        assert tail[start].tolist() == [*padding, *before]


@pytest.mark.parametrize("time", [1, 7, 24])
def test_evidence_is_its_definition_at_every_place(network, time):
    """In the middle of documents, across their ends, and at the split's."""
    split = split_of()
    starts = torch.arange(len(split.tokens))
    found = DocumentPast(split, network).evidence(starts, time)
    for start in starts.tolist():
        expected = evidence_reference(split, start, time, ORDERS)
        ours = np.stack([part[start].numpy() for part in found], axis=-1)
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert found.share.max() == 1.0
    assert found.share[:, -1].any(), "a window that ends in the middle of a document"


def test_a_window_that_begins_its_document_knows_what_it_would_alone(network):
    split = split_of()
    start, time = 3, 20  # of the document of 30 tokens
    assert start in split.doc_starts
    rows = torch.from_numpy(split.tokens[None, start : start + time + 1].astype(np.int64))
    alone = network.echo.window_evidence(rows[:, :-1], rows[:, 1:])
    past = DocumentPast(split, network)
    for a, b in zip(alone, past.evidence(torch.tensor([start]), time), strict=True):
        assert torch.equal(a, b)
    assert (past.tail(torch.tensor([start])) == -1).all()


def test_a_network_without_an_echo_has_no_evidence(tiny_model):
    past = DocumentPast(split_of(), tiny_model(stages=("prsc",)))
    assert past.evidence(torch.tensor([0]), 5) is None
    assert past.tail(torch.tensor([5])).shape[1] > 0


def test_the_order_is_the_echos(tiny_model):
    network = tiny_model(stages=("echo",), echo=EchoConfig(max_order=2))
    assert DocumentPast(split_of(), network).evidence(torch.tensor([4]), 5).share.shape == (1, 5, 2)


def test_a_document_is_counted_once(network, monkeypatch):
    counted = []
    original = document_past.text_evidence
    monkeypatch.setattr(
        document_past, "text_evidence", lambda ids, m: counted.append(len(ids)) or original(ids, m)
    )
    past = DocumentPast(split_of(), network)
    for _ in range(3):
        past.evidence(torch.tensor([4, 9, 20]), 6)
    assert counted == [30]


def test_counts_of_few_tokens_are_kept_and_those_of_a_long_document_too(network, monkeypatch):
    """Guards memory: 4096 books were some 30 GB of counts."""
    monkeypatch.setattr(document_past, "KEPT_TOKENS", 21)
    past = DocumentPast(split_of(), network)
    for document, kept in ((3, [3]), (5, [3, 5]), (3, [5, 3]), (2, [2]), (0, [0]), (3, [0, 3])):
        past._of_document(document)
        assert list(past._kept) == kept
        assert past._num_kept == sum(counts.shape[1] for counts in past._kept.values())


# --- what a window is told is what a reader of the document knows ---------------------------------


@torch.no_grad()
def nats_of_reader(network, split, start, time):
    """Nats (T,) of a window of one document, from a state that has read what stands before."""
    ids = split.tokens[start : start + time + 1].astype(np.int64)
    before = document_before(split, start)[0][:-1]
    state, counts = network.init_state(), TextCounts.empty(network.echo.max_order)
    for token in before:
        counts = counts.read(token)
    tail = [*[-1] * network.tail_length, *before][-network.tail_length :]
    state = state._replace(tail=torch.tensor([tail])).with_stage("echo", EchoState((counts,)))
    logits = network(torch.from_numpy(ids[None, :-1]), state).logits[0]
    return F.cross_entropy(logits, torch.from_numpy(ids[1:]), reduction="none")


@pytest.mark.parametrize("start", [3, 4, 10, 15])
def test_nats_are_those_of_a_reader_of_the_document(network, start):
    """Tail and counts both matter: without either the nats are others."""
    split, time = split_of(), 12
    network.fit_bindings(split.tokens)
    rows = torch.from_numpy(split.tokens[None, start : start + time + 1].astype(np.int64))
    ids, targets, at = rows[:, :-1], rows[:, 1:], torch.tensor([start])
    past = DocumentPast(split, network)
    known = {"tail": past.tail(at), "evidence": past.evidence(at, time)}
    expected = nats_of_reader(network, split, start, time)
    torch.testing.assert_close(
        network.nats(ids, targets, **known)[0], expected, rtol=1e-4, atol=1e-5
    )
    loss = network.loss(ids, targets, **known)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-5)
    for name in known if start > 4 else ():  # before 4 there is only <|bos|>
        less = network.nats(ids, targets, **(known | {name: None}))[0]
        assert (less - expected).abs().max() > 1e-3, name


def test_the_objective_gives_windows_their_past(tiny_model):
    """Windows of the stream, anywhere, across the ends of documents; half of them know nothing."""
    model, split = tiny_model(stages=("echo",)), split_of([40, 25, 33])
    batch, past = BatchStream(split, 12, 4, seed=0).next(), DocumentPast(split, model)
    assert isinstance(batch, Batch)
    objective = StepObjective(model, [batch], torch.Generator().manual_seed(0), past=past)
    assert objective.known.any()
    assert not objective.known.all()
    known = past.evidence(batch.starts, 12)
    alone = model.echo.window_evidence(batch.inputs, batch.targets)
    rows = objective.known.view(-1, 1, 1)
    evidence = TargetEvidence(*(torch.where(rows, a, b) for a, b in zip(known, alone, strict=True)))
    expected = model.nats(batch.inputs, batch.targets, evidence=evidence).mean()
    assert objective.pass_loss(0).item() == pytest.approx(expected.item(), rel=1e-5)
    unaware = StepObjective(model, [batch], torch.Generator().manual_seed(0)).pass_loss(0)
    assert abs(unaware.item() - expected.item()) > 1e-3
