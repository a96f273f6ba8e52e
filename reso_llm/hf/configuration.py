"""The configuration of a ResoLLM as one of transformers.

Only a module that needs transformers anyway may import this one.
"""

from typing import Any

from transformers import PreTrainedConfig

from reso_llm.config import ResoLLMConfig

MODELING_FILE = "modeling_reso"
"""Module of an export that imports the classes of this one; `auto_map` names it."""


class ResoConfig(PreTrainedConfig):
    """reso: `ResoLLMConfig.to_dict()`. table_shapes: of the binding memory's tables, by name."""

    model_type = "reso"
    reso: dict | None = None
    table_shapes: dict | None = None
    auto_map: dict | None = None
    tie_word_embeddings: bool = False  # the network ties them itself
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.reso = self.network_config().to_dict()
        self.auto_map = {
            "AutoConfig": f"{MODELING_FILE}.ResoConfig",
            "AutoModelForCausalLM": f"{MODELING_FILE}.ResoForCausalLM",
        }
        super().__post_init__(**kwargs)

    def network_config(self) -> ResoLLMConfig:
        """The configuration of the network; ValueError naming an unknown key or a wrong value."""
        return ResoLLMConfig.from_dict(self.reso or {})

    @property
    def vocab_size(self) -> int:
        return self.reso["vocab_size"]

    @property
    def hidden_size(self) -> int:
        return self.reso["dim"]

    @property
    def num_hidden_layers(self) -> int:
        return self.reso["num_layers"]

    @property
    def num_attention_heads(self) -> int:
        return self.reso["num_heads"]

    @property
    def max_position_embeddings(self) -> int:
        return self.reso["max_seq_len"]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: an export imports this module, so its source is not copied beside weights."""
