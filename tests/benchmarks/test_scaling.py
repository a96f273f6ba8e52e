"""Costs are those of a real model, fits find what they should, the document has the tables."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FULL

from benchmarks.kit import costs
from benchmarks.kit.records import num_parameters
from benchmarks.studies import scaling
from reso_llm.model import ResoLLMModel
from reso_llm.training.config import OptimConfig
from reso_llm.training.optim import make_optimizers

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def test_the_memory_is_that_of_real_optimizers(tiny_config):
    config = tiny_config(stages=FULL)
    model = ResoLLMModel(config)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    total = sum(p.nbytes + p.grad.nbytes for p in model.parameters())
    for optimizer in make_optimizers(model, OptimConfig()).values():
        optimizer.step()
        states = (value for state in optimizer.state.values() for value in state.values())
        total += sum(value.nbytes for value in states if value.ndim)
    found = costs.costs_of(config, processes=4)
    scalars = 8 * sum(p.ndim == 0 for p in model.parameters())  # of AdamW, passed over above
    assert found.parameters == num_parameters(model)
    assert found.state == total + scalars
    assert found.state / 4 < found.sharded < found.state


def test_a_line_is_found_and_a_bend_is_told():
    n, d = np.log([[1e5, 1e6], [1e5, 1e7], [1e6, 1e6], [1e6, 1e7]]).T
    points = np.stack([n, d, 3 - 0.1 * n - 0.2 * d], axis=1)
    assert scaling.line_through(points) == pytest.approx([3, 0.1, 0.2])
    bent = np.concatenate([points, [[np.log(1e7), d[0], points[0, 2]]]])
    assert scaling.mispredicted(bent) == pytest.approx(10**-0.2 - 1)
    assert np.isnan(scaling.line_through(points[:2])).all()


def test_the_document_has_the_tables_of_today():
    document = DOCUMENT.read_text(encoding="utf-8")
    for table in scaling.text().split("\n\n"):
        assert table in document


def test_every_measured_number_of_the_document_is_in_its_tables():
    document = DOCUMENT.read_text(encoding="utf-8")
    tables = "\n".join(line for line in document.splitlines() if line.startswith("|"))
    prose = "\n".join(line for line in document.splitlines() if not line.startswith("|"))
    prose = re.sub(r"```.*?```|`[^`]*`|\]\(.*?\)", " ", prose, flags=re.DOTALL)
    numbers = set(re.findall(r"(?<![\w.])\d*\.\d+", prose))
    assert {n for n in numbers if n not in re.findall(r"\d*\.\d+", tables)} <= {
        "2203.15556"
    }  # of arXiv
