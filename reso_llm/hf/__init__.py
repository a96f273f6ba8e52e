"""Controllers inside Hugging Face's `generate`."""

from reso_llm.hf.control import Control, controlled
from reso_llm.hf.echo import EchoProcessor

__all__ = ["Control", "EchoProcessor", "controlled"]
