"""Nested state as flat tensors and JSON, exactly: optimizers and random generators, no pickle.

tensors, document = flatten_state(optimizer.state_dict())
optimizer.load_state_dict(unflatten_state(tensors, document))
"""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Generator = torch.Generator | np.random.Generator | random.Random


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested Python values into (flat tensors, JSON), exactly, types included.

    Takes dict, list, tuple, str, int, float, bool, None, tensors and numpy arrays, which covers
    `optimizer.state_dict()` and `rng_state()`. In the JSON every object is a tag: "dict" (pairs),
    "tuple", "float" (nan, inf), "tensor" and "array" (names of tensors).
    Raises ValueError naming the place of anything else.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(state, "state", tensors)


def unflatten_state(tensors: Mapping[str, Tensor], document: Any) -> Any:
    """Inverse of `flatten_state`. Raises ValueError when the two do not belong together."""
    if isinstance(document, list):
        return [unflatten_state(tensors, item) for item in document]
    if not isinstance(document, dict):
        return document
    try:
        ((tag, content),) = document.items()
        return _untagged(tensors, tag, content)
    except KeyError as error:
        raise ValueError(f"state names {error}, which the checkpoint does not have") from error


def _flatten(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (list, tuple):
        items = [_flatten(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind is dict:
        pairs = [[_flatten(k, place, tensors), _flatten(v, f"{place}.{k}", tensors)]
                 for k, v in value.items()]  # fmt: skip
        return {"dict": pairs}
    if isinstance(value, Tensor | np.ndarray) and place not in tensors:
        tensors[place] = torch.as_tensor(value).detach()
        return {"tensor" if isinstance(value, Tensor) else "array": place}
    raise ValueError(f"{place} is a {kind.__name__} that cannot be stored")


def _untagged(tensors: Mapping[str, Tensor], tag: str, content: Any) -> Any:
    match tag:
        case "dict":
            return dict(unflatten_state(tensors, content))
        case "tuple":
            return tuple(unflatten_state(tensors, content))
        case "float":
            return float(content)
        case "tensor":
            return tensors[content]
        case "array":
            return tensors[content].numpy()
    raise KeyError(tag)


def rng_state(generators: Mapping[str, Generator]) -> dict[str, Any]:
    """State of the global torch (CPU, CUDA) and Python generators and of the named ones."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    named = {name: _get_state(generator) for name, generator in generators.items()}
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": random.getstate(),
        "named": named,
    }


def set_rng_state(state: Mapping[str, Any], generators: Mapping[str, Generator]) -> None:
    """Inverse of `rng_state`; CUDA devices that are not here are left out.

    Raises ValueError when the named generators differ from the saved ones.
    """
    if set(generators) != set(state["named"]):
        raise ValueError(
            f"generators {sorted(state['named'])} were saved, not {sorted(generators)}"
        )
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, saved in enumerate(state["cuda"][:devices]):
        torch.cuda.set_rng_state(saved, device)
    random.setstate(state["python"])
    for name, generator in generators.items():
        _set_state(generator, state["named"][name])


def _get_state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state
