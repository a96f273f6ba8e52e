"""Causal language models of transformers, from a directory or from the Hugging Face hub.

A directory, or a model that is in the hub's cache, is read without asking the network. Else the
model is downloaded in a child process that is ended after `deadline` seconds, because the hub's
library waits for minutes on a server that accepts and never answers. Needs transformers (the
extra `hf`).
"""

import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

DEADLINE_SECONDS = 600.0  # of a download
PROBE_SECONDS = 10.0
FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]
CHILD = (
    "import sys; from huggingface_hub import snapshot_download; "
    "snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:])"
)


def load_causal_lm(directory: str) -> tuple[Any, Any]:
    """Tokenizer and model of a directory, in float32 and eval mode.

    Raises ValueError where there is none.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ValueError(f'{directory}: models need transformers: pip install -e ".[hf]"') from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{directory} has no causal language model to load: {reason}") from None
    return tokenizer, model.eval()


def model_directory(name: str, deadline: float = DEADLINE_SECONDS) -> str:
    """Where the files of a model are, after a download if that is needed and possible.

    name: a directory or a hub id. Raises ValueError where it cannot be had within `deadline`
    seconds.
    """
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
            f"{name}: no directory, not in the local cache, and {problem}: give a local directory"
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
