"""Starts a run from another run's weights: `--init_from RUN|DIR`.

Weights and tokenizer are taken over; data, schedule and optimizers are the new run's. The binding
memory counts the new data, or is taken over as well (`--keep_memory`).
"""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from reso_llm.config import ResoLLMConfig
from reso_llm.tokenizer import ResoTokenizer, check_tokenizer
from reso_llm.training.config import TrainConfig
from run_core.checkpoint import get_document, load_checkpoint
from run_core.run import TrainingError, changed_keys, resolve

# Keys of the configuration that may differ: the weights mean the same under other values of them.
FREE = {
    "model.dropout", "model.max_seq_len", "model.attention_window",
    "model.agency.max_foci", "model.agency.max_goals", "model.agency.novelty_weight",
    "model.prsc.coherence_threshold", "model.prsc.max_bindings",
    "model.temporal_smf.memory_decay_rate", "model.temporal_smf.max_moments",
    "model.temporal_smf.episodic_tagging", "model.echo.own_weight", "model.stability.enabled",
    "model.stability.lyapunov_threshold", "model.stability.auto_temperature_adjust",
    "model.stability.predictive_horizon", "model.entanglement.enabled",
    "model.entanglement.node_id", "model.stochastic_resonance.enabled",
    "model.stochastic_resonance.noise_amplitude",
}  # fmt: skip
REFITTED = {"model.prsc.max_entries", "model.coherence_gate.deep_share"}  # counting sets both anew


class Initial(NamedTuple):
    """A checkpoint to start from."""

    path: Path
    weights: dict[str, Tensor]
    tokenizer: ResoTokenizer


def read_initial(config: TrainConfig) -> Initial | None:
    """The checkpoint that `config.init_from` names; None where a run starts from random weights.

    Raises CheckpointError when the checkpoint is missing or damaged, TrainingError when it is no
    language model's, has no tokenizer, or does not fit `config` (naming the keys).
    """
    if config.init_from is None:
        return None
    path = resolve(Path(config.init_from).expanduser())
    tensors, documents = load_checkpoint(path)
    own = _model_values(documents, path)
    free = FREE if config.keep_memory else FREE | REFITTED
    changed = changed_keys(own, config.model.to_dict(), free, "model.")
    if changed:
        raise TrainingError(
            f"init_from: {path} does not fit this configuration: {', '.join(changed)}; leave "
            "these options out, or start without init_from"
        )
    if "tokenizer.json" not in documents:
        raise TrainingError(
            f"init_from: {path} has no tokenizer.json: export it with the engine's "
            "save_pretrained, which writes the tokenizer too"
        )
    tokenizer = ResoTokenizer.from_json(documents["tokenizer.json"], f"{path}/tokenizer.json")
    if "training.json" in documents:
        training = get_document(documents, path, "training.json", "tokenizer_fingerprint")
        check_tokenizer(tokenizer, training["tokenizer_fingerprint"], path)
    return Initial(path, tensors["model"], tokenizer)


def _model_values(documents: dict[str, Any], path: Path) -> dict[str, Any]:
    """The `model` section of a checkpoint as this version reads it."""
    if "config.json" not in documents:
        raise TrainingError(
            f"init_from: {path} is no language model's checkpoint; name a ResoLLM's"
        )
    return ResoLLMConfig.from_dict(get_document(documents, path, "config.json")).to_dict()


def model_options(init_from: str) -> dict[str, Any]:
    """Options `model.*` of the checkpoint, for a command line that does not set them."""
    path = resolve(Path(init_from).expanduser())
    documents = load_checkpoint(path, parts=())[1]
    return _flat(_model_values(documents, path), "model")


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        flat |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return flat
