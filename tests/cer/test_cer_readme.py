"""The Coherent Entropy Reactor's own README: what its Quick Start shows runs in the default mode.

The snippet runs as written but for the module it imports from. The document is not part of the
repository: without it, beside the repository, its calls are tested alone.
"""

import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import softmax

from cer import CoherentEntropyReactor

SEED = Path(__file__).resolve().parents[3] / "shared" / "seeds" / "cer_readme.md"


def assert_real(reactor, output, mass):
    """The reactor of the Quick Start, after it, is what the document says."""
    assert reactor.mode == "corrected"
    assert output.shape == (4, 16, 128)
    assert 0 < float(f"{mass:.4f}") < 1
    steps = reactor.get_trajectory()
    assert [(step.layer_idx, step.step_idx) for step in steps] == [
        (layer, step) for layer in range(2) for step in range(3)
    ]
    assert {step.drift_applied for step in steps} <= {True, False}
    assert f"{steps[-1].entropy:.3f}" == "3.000"
    assert sum(p.numel() for p in reactor.parameters()) // 10_000 == 164  # "1.6M parameters"


@pytest.mark.skipif(not SEED.exists(), reason="the seed README is not beside the repository")
def test_the_quick_start_runs_as_written(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", SEED.read_text(), re.DOTALL)
    names = {}
    snippet = snippet.replace("from src.core.reactor import", "from cer import")
    exec(compile(snippet, str(SEED), "exec"), names)
    assert_real(names["reactor"], names["output"], names["mass"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(re.fullmatch(r"L\dS\d: H=\d\.\d{3}, control=(True|False)", line) for line in lines)


@pytest.mark.parametrize("mode", ["published", "corrected"])
def test_the_calls_of_the_quick_start(mode):
    reactor = CoherentEntropyReactor(
        input_dim=128, hidden_dim=256, output_dim=128, target_entropy=3.0, drift_strength=0.1,
        max_drift_deficit=2.0, kuramoto_k=2.0, mode=mode,
    )  # fmt: skip
    x = softmax(torch.randn(4, 16, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    output, mass = reactor.react(x)
    if mode == "corrected":
        assert_real(reactor, output, mass)
    (step, *_) = reactor.get_trajectory()
    shown = f"L{step.layer_idx}S{step.step_idx}: H={step.entropy:.3f} M={step.mass:.3f}"
    shown += f" phase={step.phase:.3f} deficit={step.deficit:.3f} {step.control.name} {mass:.4f}"
    assert re.fullmatch(
        r"L0S0: H=\d\.\d+ M=0\.\d+ phase=-?\d\.\d+ deficit=.* [A-Z]+ 0\.\d{4}", shown
    )
