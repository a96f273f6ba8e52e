"""The study of stage forms: what each form is, one model of each part, the tables."""

import itertools
import math

import numpy as np
import pytest
import torch

from benchmarks.kit.records import read_rows
from benchmarks.studies import stage_forms
from benchmarks.studies.stage_forms import EMBEDDINGS, PARTS, PLAN, Run
from benchmarks.tasks.ablation import quick_task
from entropy_core.primes import GOLDEN_RATIO
from reso_llm.training.config import OptimConfig


@pytest.fixture
def data(monkeypatch, results, tmp_path):
    """A directory whose texts are learned by tiny models."""
    tiny = {name: lambda _, name=name: quick_task(name, None) for name in stage_forms.FILES}
    monkeypatch.setattr(stage_forms, "TASKS", tiny)
    return str(tmp_path)


def test_parts_of_a_name():
    assert PARTS["bytes from start"](b" to") == [(0, 32), (1, 116), (2, 111)]
    assert PARTS["word alone"](b" To") == [b"to", "capital", "space"]
    assert PARTS["beginnings and endings"](b"TO") == [b"to", "capital", "capitals", (1, b"t"),
                                                      (-1, b"o")]  # fmt: skip
    assert len(PARTS["substrings"](b"to")) == 2 + 3 + 2 + 1
    assert PARTS["residues"](b"\x01\x00") == [(m, 3 * 2**2 % m) for m in (251, 257, 263, 269)]


def test_ladders():
    """Half of a golden step is a golden step in two; what is cut turns not at all."""
    golden, halved = (stage_forms.ladder(f, 16, 64) for f in ("golden", "golden half steps"))
    np.testing.assert_allclose(golden[:-1] / golden[1:], GOLDEN_RATIO)
    np.testing.assert_allclose(halved[::2], golden[:4])
    cut = stage_forms.ladder("golden, cut", 16, 64)
    assert (cut == np.where(2 * math.pi / golden <= 64, golden, 0)).all()
    assert 0 < np.count_nonzero(cut) < 8
    assert np.count_nonzero(stage_forms.ladder("geometric, half the pairs", 16, 64)) == 4


def test_golden_rates_change_what_they_say():
    optim = OptimConfig(matrix_lr=0.03)
    rates = [stage_forms.golden_rates(optim, form) for form in stage_forms.RATES]
    assert all(a != b for a, b in itertools.combinations(rates, 2))
    assert rates[0].decay_fraction == 0.6
    rates = stage_forms.golden_rates(optim, "all golden")
    assert rates.decay_fraction == pytest.approx(0.618, abs=1e-3)
    assert rates.matrix_lr / rates.embedding_lr == pytest.approx(GOLDEN_RATIO)


@pytest.mark.parametrize("form", EMBEDDINGS)
def test_every_embedding_starts_as_the_plain_one_and_learns(data, form):
    plain = stage_forms.make_model(Run("embedding", "guanaco", "none", 0, 1), data)[0]
    model, task = stage_forms.make_model(Run("embedding", "guanaco", form, 0, 1), data)
    ids = torch.from_numpy(task.train.tokens[:12].astype(np.int64))[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
    learner = stage_forms.learner_for(model, task, 0)
    for _ in range(2):
        learner.step(0.5)
    table = model.embedding.table.weight
    assert torch.equal(model.embedding.weight, table) == (form == "none")


def test_a_study_goes_on_where_it_stopped(data, capsys, monkeypatch):
    """Two forms of each part, in this process; a second run measures nothing."""
    small = {
        part: {task: forms[:2] for task, forms in [*tasks.items()][:1]}
        for part, tasks in PLAN.items()
    }
    monkeypatch.setattr(stage_forms, "PLAN", small)
    runs = list(stage_forms.planned([*small], [0, 1], steps=2))
    assert len(runs) == 2 * 3 * 2
    assert stage_forms.missing(iter(runs)) == runs
    for run in runs[:7]:
        stage_forms.write_row(stage_forms.NAME, stage_forms.measure(run, data, "cpu"))
    assert stage_forms.missing(iter(runs)) == runs[7:]
    row = read_rows(stage_forms.NAME)[0]
    task = stage_forms.task_of("guanaco", data)
    scored = len(task.val.tokens) - len(task.val.doc_starts)
    assert sum(row["bin_targets"]) == scored, "every target in one bin"
    total = row["bits_per_byte"] * math.log(2) * task.val.num_bytes
    assert sum(row["bin_nats"]) == pytest.approx(total)
    text = stage_forms.text()
    assert "**embedding, guanaco, 2 steps**" in text
    assert "| none | 2 |" in text
    assert "at 4x the context" in text
