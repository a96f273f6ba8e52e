"""Controllers inside Hugging Face's `generate`."""

from reso_llm.hf.control import Control, controlled

__all__ = ["Control", "controlled"]
