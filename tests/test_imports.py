"""Who may import whom, read from the source without running it.

Floors: a module stands one above the highest it imports. No circles, whether an import stands at
the top of a file, in a function or under TYPE_CHECKING. `python tests/test_imports.py` prints the
rooms, floors and circles.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# Packages that each package may import, itself included.
PACKAGES = {
    "entropy_core": {"entropy_core"},
    "run_core": {"entropy_core", "run_core"},
    "cer": {"cer", "entropy_core", "run_core"},
    "reso_llm": {"entropy_core", "reso_llm", "run_core"},
    "phase_slip": {"entropy_core", "phase_slip", "reso_llm", "run_core"},
    "reso": {"cer", "entropy_core", "reso", "reso_llm", "run_core"},
}
# The wings of reso_llm from the ground up: a module imports from its own wing and lower floors.
FLOORS = (
    ("config", "tokenizer"),
    ("decoding", "data", "stages"),
    ("network", "session"),
    ("model",),
    ("generation",),
    ("chat", "tour", "training", "hf"),
    ("inference",),
    ("lm_eval", "server"),
)
# What the pure parts may not reach, however many imports lie between.
UNREACHED = {
    "reso_llm.decoding": {"reso_llm.model", "reso_llm.network", "reso_llm.tokenizer"},
    "reso_llm.stages": {"reso_llm.tokenizer", "run_core"},
    "reso_llm.network": {"reso_llm.tokenizer", "run_core"},
}
# Modules whose classes are subclasses of an optional package's; nothing imports them unasked.
SUBCLASSING = {
    "reso_llm.hf.configuration", "reso_llm.hf.model", "reso_llm.hf.state_cache", "reso_llm.lm_eval",
}  # fmt: skip
SCRIPTS = {"train", "evaluate", "demo", "chat", "setup"}
OPTIONAL = {
    "transformers", "datasets", "huggingface_hub", "matplotlib", "pyarrow", "wandb",
    "chitchat_dataset", "torchhd", "ncps", "scipy", "pytest", "hypothesis",
    "fastapi", "starlette", "uvicorn", "openai", "playwright", "lm_eval",
}  # fmt: skip


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


def arrows(sources):
    """{module: the modules of `sources` it imports}; a package counts only if nothing deeper does.

    `from package import module` is an import of the module, not of the package around it.
    """
    result = {}
    for name, source in sources.items():
        is_package = any(other.startswith(f"{name}.") for other in sources)
        targets = {target for target, _ in imports(name, source, is_package)} & set(sources)
        deeper = {t for t in targets if any(o.startswith(f"{t}.") for o in targets)}
        result[name] = targets - deeper - {name}
    return result


def wing(name):
    """The room of reso_llm that a module belongs to, None for a module of another package."""
    parts = name.split(".")
    return parts[1] if parts[0] == "reso_llm" and len(parts) > 1 else None


def violations(sources):
    """Broken rules in {module name: source}, as sentences."""
    inside, broken = arrows(sources), []
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for name, source in sources.items():
        package = name.partition(".")[0]
        for target, at_top in imports(name, source):
            root = target.partition(".")[0]
            if package in PACKAGES and root in PACKAGES and root not in PACKAGES[package]:
                broken.append(f"{name} imports {target}: {package} may not know {root}")
            if root in SCRIPTS:
                broken.append(f"{name} imports the script {root}")
            optional = root in OPTIONAL or target in SUBCLASSING
            if package in PACKAGES and optional and at_top and name not in SUBCLASSING:
                broken.append(f"{name} imports optional {target} at module level")
        if wing(name) and wing(name) not in floor_of:
            broken.append(f"{name} stands on no floor")
        for target in inside[name] if wing(name) in floor_of else ():
            here, there = wing(name), wing(target)
            if there in floor_of and here != there and floor_of[there] >= floor_of[here]:
                broken.append(f"{name} imports {target}, which is on no lower floor")
        for pure, unreached in UNREACHED.items():
            if name == pure or name.startswith(f"{pure}."):
                reached = {t for t in _closure(name, inside) for u in unreached if _within(t, u)}
                broken += [f"{name} reaches {target}" for target in sorted(reached)]
    broken += ["a circle: " + " -> ".join(circle) for circle in circles(inside)]
    return broken


def _within(name, package):
    return name == package or name.startswith(f"{package}.")


def _closure(name, inside):
    reached, todo = set(), [name]
    while todo:
        for target in inside[todo.pop()] - reached:
            reached.add(target)
            todo.append(target)
    return reached


def circles(inside):
    """Groups of modules that import each other, each group once."""
    reach = {name: _closure(name, inside) for name in inside}
    groups = {frozenset(o for o in reach[n] if n in reach[o]) for n in inside if n in reach[n]}
    return sorted(sorted(group) for group in groups)


def rooms(sources):
    """{room directly in reso_llm: the other rooms it imports}, packages taken as one room."""
    inside = {}
    for name, targets in arrows(sources).items():
        if wing(name):
            others = {wing(target) for target in targets} - {None, wing(name)}
            inside[wing(name)] = inside.get(wing(name), set()) | others
    return inside


def floors(inside):
    """{room: its floor}, 1 for one that imports no other."""
    known = {}

    def floor(name):
        if name not in known:
            known[name] = 1 + max((floor(target) for target in inside[name]), default=0)
        return known[name]

    return {name: floor(name) for name in inside}


def project():
    """{dotted name: source} of the packages, scripts and benchmarks."""
    files = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    files += [path for name in SCRIPTS if (path := REPOSITORY / f"{name}.py").exists()]
    files += (REPOSITORY / "benchmarks").rglob("*.py")
    return {_dotted(path): path.read_text(encoding="utf-8") for path in files}


def _dotted(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_project_keeps_the_rules():
    sources = project()
    assert {"reso_llm.model", "reso_llm.stages.block", "cer.run", "evaluate"} <= set(sources)
    assert violations(sources) == []


def test_the_house_has_few_rooms_and_floors():
    inside = rooms(project())
    assert len(inside) <= 16
    assert max(floors(inside).values()) <= 8


LAWFUL = {
    "reso_llm.config": "",
    "reso_llm.tokenizer": "",
    "reso_llm.stages": "",
    "reso_llm.stages.block": "from reso_llm.stages.attention import Attention",
    "reso_llm.stages.attention": "import torch",
    "reso_llm.network": "from reso_llm.stages.block import Block",
    "reso_llm.model": "from reso_llm.network import N\nfrom reso_llm.tokenizer import T",
    "reso_llm.decoding.row": "",
    "reso_llm.generation.engine": "from reso_llm.model import M",
    "reso_llm.chat.panel": "",
    "reso_llm.inference": "",
    "entropy_core.signals": "",
    "run_core.run": "",
    "cer.reactor": "from entropy_core.signals import trace",
}


def test_a_lawful_project_passes():
    lazy = "def plot():\n    import matplotlib.pyplot as plt\n    return plt"
    assert violations(LAWFUL | {"reso_llm.chat.plots": lazy}) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("entropy_core.x", "import reso_llm.model", "may not know reso_llm"),
        ("entropy_core.x", "from run_core import run", "may not know run_core"),
        ("run_core.x", "from cer import reactor", "may not know cer"),
        ("cer.x", "from reso_llm.config import small_config", "may not know reso_llm"),
        ("reso_llm.chat.x", "def f():\n    from cer.reactor import R", "may not know cer"),
        ("reso_llm.chat.x", "from train import main", "imports the script train"),
        ("reso_llm.chat.x", "def f():\n    import demo", "imports the script demo"),
        ("benchmarks.x", "import evaluate", "imports the script evaluate"),
        ("reso_llm.stages.x", "from reso_llm.network import N", "on no lower floor"),
        ("reso_llm.stages.x", "from reso_llm.decoding import row", "on no lower floor"),
        ("reso_llm.session.x", "def f():\n    import reso_llm.model", "on no lower floor"),
        ("reso_llm.generation.x", "from reso_llm.chat.panel import panel", "on no lower floor"),
        ("reso_llm.chat.x", "if TYPE_CHECKING:\n    import reso_llm.inference", "on no lower"),
        ("reso_llm.elsewhere", "", "stands on no floor"),
        ("reso_llm.stages.x", "import run_core.run", "reso_llm.stages.x reaches run_core.run"),
        ("reso_llm.decoding.x", "import reso_llm.tokenizer", "reaches reso_llm.tokenizer"),
        ("reso_llm.chat.x", "import transformers", "optional transformers at module level"),
        ("reso_llm.chat.x", "if True:\n    from wandb import init", "optional wandb at module"),
        ("reso_llm.chat.x", "class A:\n    import pyarrow.parquet", "optional pyarrow.parquet at"),
        ("reso_llm.chat.x", "import reso_llm.hf.model", "optional reso_llm.hf.model at module"),
        ("reso_llm.hf.model", "import transformers", None),
        ("reso_llm.chat.x", "import importlib\nimportlib.import_module('cer')", "not know cer"),
        ("reso_llm.stages.attention", "from .block import Block", "a circle: reso_llm.stages.att"),
        ("entropy_core.signals", "def f():\n    from entropy_core import signals, x", None),
    ],
)
def test_the_rules_bite(name, source, expected):
    sentences = violations(LAWFUL | {name: source})
    assert any(expected in sentence for sentence in sentences) if expected else not sentences


def test_a_lazy_or_type_only_import_closes_a_circle():
    sources = {
        "cer.a": "def f():\n    from cer.b import g",
        "cer.b": "if TYPE_CHECKING:\n    from cer.c import C",
        "cer.c": "import cer.a",
    }
    assert violations(sources) == ["a circle: cer.a -> cer.b -> cer.c"]


def test_the_pure_parts_reach_nothing_through_another_module():
    sources = LAWFUL | {
        "reso_llm.data.x": "import reso_llm.tokenizer",
        "reso_llm.network": "import reso_llm.data.x",
    }
    assert "reso_llm.network reaches reso_llm.tokenizer" in violations(sources)


def test_floors_count_the_longest_way_down():
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}


# Third-party packages first: what they do at import is theirs.
IMPORT_EVERYTHING = """
import importlib, os, pkgutil, random, sys, threading, time
import einops, jsonargparse, numpy, safetensors.torch, tokenizers, torch, tqdm, yaml
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
for name in set(names) - {subclassing}:
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
    code = code.replace("{subclassing}", repr(SUBCLASSING))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# What a command or an import that a user waits for has no use for.
UNNEEDED = OPTIONAL | {"jsonargparse", "yaml"}


@pytest.mark.parametrize(
    ("code", "unneeded"),
    [
        ("from reso_llm.inference import ResoLLMInference", UNNEEDED | {"reso_llm.hf"}),
        ("from reso.__main__ import overview; overview()", UNNEEDED | {"torch", "numpy"}),
        ("from run_core import exits", UNNEEDED | {"torch", "numpy"}),
        ("from reso import chat; chat.make_parser()", OPTIONAL | {"torch", "numpy"}),
    ],
)
def test_a_start_imports_nothing_unneeded(code, unneeded):
    code += f"\nimport sys\nassert not (found := {unneeded} & set(sys.modules)), found"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


if __name__ == "__main__":
    house = rooms(project())
    for room, floor in sorted(floors(house).items(), key=lambda item: (-item[1], item[0])):
        print(f"floor {floor}  {room:<12} imports {', '.join(sorted(house[room])) or 'nothing'}")
    print(
        f"{len(house)} rooms, {max(floors(house).values())} floors, "
        f"{sum(map(len, house.values()))} arrows, {len(circles(arrows(project())))} circles"
    )
