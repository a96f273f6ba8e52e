"""Compiled functions against numpy in float64, with infinities and NaN."""

import math
import subprocess
import sys

import numpy as np
import pytest

from entropy_core import compiled as module
from entropy_core.compiled import compiled, exponential, highest, log_sum, logistic, norm
from reso_llm.generation.stepper import Stepper
from reso_llm.inference import ResoLLMInference


@compiled
def each(x, exponentials, logistics):
    for i in range(len(x)):
        exponentials[i], logistics[i] = exponential(x[i]), logistic(x[i])


def test_exponentials_and_the_logistic_function():
    x = np.linspace(-87, 88, 9999, dtype=np.float32)
    found, shares = np.empty_like(x), np.empty_like(x)
    each(x, found, shares)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found, np.exp(wide), rtol=5e-7)
    np.testing.assert_allclose(shares, 1 / (1 + np.exp(-wide)), rtol=2e-6)
    ends = np.array([-np.inf, -1e30, 1e30, np.inf, np.nan], np.float32)
    found, shares = np.empty_like(ends), np.empty_like(ends)
    each(ends, found, shares)
    np.testing.assert_allclose(found[:4], np.exp([-87.0, -87, 88, 88]), rtol=5e-7)
    np.testing.assert_allclose(shares[:4], [0, 0, 1, 1], atol=1e-30)
    assert math.isnan(found[4])
    assert math.isnan(shares[4])


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_are_normed_apart(rows):
    x = np.random.default_rng(0).standard_normal((rows, 24)).astype(np.float32)
    x *= np.array([1.0, 100.0, 0.0], np.float32)[:rows, None]
    out, wide = np.empty_like(x), x.astype(np.float64)
    norm(x, out)
    eps = np.finfo(np.float32).eps
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_sums_of_exponentials_know_what_is_excluded():
    z = (20 * np.random.default_rng(0).standard_normal(999)).astype(np.float32)
    z[::7] = -np.inf
    assert highest(z) == z.max()
    assert log_sum(z) == pytest.approx(np.logaddexp.reduce(z.astype(np.float64)), abs=1e-5)
    z[3] = np.nan
    assert math.isnan(log_sum(z))
    assert math.isnan(log_sum(np.full(4, -np.inf, np.float32)))


def test_numba_is_imported_where_something_is_called():
    code = "import sys, reso_llm.inference; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_kept_on_disk_is_compiled_all_the_same():
    names = {}
    exec("def double(x):\n    return 2 * x", names)  # of no file
    assert compiled(names["double"])(21) == 42


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    module.available.cache_clear()
    yield
    module.available.cache_clear()


def test_without_numba_the_functions_run_as_they_are_and_a_line_says_so(without_numba, caplog):
    plain = compiled(log_sum._function)
    assert plain.dispatcher is log_sum._function
    z = np.linspace(-3, 3, 9, dtype=np.float32)
    assert plain(z) == pytest.approx(log_sum(z), abs=1e-6)
    assert [record.message for record in caplog.records] == [
        'texts are written at about a third of the speed without numba: pip install -e ".[fast]"'
    ]


def test_without_numba_torch_writes_the_same_text(request, tiny_model, byte_tokenizer):
    model = tiny_model(vocab_size=264, max_seq_len=64)
    engine = ResoLLMInference(model, byte_tokenizer, model.config)
    options = dict(temperature=0.8, max_length=12, seed=0)
    fast = engine.generate("ab", **options)
    request.getfixturevalue("without_numba")
    slow = engine.generate("ab", **options)
    assert not Stepper.supports(model)
    assert slow.text == fast.text
    np.testing.assert_allclose(slow.entropy_trace, fast.entropy_trace, atol=1e-4)
