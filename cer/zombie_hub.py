"""Real language models for the zombie test, from a directory or from the Hugging Face hub.

A directory, or a model that is in the hub's cache, is read without asking the network. Else the
model is downloaded in a child process that is ended after `deadline` seconds, because the hub's
library waits for minutes on a server that accepts and never answers. Needs transformers (the
extra `hf`). Shapes: table and head (V,D), ids (B,T+1).
"""

import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from torch import Tensor

from cer.zombie import Subject

PROBE_SECONDS = 10.0
FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
CHILD = (
    "import sys; from huggingface_hub import snapshot_download; "
    "snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:])"
)


def load_subject(
    name: str, text: str, context: int, num_windows: int, *, deadline: float
) -> tuple[Subject, Tensor]:
    """A causal language model and `num_windows` windows of `text` in its own tokens, (B,T+1).

    name: directory or hub id with config, safetensors weights and tokenizer; `deadline` in seconds.
    Raises ValueError when it cannot be had, has no plain linear head, or the text is too short.
    """
    directory = _directory(name, deadline)
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name} has no causal language model to load: {reason}") from None
    model.eval()
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None or head.weight.shape[1] != model.config.hidden_size:
        raise ValueError(f"{name}: the head must be linear, without bias and of the model's width")
    table = model.get_input_embeddings().weight.detach()

    def states(embeddings: Tensor) -> Tensor:
        return model.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state

    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    return Subject(name, table, states, head.weight.detach()), _windows(
        ids, context, num_windows, name
    )


def _windows(ids: Tensor, context: int, num_windows: int, name: str) -> Tensor:
    size = context + 1
    if len(ids) < num_windows * size:
        raise ValueError(
            f"the text has {len(ids)} tokens of {name}, {num_windows} windows need "
            f"{num_windows * size}"
        )
    return ids[: num_windows * size].view(num_windows, size)


def _directory(name: str, deadline: float) -> str:
    """Where the model's files are, after a download if that is needed and possible."""
    if Path(name).is_dir():
        return name
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError(f'{name}: models need transformers: pip install -e ".[hf]"') from None
    try:
        return snapshot_download(name, allow_patterns=FILES, local_files_only=True)
    except HFValidationError:
        raise ValueError(f"{name}: neither a directory nor a hub id") from None
    except LocalEntryNotFoundError:
        problem = "HF_HUB_OFFLINE is set" if _offline() else _download(name, deadline)
    if problem:
        raise ValueError(
            f"{name}: not in the local cache, and {problem}. Give a local directory, or leave "
            "--models out to train a matched pair"
        )
    return snapshot_download(name, allow_patterns=FILES, local_files_only=True)


def _offline() -> bool:
    flags = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(flag.upper() in {"1", "ON", "YES", "TRUE"} for flag in flags)


def _download(name: str, deadline: float) -> str:
    """Fetch the model in a child process; "" or what went wrong."""
    from huggingface_hub import constants

    if problem := _probe(f"{constants.ENDPOINT}/api/models/{name}", min(deadline, PROBE_SECONDS)):
        return problem
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, name, *FILES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=deadline,
        )
    except subprocess.TimeoutExpired:
        return f"the download did not end within {deadline:g} seconds"
    lines = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
    return f"the hub cannot be used ({lines[-1] if lines else '?'})" if done.returncode else ""


def _probe(url: str, seconds: float) -> str:
    """Fail soon when nothing answers at `url`; any answer is good enough."""
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.HTTPError:
        return ""
    except TimeoutError:
        return f"the hub did not answer within {seconds:g} seconds"
    except urllib.error.URLError as error:
        # The hub's library brings its own certificates; those of Python may be missing.
        return "" if isinstance(error.reason, ssl.SSLError) else f"the hub: {error.reason}"
    return ""
