"""Real language models as subjects of the zombie test.

Shapes: table and head (V,D), ids (B,T+1).
"""

from torch import Tensor

from cer.zombie import Subject
from run_core.pretrained import load_causal_lm, model_directory


def load_subject(
    name: str, text: str, context: int, num_windows: int, *, deadline: float
) -> tuple[Subject, Tensor]:
    """A causal language model and `num_windows` windows of `text` in its own tokens, (B,T+1).

    name: directory or hub id with config, safetensors weights and tokenizer; `deadline` in seconds.
    Raises ValueError when it cannot be had, has no plain linear head, or the text is too short.
    """
    tokenizer, model = load_causal_lm(model_directory(name, deadline))
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
