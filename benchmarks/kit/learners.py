"""Models in training, side by side: the tasks, the learners, alternate slots, held-out scores.

Compared models are trained in turn in short slots of one process, each charged for its own seconds,
so that all see the same disturbances; the learning rates follow each model's own clock. Held-out
text is the same for all: the last tenth of the file for shakespeare (characters, contiguous
windows: nanoGPT's protocol), a tenth of the conversations for guanaco (bits per byte, each
conversation scored by itself).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from reso_llm.config import ResoLLMConfig, small_config
from reso_llm.data.prepare import prepare, tokenizer_texts
from reso_llm.data.token_cache import Split
from reso_llm.data.windows import Batch, BatchStream, eval_batches
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training.config import OptimConfig
from reso_llm.training.objective import StepObjective
from reso_llm.training.optim import learning_rate_factor, make_optimizers, set_learning_rate

SLOT_SECONDS = 5.0


@dataclass
class Task:
    """A text to learn: data, the full stack's shape, and each kind of model's batch size."""

    train: Split
    val: Split
    config: ResoLLMConfig
    batch: dict[str, int]
    optim: OptimConfig
    stride: int
    memory_weight_decay: float = 0.0  # of models with a binding memory: it helps them alone
    names: Sequence[bytes] = ()  # of the tokens, for an embedding that reads them


def shakespeare(path: str) -> Task:
    """Characters, 4 layers of 128, context 64: about 0.8M parameters; up to eight are bound."""
    text = Path(path).read_text(encoding="utf-8")
    characters = sorted(set(text))
    ids = np.array([characters.index(c) for c in text], dtype=np.uint16)
    cut = int(len(ids) * 0.9)
    small = small_config()
    config = dataclasses.replace(
        small, vocab_size=len(characters), dim=128, num_heads=2, max_seq_len=64,
        tie_embeddings=False, temporal_smf=dataclasses.replace(small.temporal_smf, num_heads=2),
        prsc=dataclasses.replace(small.prsc, max_order=8, max_slots=64, max_entries=3_000_000),
    )  # fmt: skip
    return Task(_one_document(ids[:cut]), _one_document(ids[cut:]), config,
                {"reso": 24, "gpt2": 12}, OptimConfig(matrix_lr=0.03), stride=64,
                memory_weight_decay=0.1)  # fmt: skip


def _one_document(ids: np.ndarray) -> Split:
    mask = np.zeros(len(ids), dtype=np.uint8)
    return Split(ids, mask, np.zeros(1, dtype=np.int64), len(ids), len(ids) - 1, 1)


def guanaco(path: str) -> Task:
    """BPE of 4096 tokens, 4 layers of 256, context 256: about 4.2M parameters and the tables."""
    tokenizer = ResoTokenizer.train(tokenizer_texts(path, val_fraction=0.1), 4096)
    data = prepare(path, tokenizer, val_fraction=0.1)
    return Task(data.train, data.val, small_config(), {"reso": 8, "gpt2": 8}, OptimConfig(),
                stride=128, names=tokenizer.names)  # fmt: skip


TASKS = {"shakespeare": shakespeare, "guanaco": guanaco}


@dataclass
class Learner:
    """A model in training, and `step(progress)`, which makes one optimizer step."""

    model: torch.nn.Module
    step: Callable[[float], None]
    batch: int
    seconds: float = 0.0
    steps: int = 0

    def timed_step(self, progress: float) -> None:
        started = time.perf_counter()
        self.step(progress)
        self.seconds += time.perf_counter() - started
        self.steps += 1


def reso_learner(task: Task, config: ResoLLMConfig, seed: int) -> Learner:
    """A model of `config`, which is charged for counting the text into its binding memory."""
    torch.manual_seed(seed)
    model = ResoLLMModel(config)
    model.embedding.read_names(task.names)
    started = time.perf_counter()
    model.fit_bindings(task.train.tokens)
    fitting = time.perf_counter() - started
    return dataclasses.replace(learner_of(model, task, seed), seconds=fitting)


def learner_of(model: ResoLLMModel, task: Task, seed: int) -> Learner:
    """A model in training on the device that it is on, by the optimizers of the task."""
    optim = task.optim
    if model.prsc is not None:
        optim = dataclasses.replace(optim, weight_decay=task.memory_weight_decay)
    optimizers = make_optimizers(model, optim)
    device = model.head_weight.device
    stream = BatchStream(task.train, task.config.max_seq_len, task.batch["reso"], seed)

    def step(progress: float) -> None:
        set_learning_rate(optimizers, learning_rate_factor(task.optim, progress))
        generator = torch.Generator().manual_seed(stream.position)
        batch = Batch(*(values.to(device) for values in stream.next()))
        objective = StepObjective(model, [batch], generator, progress=progress)
        objective.pass_loss(0).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.optim.grad_clip)
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return Learner(model, step, task.batch["reso"])


def gpt2_like(config: ResoLLMConfig) -> torch.nn.Module:
    """Hugging Face GPT-2 (the extra `bench`) of the same shape, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.max_seq_len, n_embd=config.dim,
        n_layer=config.num_layers, n_head=config.num_heads, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=None,
    ))  # fmt: skip


def gpt2_learner(task: Task, seed: int) -> Learner:
    """nanoGPT's recipe: AdamW 1e-3, 3 % warmup, cosine to a tenth, weight decay 0.1, clip 1."""
    torch.manual_seed(seed)
    model = gpt2_like(task.config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True
    )
    stream = BatchStream(task.train, task.config.max_seq_len, task.batch["gpt2"], seed)

    def step(progress: float) -> None:
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, progress / 0.03 + 0.01) * cosine
        batch = stream.next()
        logits = model(batch.inputs).logits
        F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Learner(model, step, task.batch["gpt2"])


def train_alternately(
    learners: dict[str, Learner],
    budget: float,
    progress: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Slots in turn until every learner has used `budget` seconds of its own."""
    while any(learner.seconds < budget for learner in learners.values()):
        for learner in learners.values():
            before = learner.seconds
            while learner.seconds < min(budget, before + SLOT_SECONDS):
                learner.timed_step(learner.seconds / budget)
            progress(learner.seconds - before)


def train_equal_steps(
    learners: dict[str, Learner],
    num_steps: int,
    progress: Callable[[float], None] = lambda steps: None,
) -> None:
    """One step of each in turn, until all have done num_steps."""
    for done in range(num_steps):
        for learner in learners.values():
            learner.timed_step(done / num_steps)
            progress(1)


@torch.inference_mode()
def score(learner: Learner, task: Task) -> dict[str, float]:
    """What a trained model costs on the held-out text, and how fast it was trained."""
    learner.model.eval()
    nats, tokens = 0.0, 0
    context = task.config.max_seq_len
    for inputs, targets, scored in eval_batches(
        task.val.tokens, task.val.doc_starts, context, task.stride, 32
    ):
        logits = learner.model(inputs).logits.flatten(0, 1)
        losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
        nats += (losses.double() * scored.flatten()).sum().item()
        tokens += int(scored.sum())
    trained = learner.steps * learner.batch * context
    return {
        "tokens": trained, "tokens_per_second": round(trained / learner.seconds),
        "nats_per_token": nats / tokens, "bits_per_byte": nats / math.log(2) / task.val.num_bytes,
    }  # fmt: skip
