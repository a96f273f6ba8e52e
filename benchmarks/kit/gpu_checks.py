"""Whether a model is right on a device: beside the CPU in float32, and under torch.compile.

Every function returns what is recorded, and raises where it cannot or where the model is wrong.

Shapes: B windows, T tokens, V vocabulary.
"""

import copy
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.gpu_setting import Setting
from benchmarks.kit.records import Row
from benchmarks.studies.speed import made, random_model
from reso_llm.config import ResoLLMConfig
from reso_llm.model import ResoLLMModel

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # relative


def parity(setting: Setting, config: ResoLLMConfig, precision: str) -> Row:
    """Relative differences from float32 on the CPU. Raises ValueError where they are too large."""
    reference = random_model(config, setting.fitted)
    model = copy.deepcopy(reference).to(setting.device)
    ids = setting.ids(config, 2, config.max_seq_len)
    expected = logits_loss_norm(reference, ids.cpu())
    with torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        actual = logits_loss_norm(model, ids)
    names = ("logits", "loss", "gradient_norm")
    found = {
        name: float((a.float().cpu() - b).norm() / b.norm())
        for name, a, b in zip(names, actual, expected, strict=True)
    }
    far = {name: value for name, value in found.items() if not value < TOLERANCE[precision]}
    if far:
        raise ValueError(f"off by more than {TOLERANCE[precision]}, relative: {far}")
    return found


def logits_loss_norm(model: ResoLLMModel, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B,T-1,V), loss () and norm () of its gradient."""
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    with torch.no_grad():
        logits = model(inputs).logits
    loss = model.loss(inputs, targets)
    loss.backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return logits, loss.detach(), torch.stack(norms).norm()


def compiling(setting: Setting, config: ResoLLMConfig) -> Row:
    """Graphs of the loss under torch.compile, the reasons of the breaks, and both speeds."""
    model = made(config, setting.fitted).to(setting.device)
    ids = setting.ids(config, 8, config.max_seq_len)
    explained = torch._dynamo.explain(model.loss)(ids, ids)
    torch.compiler.reset()
    compiled = torch.compile(model.loss, backend=setting.backend)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        with setting.bfloat16():
            value = loss(ids, ids)
        value.backward()
        model.zero_grad(set_to_none=True)

    eager, faster = (
        1000 * statistics.median(setting.seconds(partial(step, loss)))
        for loss in (model.loss, compiled)
    )
    return {
        "graphs": explained.graph_count,
        "breaks": sorted({reason_of(found) for found in explained.break_reasons}),
        "eager_ms": round(eager, 2), "compiled_ms": round(faster, 2),
    }  # fmt: skip


def reason_of(graph_break: Any) -> str:
    """Where a graph is cut, and why."""
    place = graph_break.user_stack[-1]
    why = str(graph_break.reason).strip().splitlines()[0]
    return f"{Path(place.filename).name}:{place.lineno}: {why}"
