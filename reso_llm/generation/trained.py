"""Reads the checkpoint of a language model: weights, the tokenizer they mean something with."""

from pathlib import Path
from typing import Any, NamedTuple

from entropy_core.checks import require
from reso_llm.config import ResoLLMConfig
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer, check_tokenizer
from run_core.checkpoint import get_document, load_checkpoint
from run_core.run import resolve


class Trained(NamedTuple):
    """A trained model, its tokenizer, and what was recorded beside them (training.json)."""

    path: Path
    model: ResoLLMModel
    tokenizer: ResoTokenizer
    training: dict[str, Any]


def load_trained(directory: str | Path) -> Trained:
    """Read a checkpoint, or the best one of a run.

    Raises CheckpointError for one that is missing or damaged, ValueError for another type, for one
    of another kind, and where the tokenizer beside it is not the one the model was trained with.
    """
    require(isinstance(directory, str | Path), "directory", directory, "the path of a checkpoint")
    path = resolve(directory)
    tensors, documents = load_checkpoint(path)
    for name in ("config.json", "tokenizer.json", "training.json"):
        if name not in documents:
            raise ValueError(f"{path} has no {name}: not the checkpoint of a language model")
    training = get_document(documents, path, "training.json", "tokenizer_fingerprint")
    config = ResoLLMConfig.from_dict(get_document(documents, path, "config.json"))
    tokenizer = ResoTokenizer.from_json(documents["tokenizer.json"], f"{path}/tokenizer.json")
    check_tokenizer(tokenizer, training["tokenizer_fingerprint"], path)
    model = ResoLLMModel.from_weights(config, tensors["model"], path)
    return Trained(path, model, tokenizer, training)
