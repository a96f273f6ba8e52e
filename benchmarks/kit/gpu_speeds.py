"""How fast a model is on a device, in training and in decoding, and what memory that takes.

Shapes: B windows, T tokens.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.kit.bounds import attention_products, matrix_numbers
from benchmarks.kit.gpt2 import gpt2_like, llama_like
from benchmarks.kit.gpu_setting import NotHere, Setting
from benchmarks.kit.records import Row, num_parameters
from benchmarks.studies.speed import generating, made, random_model
from reso_llm.config import ResoLLMConfig, control_of
from reso_llm.data.windows import Batch
from reso_llm.network import ResoState
from reso_llm.training.config import OptimConfig
from reso_llm.training.objective import StepObjective
from reso_llm.training.optim import make_optimizers

TOKENS = 16_384  # of one training step
DECODED = 64


def training(setting: Setting, config: ResoLLMConfig, name: str) -> Row:
    """Speed, MFU and the most memory of training steps of about TOKENS tokens in bfloat16."""
    windows = 2 if setting.tiny else TOKENS // config.max_seq_len
    config = control_of(config) if name == "control" else config
    model, loss, optimizers = learning(setting, config, name)
    ids = setting.ids(config, windows, config.max_seq_len + 1)
    reply = torch.ones(windows, config.max_seq_len, dtype=torch.bool, device=setting.device)
    starts = torch.arange(windows, device=setting.device)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), reply, starts)

    def step() -> None:
        with setting.bfloat16():
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    seconds = statistics.median(setting.seconds(step))
    operations = 6 * matrix_numbers(model, config) * batch.inputs.numel()
    operations += 3 * windows * attention_products(config, config.max_seq_len)
    row = {
        "parameters": num_parameters(model), "windows": windows, "context": config.max_seq_len,
        "tokens_per_second": round(batch.inputs.numel() / seconds),
        "mfu": round(operations / seconds / setting.operations_a_second, 4),
        "peak_gb": None,
    }  # fmt: skip
    if setting.device.type == "cuda":
        row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    if getattr(model, "echo", None) is not None:  # counted on the CPU, whatever the device
        count = partial(model.echo.window_evidence, batch.inputs, batch.targets)
        row["echo_share"] = round(statistics.median(setting.seconds(count)) / seconds, 3)
    return row


def learning(setting: Setting, config: ResoLLMConfig, name: str) -> tuple:
    """A model by its name, its loss of a batch, and its optimizers."""
    if name in ("gpt2", "llama"):
        theirs = {"gpt2": gpt2_like, "llama": llama_like}[name](config).to(setting.device)

        def their_loss(batch: Batch) -> Tensor:
            logits = theirs(batch.inputs).logits.flatten(0, 1)
            return nn.functional.cross_entropy(logits.float(), batch.targets.flatten())

        return theirs, their_loss, [torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)]
    model, generator = made(config, setting.fitted).to(setting.device), torch.Generator()

    def loss(batch: Batch) -> Tensor:
        return StepObjective(model, [batch], generator).pass_loss(0)

    return model, loss, list(make_optimizers(model, OptimConfig()).values())


@torch.no_grad()
def decoding(setting: Setting, config: ResoLLMConfig, mode: str) -> Row:
    """Greedy tokens a second of the network alone; how often CUDA graphs were not possible."""
    if mode == "cuda graphs" and setting.device.type != "cuda":
        raise NotHere("CUDA graphs need CUDA")
    model = random_model(config, setting.fitted).to(setting.device)
    forward, prompt = model.forward, setting.ids(config, 1, 16)
    if mode == "compiled":
        forward = torch.compile(forward, backend=setting.backend)
    elif mode == "cuda graphs":
        forward = torch.compile(forward, mode="reduce-overhead")
    state = model(prompt, model.init_state()).state
    torch._dynamo.utils.counters.clear()
    seconds = statistics.median(setting.seconds(partial(write, setting, forward, state)))
    counted = torch._dynamo.utils.counters
    return {
        "tokens_per_second": round(decoded(setting) / seconds, 1),
        "cudagraph_skips": counted["inductor"]["cudagraph_skips"],
        "graphs": counted["stats"]["unique_graphs"],
    }


def write(setting: Setting, forward: Callable, state: ResoState) -> None:
    """The most probable tokens after a state."""
    token = torch.full((1, 1), 7, device=setting.device)
    for _ in range(decoded(setting)):
        output = forward(token, state)
        token, state = output.logits[:, -1:].argmax(-1), output.state


def decoded(setting: Setting) -> int:
    return 4 if setting.tiny else DECODED


def writing(setting: Setting, config: ResoLLMConfig) -> Row:
    """Greedy tokens a second of the engine, with all its measures."""
    model = random_model(config, setting.fitted).to(setting.device)
    generate = generating(model, setting.ids(config, 1, 16), new_tokens=decoded(setting))
    return {"tokens_per_second": round(max(generate() for _ in range(2)), 1)}


@torch.inference_mode()
def decoding_gpt2(setting: Setting, config: ResoLLMConfig) -> Row:
    """Greedy tokens a second of `generate` of Hugging Face GPT-2."""
    theirs, prompt = gpt2_like(config).to(setting.device).eval(), setting.ids(config, 1, 16)
    count = decoded(setting)
    work = partial(
        theirs.generate, prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
        max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
    )  # fmt: skip
    return {"tokens_per_second": round(count / statistics.median(setting.seconds(work)), 1)}
