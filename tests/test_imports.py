"""Who may import whom (DESIGN.md section 1), read from the source without running it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {
    "entropy_core": {"entropy_core"},
    "cer": {"cer", "entropy_core"},
    "reso_llm": {"reso_llm", "entropy_core"},
}
SCRIPTS = {"train", "evaluate", "demo", "chat", "setup"}
OPTIONAL = {
    "transformers", "datasets", "huggingface_hub", "matplotlib", "pyarrow", "wandb",
    "chitchat_dataset", "torchhd", "ncps", "scipy", "pytest", "hypothesis",
}  # fmt: skip
MODEL = "reso_llm.model"
# What model and block import beside stages. Everything else they import is a stage: it has no
# business outside the model, and knows nothing but the tools below.
NO_STAGES = {
    "reso_llm.checkpoint", "reso_llm.config", "reso_llm.fused", "reso_llm.primes",
    "reso_llm.windows",  # what a batch is
    "reso_llm.session", "reso_llm.agency",  # what a session keeps; agency draws hindsight goals
}  # fmt: skip
TOOLS = {"reso_llm", "reso_llm.config", "reso_llm.fused", "reso_llm.ngrams", "reso_llm.primes"}
# The only stage made of others, and what rearranges the caches of a state.
COMPOSITION = {
    ("reso_llm.states", "reso_llm.attention"),
    ("reso_llm.block", "reso_llm.attention"),
    ("reso_llm.block", "reso_llm.gate"),
    ("reso_llm.block", "reso_llm.noise"),
}


def imports(name, source, is_package=False):
    """(dotted name, at module level) of everything a module's source imports."""
    found = []

    def visit(node, at_top):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_top = False
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found.append((origin, at_top))
            found.extend((f"{origin}.{alias.name}", at_top) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found.extend((a.value, at_top) for a in node.args if isinstance(a, ast.Constant))
        for child in ast.iter_child_nodes(node):
            visit(child, at_top)

    visit(ast.parse(source), True)
    return found


def violations(sources):
    """Broken rules in {module name: source}, as sentences."""
    found = {name: imports(name, source) for name, source in sources.items()}
    inside = {name: {target for target, _ in what} & set(sources) for name, what in found.items()}
    stages = inside.get(MODEL, set()) | inside.get("reso_llm.block", set())
    stages = {s for s in stages if s.startswith("reso_llm.")} - NO_STAGES
    broken = []
    for name, what in found.items():
        package = name.partition(".")[0]
        for target, at_top in what:
            root = target.partition(".")[0]
            if package in PACKAGES and root in PACKAGES and root not in PACKAGES[package]:
                broken.append(f"{name} imports {target}: {package} may not know {root}")
            if root in SCRIPTS:
                broken.append(f"{name} imports the script {root}")
            if package in PACKAGES and root in OPTIONAL and at_top:
                broken.append(f"{name} imports optional {root} at module level")
        for target in inside[name] & stages if package in PACKAGES else ():
            if name != MODEL and (name, target) not in COMPOSITION:
                broken.append(f"{name} imports the stage {target}")
        for target in inside[name] - stages - TOOLS if name in stages else ():
            if not target.startswith("entropy_core"):
                broken.append(f"the stage {name} imports {target}")
        if name.startswith("reso_llm.decoding"):
            reached = _closure(name, inside) & {MODEL, "reso_llm.tokenizer"}
            broken += [f"{name} reaches {target}" for target in sorted(reached)]
    return broken


def _closure(name, inside):
    reached, todo = set(), [name]
    while todo:
        for target in inside[todo.pop()] - reached:
            reached.add(target)
            todo.append(target)
    return reached


def _project():
    files = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    files += [path for name in SCRIPTS if (path := REPOSITORY / f"{name}.py").exists()]
    files += (REPOSITORY / "benchmarks").rglob("*.py")
    return {_dotted(path): path.read_text(encoding="utf-8") for path in files}


def _dotted(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_project_keeps_the_rules():
    sources = _project()
    assert {MODEL, "reso_llm.block", "reso_llm.decoding.sampling"} <= set(sources)
    assert {"benchmarks.srb", "benchmarks.srb.study"} <= set(sources)
    assert violations(sources) == []
    found = set(imports_of(sources, MODEL)) | set(imports_of(sources, "reso_llm.block"))
    assert {f"reso_llm.{name}" for name in STAGE_FILES} <= found


STAGE_FILES = ("embedding", "prsc", "kuramoto", "block", "attention", "gate", "noise", "memory")


def imports_of(sources, name):
    return (target for target, _ in imports(name, sources[name]))


STAGES = {
    MODEL: "from reso_llm.block import Block\nfrom reso_llm.embedding import TokenEmbedding",
    "reso_llm.block": "from reso_llm.attention import Attention",
    "reso_llm.attention": "import torch",
    "reso_llm.embedding": "from reso_llm.fused import rms_norm",
    "reso_llm.fused": "",
    "reso_llm.tokenizer": "",
    "entropy_core.signals": "",
    "cer.reactor": "from entropy_core.signals import trace",
}


def test_a_lawful_project_passes():
    lazy = "def plot():\n    import matplotlib.pyplot as plt\n    return plt"
    assert violations(STAGES | {"reso_llm.plots": lazy}) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("entropy_core.x", "import reso_llm.model", "may not know reso_llm"),
        ("entropy_core.x", "from cer import reactor", "may not know cer"),
        ("cer.x", "from reso_llm.config import small_config", "may not know reso_llm"),
        ("reso_llm.x", "def f():\n    from cer.reactor import R", "may not know cer"),
        ("reso_llm.x", "from train import main", "imports the script train"),
        ("reso_llm.x", "def f():\n    import demo", "imports the script demo"),
        ("benchmarks.x", "import evaluate", "imports the script evaluate"),
        ("reso_llm.attention", "from reso_llm.embedding import X", "the stage reso_llm.embedding"),
        ("reso_llm.embedding", "from . import attention", "the stage reso_llm.attention"),
        ("reso_llm.embedding", "from .block import Block", "the stage reso_llm.block"),
        ("reso_llm.training", "from reso_llm.attention import A", "the stage reso_llm.attention"),
        ("reso_llm.embedding", "from reso_llm.model import M", "stage reso_llm.embedding imports"),
        ("reso_llm.attention", "import reso_llm.tokenizer", "stage reso_llm.attention imports"),
        ("reso_llm.decoding.x", "from reso_llm.model import M", "reaches reso_llm.model"),
        ("reso_llm.decoding.x", "import reso_llm.tokenizer", "reaches reso_llm.tokenizer"),
        ("reso_llm.x", "import transformers", "optional transformers at module level"),
        ("reso_llm.x", "if True:\n    from wandb import init", "optional wandb at module level"),
        ("reso_llm.x", "class A:\n    import pyarrow.parquet", "optional pyarrow at module"),
        ("reso_llm.x", "import importlib\nimportlib.import_module('cer')", "may not know cer"),
    ],
)
def test_the_rules_bite(name, source, expected):
    assert any(expected in sentence for sentence in violations(STAGES | {name: source}))


def test_decoding_does_not_reach_the_model_through_another_module():
    sources = STAGES | {
        "reso_llm.engine": "from reso_llm.model import ResoLLMModel",
        "reso_llm.decoding.x": "import reso_llm.engine",
    }
    assert "reso_llm.decoding.x reaches reso_llm.model" in violations(sources)


# Third-party packages first: what they do at import is theirs.
IMPORT_EVERYTHING = """
import importlib, os, pkgutil, random, sys, threading, time
import jsonargparse, numpy, safetensors.torch, tokenizers, torch, tqdm, yaml
def facts():
    return (
        dict(os.environ), os.getcwd(), random.getstate(), repr(numpy.random.get_state()),
        torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(),
        threading.active_count(), sys.excepthook, list(sys.path), torch.is_grad_enabled(),
    )
before = facts()
names = []
for package in map(importlib.import_module, {packages}):
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    names += [package.__name__, *(module.name for module in found)]
for name in names:
    importlib.import_module(name)
changed = [i for i, (a, b) in enumerate(zip(before, facts(), strict=True)) if a != b]
optional = sorted({optional} & set(sys.modules))
assert not changed and not optional, (changed, optional)
assert len(names) > 20, names
"""


def test_importing_every_module_has_no_side_effect():
    """Guards printing, seeding, environment changes, and heavy optional imports at start."""
    code = IMPORT_EVERYTHING.replace("{packages}", repr(sorted(PACKAGES)))
    code = code.replace("{optional}", repr(OPTIONAL))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
