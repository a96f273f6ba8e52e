"""The tokenizer of a ResoLLM as one of transformers.

    tok("text")                       <|bos|> and the text
    tok.apply_chat_template(messages, add_generation_prompt=True, sanitize_control_tokens=True)
                                      the ids of `ResoTokenizer.encode_prompt`

`sanitize_control_tokens=True` matters: without it a message that says "<|end|>" ends its turn.
`tok("<|user|>")` gives the control token in any case; so give `tok` no text of strangers.
Padding is `<|bos|>`, which no text contains, and which as a label stands for nothing: with
`<|end|>` for padding a model would never be taught to end.
"""

from typing import Any

from tokenizers import Tokenizer, decoders, processors

from reso_llm.tokenizer import SPECIAL_TOKENS, ResoTokenizer

BOS, SYSTEM, USER, ASSISTANT, END = SPECIAL_TOKENS
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' + message['content'] + '<|end|>' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] + '<|end|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']"
    " + ': use system, user or assistant') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Layout of `ResoTokenizer.encode_conversation`, in Jinja."""


def hf_tokenizer(tokenizer: ResoTokenizer, context_length: int) -> Any:
    """The tokenizer as a `PreTrainedTokenizerFast` that pads on the left and adds `<|bos|>`."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.to_json())
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.bos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=END,
        pad_token=BOS,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
