"""How likely a reply is to an engine that reads a prompt as it does when it writes."""

import torch

from reso_llm.generation.engine import Engine
from reso_llm.generation.options import GenerationOptions
from reso_llm.generation.prompt import Prompt


@torch.inference_mode()
def reply_nats(engine: Engine, prompt: Prompt, reply: str) -> float:
    """Mean nats a token of a reply, without its end; goals and memory act as in `generate`.

    The session notes nothing. Raises ValueError for a reply without a token, and as `generate`.
    """
    ids = engine.tokenizer.encode(reply)
    if not ids:
        raise ValueError(f"reply = {reply!r}: expected a text with a token")
    options = GenerationOptions(max_length=len(ids) + 1, metrics=False)
    job = engine.start([prompt], options, [0])
    row, total = job.rows[0], 0.0
    for token in ids:
        prediction = job.context.predict()
        logits = prediction.logits[0].double()
        total += (logits.logsumexp(-1) - logits[token]).item()
        row.take(token, "", None, prediction, 0)
    return total / len(ids)
