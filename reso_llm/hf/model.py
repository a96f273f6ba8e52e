"""ResoLLM as a model of Hugging Face transformers: `ResoConfig` and `ResoForCausalLM`.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    import reso_llm.hf.model                            # registers the classes
    model = AutoModelForCausalLM.from_pretrained(OUT)   # OUT is written by `reso_llm.hf.export`

`ResoForCausalLM` wraps `reso_llm.network`, which is the only forward pass. Rows that are padded on
the left are read without their padding, so each row gets the logits that it gets alone. The cache
is a `ResoState`. Evidence and echo come after the head, so that the tools which take hidden states
times the head (TRL) are given the logits and an identity. Importing this module imports
transformers.

Shapes: B rows, T columns, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from reso_llm.hf.cache import left_padding
from reso_llm.hf.configuration import MODELING_FILE, ResoConfig
from reso_llm.hf.reading import read, read_rows, without_first
from reso_llm.hf.state_cache import ResoCache
from reso_llm.network import ResoNetwork
from reso_llm.stages.prsc import TABLES


@dataclass
class ResoCausalOutput(CausalLMOutputWithPast):
    """Loss, logits (B,T,V) and cache."""

    @property
    def last_hidden_state(self) -> Tensor:
        """The logits: what `get_output_embeddings`, an identity, is to be applied to."""
        return self.logits


class ResoForCausalLM(PreTrainedModel, GenerationMixin):
    """`ResoNetwork` as a causal language model of transformers; see the module's docstring."""

    config_class = ResoConfig
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # the loss is divided by the items of all accumulated batches
    _is_stateful = True  # no assisted decoding: a state cannot be taken back
    _no_split_modules: ClassVar[list[str]] = ["ResoNetwork"]

    def __init__(self, config: ResoConfig) -> None:
        super().__init__(config)
        self.network = ResoNetwork(config.network_config())
        if self.network.prsc is not None and config.table_shapes:
            shapes = config.table_shapes.items()
            self.network.prsc.make_room({n: torch.empty(s, device="meta") for n, s in shapes})
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: ResoCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_read: int | None = None,
        fold: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> ResoCausalOutput:
        """Logits (B,T,V), or of the last `logits_to_keep` columns, and the loss of labels (B,T).

        attention_mask: zeros hide columns at the left; those at the right, allowed without a cache,
        have logits that mean nothing. Where a cache holds tokens, it knows their padding. labels:
        -100 is no target, nor is the first token of a row. num_read: columns from it on are the
        model's own words, which the echo weighs by `own_weight`; `generate` sets it. fold (B,): for
        a model whose memory has counted the very text that it is trained on, the span that each row
        is from (`reso_llm.stages.prsc`).

        Raises ValueError for a mask with holes and for more tokens than the context has.
        """
        use_cache = past_key_values is not None if use_cache is None else use_cache
        before = None if past_key_values is None else past_key_values.state
        if before is not None:
            logits, after = read(self.network, input_ids, before, num_read, fold)
        else:
            padding = left_padding(attention_mask, len(input_ids), with_end=not use_cache)
            labels = without_first(labels, padding)
            logits, after = read_rows(
                self.network, input_ids, padding, num_read, fold, with_state=use_cache
            )
        cache = None
        if use_cache:
            cache = ResoCache() if past_key_values is None else past_key_values
            cache.state = after
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        kept = logits[:, -logits_to_keep:]  # all of them for 0
        return ResoCausalOutput(loss=loss, logits=kept, past_key_values=cache)

    # --- generate

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, *args: Any
    ) -> None:
        """Begin with an empty `ResoCache`, where there is to be one and none is given."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation = {generation_config.cache_implementation!r}: this model "
                "has a cache of its own; leave it unset"
            )
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = ResoCache()

    def _expand_inputs_for_generation(self, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """Also note how many columns the model reads, before it writes its own."""
        input_ids, kwargs = super()._expand_inputs_for_generation(**kwargs)
        kwargs.setdefault("num_read", input_ids.shape[1])
        return input_ids, kwargs

    # --- what transformers asks of a model

    def _init_weights(self, module: nn.Module) -> None:
        """Rebuild constants: the stages set their own parameters, and a checkpoint holds those."""
        if hasattr(module, "constants"):
            for name, tensor in module.constants().items():
                initialization.copy_(getattr(module, name), tensor)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """See transformers. Raises ValueError unless the weights are all there, and no others."""
        asked = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        wrong = {name: sorted(map(str, info[name])) for name in WRONG if info.get(name)}
        if wrong:
            shown = "; ".join(f"{name} {', '.join(keys[:3])}" for name, keys in wrong.items())
            raise ValueError(f"{args[0] if args else cls.__name__}: damaged weights: {shown}")
        return (model, info) if asked else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """See transformers; the shapes of the memory's tables and `modeling_reso.py` go along."""
        self.config.table_shapes = table_shapes(self.network)
        super().save_pretrained(save_directory, *args, **kwargs)
        write_modeling_file(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Do nothing, as `ResoConfig.register_for_auto_class`."""

    def get_input_embeddings(self) -> nn.Embedding:
        return self.network.embedding.table

    def token_vectors(self, ids: Tensor) -> Tensor:
        """Embeddings (...,D) of ids (...), their primes' share included."""
        return F.embedding(ids, self.network.embedding.weight)

    def get_output_embeddings(self) -> nn.Linear:
        """The identity (V,V): see `ResoCausalOutput.last_hidden_state`."""
        with torch.device("meta"):
            head = nn.Linear(self.config.vocab_size, self.config.vocab_size, bias=False)
        identity = torch.eye(self.config.vocab_size, dtype=self.dtype, device=self.device)
        head.weight = nn.Parameter(identity, requires_grad=False)
        return head

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any):
        """The embeddings. ValueError for another size: primes and counts belong to the tokens."""
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ValueError(
                f"new_num_tokens = {new_num_tokens}: a ResoLLM keeps its {self.config.vocab_size} "
                "tokens; train another one for other tokens"
            )
        return self.get_input_embeddings()


WRONG = ("missing_keys", "unexpected_keys", "mismatched_keys")


def table_shapes(network: ResoNetwork) -> dict[str, list[int]]:
    """Shapes of the binding memory's tables, which depend on the text that it counted."""
    if network.prsc is None:
        return {}
    return {name: list(getattr(network.prsc, name).shape) for name in TABLES}


def write_modeling_file(directory: Any) -> None:
    """Write the module that `auto_map` names: the import of these classes."""
    text = "from reso_llm.hf.model import ResoConfig, ResoForCausalLM\n"
    Path(directory, f"{MODELING_FILE}.py").write_text(text, encoding="utf-8")


AutoConfig.register(ResoConfig.model_type, ResoConfig)
AutoModelForCausalLM.register(ResoConfig, ResoForCausalLM)
