"""The entry point of the package: loads a checkpoint, and has the methods of the v2 README."""

import dataclasses
from pathlib import Path
from typing import Any

from reso_llm.decoding.controllers import SRB
from reso_llm.decoding.text_class import StabilityCalibration
from reso_llm.generation.engine import Engine
from reso_llm.generation.text_engine import TextEngine
from reso_llm.generation.trained import load_trained
from run_core.checkpoint import build_from, save_directory
from run_core.hardware import pick_device

SHIPPED = Path(__file__).parent / "shipped"
"""The checkpoint that comes with the package; its README.md is the model card."""


class ResoLLMInference(Engine):
    """`Engine` of a checkpoint, alone or among other agents, and in a terminal."""

    @classmethod
    def from_pretrained(
        cls, directory: str | Path | None = None, device: str = "cpu"
    ) -> "ResoLLMInference":
        """The engine of a checkpoint, or of a run directory (its best one); by default the shipped.

        Raises as `load_trained` does, and ValueError for a device that there is not.
        """
        target = pick_device(device)
        path, model, tokenizer, training = load_trained(SHIPPED if directory is None else directory)
        engine = cls(model.to(target), tokenizer, model.config)
        engine.knows_system_messages = training.get("system_messages", False) is True
        engine.srb = build_from(SRB, training.get("srb", {}), f"{path}/training.json: srb")
        stability = training.get("stability_calibration")
        if stability is not None and "evidence" in stability:  # else of an earlier monitor
            place = f"{path}/training.json: stability_calibration"
            engine.stability_calibration = build_from(StabilityCalibration, stability, place)
        return engine

    def save_pretrained(self, directory: str | Path) -> None:
        """Write model, tokenizer, what is known of it and SRB's options; see `from_pretrained`.

        The session is saved apart (`reso_llm.session.saving`). Raises CheckpointError when the disk
        refuses or the directory is not a checkpoint, ValueError for weights that are not finite.
        """
        directory = Path(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        stability = self.stability_calibration
        training = {
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "stability_calibration": None if stability is None else stability._asdict(),
            "system_messages": self.knows_system_messages,
            "srb": _changed_options(self.srb),
        }
        save_directory(
            directory,
            tensors={"model": self.model.state_dict()},
            documents={
                "config.json": self.config.to_dict(),
                "tokenizer.json": self.tokenizer.to_json(),
                "training.json": training,
            },
        )

    def interactive_session(self, show_metrics: bool = True) -> None:
        """A conversation in the terminal; its commands are those of `chat.py`."""
        from reso_llm.chat.commands import run_in_terminal
        from reso_llm.chat.session import ChatSession

        run_in_terminal(ChatSession(self), show_metrics=show_metrics)


def load_engine(checkpoint: str | None, model: str | None, device: str = "cpu") -> TextEngine:
    """The engine of a checkpoint or run, by default the shipped, or of a model of transformers.

    Raises ValueError where both are given, and as `from_pretrained` of either class.
    """
    if checkpoint and model:
        raise ValueError("checkpoint and model are two models: give one of them")
    if model:
        from reso_llm.hf.engine import HFEngine

        return HFEngine.from_pretrained(model, device)
    return ResoLLMInference.from_pretrained(checkpoint, device)


def _changed_options(srb: SRB) -> dict[str, Any]:
    """The options of the rule that differ from its defaults."""
    default = dataclasses.asdict(SRB())
    return {name: v for name, v in dataclasses.asdict(srb).items() if v != default[name]}
