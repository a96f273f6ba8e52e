"""The study of the field's forms: its questions have the answers marked, and sizes are equal."""

import argparse
import itertools

import pytest
import torch
from torch.testing import assert_close

from benchmarks.kit import records
from benchmarks.studies import recall_pairs as study


@pytest.mark.parametrize("told", [1, 3])
@pytest.mark.parametrize("ordered", [False, True])
def test_the_marked_targets_are_the_last_values_told(told, ordered):
    ids, mask = study.draw_batch(5, 6, 9, torch.Generator().manual_seed(0), told, ordered)
    size = 3 if ordered else 2
    assert ids.shape == (5, size * 6 * (told + 1) + 9)
    assert (mask.sum(1) == 6).all()
    for row, marked in zip(ids.tolist(), mask.tolist(), strict=True):
        facts = {}
        for start in range(0, size * 6 * told, size):
            *key, value = row[start : start + size]
            facts[tuple(key)] = value
        assert len(facts) == 6
        asked = [t + 1 for t, here in enumerate(marked) if here]
        assert {tuple(row[t - size + 1 : t]): row[t] for t in asked} == facts


def test_states_are_equal_in_size_and_products_in_parameters():
    networks = {form: study.make_network(form, 16, 8) for form in study.FORMS}
    sizes = {form: study.state_size(network) for form, network in networks.items()}
    assert sizes.pop("window") == 0
    assert sizes.pop("product") * 16 == sizes["delta"]
    assert len(set(sizes.values())) == 1
    delta, product = (records.num_parameters(networks[form]) for form in ("delta", "product"))
    assert delta / product == pytest.approx(1, abs=0.01)
    assert not networks["delta alone"].field.order.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("form", ["product", "linear"])
def test_a_form_without_erasing_sums_up_what_fades(form):
    """In one pass over two chunks, and token by token."""
    module = study.FORMS[form]()
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    x, state, outputs = torch.randn(2, 37, study.DIM, generator=generator), None, []
    whole, end = module(x)
    for x_t in x.split(1, dim=1):
        y, state = module(x_t, state)
        outputs.append(y)
    assert (whole - x).abs().max() > 0.1
    for a, b in zip((torch.cat(outputs, 1), *state), (whole, *end), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_emptied_field_changes_what_comes_after_the_first_piece(monkeypatch):
    monkeypatch.setattr(study, "PIECE", 8)
    network = study.make_network("delta", 16, window=4)
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    ids = torch.randint(16, (2, 25), generator=generator)
    kept, emptied = (study.carried(network, ids, study.nats_of, f) for f in (False, True))
    assert torch.equal(kept[:, :8], emptied[:, :8])
    assert ((kept - emptied).abs()[:, 8:] > 1e-4).any()


def test_a_measured_row_is_not_measured_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    options = argparse.Namespace(
        parts=["pairs", "changed"], forms=["delta"], seeds=[0, 1], steps=1, rows=1, data=None,
        device="cpu", jobs=1,
    )  # fmt: skip
    for part, seed in itertools.product(options.parts, options.seeds):
        key = study.key_of(part, "delta", seed, options)
        study.write_row(study.NAME, key | {"accuracy": {"4": 0.5 + seed / 4}, "parameters": 1000,
                                           "state": 20})  # fmt: skip
    study.run(options)
    rows = study.read_rows(study.NAME)
    assert len(rows) == 4
    assert "| pairs | delta | 1 | 2 | 1,000 | 20 | 4: 0.625 [0.500, 0.750] |" in (
        study.results_table(rows)
    )
