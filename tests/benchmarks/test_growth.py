"""How time grows: every curve runs, slopes and bounds are right, rows are not measured twice."""

import math

import pytest

from benchmarks.kit import records
from benchmarks.kit.bounds import Machine, matrix_numbers, network_numbers
from benchmarks.kit.curves import draw, slope, summary
from benchmarks.studies import growth
from reso_llm.config import small_config
from reso_llm.network import ResoNetwork


class Known(Machine):
    """A machine of known speed."""

    def __init__(self):
        self.products_a_ms = 1e9

    def reading_ms(self, num_bytes):
        return num_bytes / 1e6


@pytest.fixture
def small(monkeypatch, tiny_config):
    """Small models and short measurements; results go nowhere near those of the repository."""
    config = tiny_config(vocab_size=4096, max_seq_len=256)
    monkeypatch.setattr(growth, "small_config", lambda: config)
    monkeypatch.setattr(growth, "SIZES", {"small": lambda: config})
    monkeypatch.setitem(growth.CURVES, "context", lambda n, m: growth.decoding(config, n, m))
    monkeypatch.setattr(growth, "STEPS", 2)


@pytest.mark.parametrize("curve", growth.CURVES)
def test_a_curve_has_a_time_and_a_bound_for_each_model(small, curve):
    pytest.importorskip("transformers")
    off = records.Records("growth", on=False)
    points = [point if isinstance(point, str) else 16 for point in growth.QUICK[curve][:1]]
    (row,) = growth.measured(curve, points, 1, off, Known())
    assert row["ms"].keys() == row["bound"].keys()
    assert min(*row["ms"].values(), *row["bound"].values()) > 0


def test_a_recorded_point_is_not_measured_again(monkeypatch, results):
    calls = []

    def curve(point, machine):
        calls.append(point)
        return {"full": lambda: float(point)}, {"full": 1.0}

    monkeypatch.setitem(growth.CURVES, "ngrams", curve)
    kept = records.Records("growth", on=True)
    first = list(growth.measured("ngrams", (1, 2), 1, kept, Known()))
    again = list(growth.measured("ngrams", (1, 2, 3), 1, kept, Known()))
    assert calls == [1, 2, 3]
    assert [row["ms"]["full"] for row in again] == [1.0, 2.0, 3.0]
    assert first[0]["ms"] == again[0]["ms"]


def test_the_slope_is_the_exponent_of_a_power_law():
    x = [1, 10, 100]
    assert slope(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)
    assert slope(x, [2, 2, 2]) == pytest.approx(0)
    assert math.isnan(slope([1], [1]))


def test_the_table_and_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"curve": "batch", "x": x, "ms": {"full": 2.0 * x}, "bound": {"full": 1.0}} for x in (4, 2)
    ]
    assert summary(rows) == [
        ("batch", "full", "2, 4", "4.00, 8.00", "1.00", "0.00", "4.0", "8.0")
    ]  # fmt: skip
    assert draw(rows, "batch", "windows", tmp_path).stat().st_size > 1000


def test_numbers_read_are_those_of_the_matrices(tiny_config):
    config = tiny_config(dim=32, num_layers=2, vocab_size=264)
    network = ResoNetwork(config)
    blocks = sum(p.numel() for p in network.blocks.parameters() if p.ndim >= 2)
    expected = blocks + 264 * 32 + network.embedding.smear_gate.weight.numel()
    assert matrix_numbers(network, config) == network_numbers(config) == expected
    assert network_numbers(small_config()) > 4_000_000


def test_a_machine_takes_longer_to_read_more():
    machine = Machine()
    assert machine.reading_ms(64e6) > machine.reading_ms(1e5) > 0
    assert machine.products_a_ms > 0
