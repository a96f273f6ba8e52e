"""Causal language models of transformers, from a directory or from the Hugging Face hub.

A directory, or a model that is in the hub's cache, is read without asking the network. Else the
model is downloaded in a child process that is ended when nothing has moved for `deadline` seconds.
Needs transformers (the extra `hf`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from run_core.download import cache_folder, fetch, is_offline, probe

DEADLINE_SECONDS = 60.0  # of a download that does not move
NO_TRANSFORMERS = 'models need transformers: pip install "reso-llm[hf]"'
FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]


def load_causal_lm(directory: str) -> tuple[Any, Any]:
    """Tokenizer and model of a directory, in float32 and eval mode.

    Raises ValueError where there is none.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ValueError(f"{directory}: {NO_TRANSFORMERS}") from None
    if not Path(directory, "config.json").is_file():
        raise ValueError(f"{directory} has no causal language model to load: no config.json in it")
    try:
        with no_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_pretrained(
                directory,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                trust_remote_code=False,  # never asks, and runs no code of a stranger
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{directory} has no causal language model to load: {reason}") from None
    return tokenizer, model.eval()


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Meanwhile transformers draws no bars for what it loads and saves."""
    from transformers.utils import logging

    were_drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_drawn:
            logging.enable_progress_bar()


def model_directory(name: str, deadline: float = DEADLINE_SECONDS) -> str:
    """Directory of the files of a model, after a download if that is needed and possible.

    name: a directory or a hub id. Raises ValueError where it cannot be had, and when a
    download stands still for `deadline` seconds.
    """
    if Path(name).is_dir():
        return name
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(f"{name}: {NO_TRANSFORMERS}") from None
    try:
        return snapshot_download(name, allow_patterns=FILES, local_files_only=True)
    except HFValidationError:
        raise ValueError(f"{name}: neither a directory nor a hub id") from None
    except LocalEntryNotFoundError:
        problem = "HF_HUB_OFFLINE is set" if is_offline() else ""
        folder = cache_folder("models", name)
        problem = problem or fetch("run_core.pretrained:download", [name], folder, deadline)
    if problem:
        raise ValueError(
            f"{name}: no directory, not in the local cache, and {problem}: give a local directory"
        )
    return snapshot_download(name, allow_patterns=FILES, local_files_only=True)


def download(name: str) -> None:
    """Body of the child process: fetch the files of a model into the hub's cache."""
    from huggingface_hub import constants, snapshot_download

    probe(f"{constants.ENDPOINT}/api/models/{name}")
    snapshot_download(name, allow_patterns=FILES)
