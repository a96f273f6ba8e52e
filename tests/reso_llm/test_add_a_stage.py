"""A toy stage is added to a copy of the package as CONTRIBUTING.md says; everything knows it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

TOY = '''"""A toy: every token adds a learned multiple of the sum of the tokens before it."""

from typing import NamedTuple

import torch
from numpy import ndarray
from torch import Tensor, nn

from reso_llm.stages.arrays import view


class ToyState(NamedTuple):
    total: Tensor  # (B,1,D)


class Toy(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def init_state(self, batch, like):
        return ToyState(like.new_zeros(batch, 1, 32))

    def stepper(self, state):
        return ToyStep(self, state)

    def silence(self):
        nn.init.zeros_(self.gain)

    def forward(self, x, state):
        total = x.cumsum(1) if state is None else x.cumsum(1) + state.total
        return x + self.gain * (total - x), ToyState(total[:, -1:])


class ToyStep:
    def __init__(self, module, state):
        self.gain, self.total = view(module.gain), view(state.total)[:, 0].copy()

    def __call__(self, x: ndarray) -> None:
        before = self.total.copy()
        self.total += x
        x += self.gain * before

    @property
    def state(self):
        return ToyState(torch.from_numpy(self.total.copy())[:, None])
'''

# {file: [(before this text, insert that)]}
EDITS = {
    "reso_llm/config.py": [
        (
            "@dataclass(frozen=True)\nclass ResoLLMConfig:",
            "@dataclass(frozen=True)\nclass ToyConfig(StageConfig):\n    gain: float = 0.1\n\n\n",
        ),
        (
            "    echo: EchoConfig = field",
            "    toy: ToyConfig = field(default_factory=ToyConfig)\n",
        ),
    ],
    "reso_llm/network.py": [
        (
            "class ResoState(NamedTuple)",
            "from reso_llm.stages.toy import Toy\n\n\n",
        ),
        (
            "        self.head = None if c.tie",
            "        self.toy = Toy(c.toy.gain) if c.toy.enabled else None\n",
        ),
        ('            "echo": self.echo,', '            "toy": self.toy,\n'),
        (
            '        measured = {"coherence"',
            "        if self.toy is not None:\n"
            '            x, after["toy"] = self.toy(x, known.get("toy"))\n',
        ),
    ],
    "reso_llm/generation/stepper.py": [
        (
            "        norm(x, x)\n        return x, coherence",
            '        if "toy" in self._steps:\n            self._steps["toy"](x)\n',
        ),
    ],
}

CHECK = """
import sys
import torch
sys.path.insert(0, "tests")
from conftest import fitted_text, make_tiny_config, make_tiny_model
from benchmarks.tasks.ablation import variants
from reso_llm.config import STAGES, TRAINED_STAGES, ResoLLMConfig, control_of
from reso_llm.generation.stepper import Stepper
from reso_llm.model import ResoLLMModel
from reso_llm.tour.probes import without

assert "toy" in STAGES and "toy" in TRAINED_STAGES
assert not control_of(ResoLLMConfig()).toy.enabled
assert {"full - toy", "control + toy"} <= set(variants(ResoLLMConfig()))

model = make_tiny_model(stages=("toy", "kuramoto"))
ids = torch.from_numpy(fitted_text(61)[:9])[None]
with torch.no_grad():
    whole = model(ids).logits
    state, stepper = model.init_state(), Stepper(model, [model.init_state()])
    for t, token in enumerate(ids[0].tolist()):
        output = model(ids[:, t : t + 1], state)
        state, step = output.state, stepper.step([token])
        torch.testing.assert_close(output.logits[:, 0], whole[:, t], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(step.logits), whole[:, t], rtol=1e-4, atol=1e-4)
    ours, theirs = stepper.states[0].stages["toy"].total, state.stages["toy"].total
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert theirs.any()

    control = ResoLLMModel(make_tiny_config(("kuramoto",)))
    control.load_state_dict({n: t for n, t in model.state_dict().items() if "toy" not in n})
    silent = without(model, "toy")
    torch.testing.assert_close(silent(ids).logits, control.eval()(ids).logits)
    assert not torch.allclose(silent(ids).logits, whole, atol=1e-3)

model.loss(ids[:, :-1], ids[:, 1:]).backward()
assert model.toy.gain.grad.abs() > 0
"""


def test_a_stage_is_added_in_four_files(tmp_path):
    for package in ("entropy_core", "run_core", "cer", "reso_llm", "benchmarks", "tests"):
        shutil.copytree(
            REPOSITORY / package,
            tmp_path / package,
            ignore=shutil.ignore_patterns("*.pyc", "results", "shipped"),
        )
    edited = {"reso_llm/stages/toy.py": TOY}
    for name, insertions in EDITS.items():
        source = (tmp_path / name).read_text(encoding="utf-8")
        for before, text in insertions:
            assert source.count(before) == 1, f"{name} has no single place {before!r}"
            source = source.replace(before, text + before)
        edited[name] = source
    for name, source in edited.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    assert len(edited) <= 4
    named = {name.replace("toy", "NAME") for name in edited}
    guide = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(reso_llm/[^`]+)` \|", guide, flags=re.MULTILINE))
    assert named == listed, "CONTRIBUTING.md lists other files"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHECK],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
