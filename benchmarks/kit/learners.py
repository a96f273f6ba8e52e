"""Models in training, side by side: the tasks, the learners, alternate slots, held-out scores.

Compared models are trained in turn in short slots of one process, each charged for its own seconds,
so that all see the same disturbances; the learning rates follow each model's own clock. Or each
makes a number of steps of its own (`trials.py`), on any device. Held-out text is the same for all:
the last tenth of the file for shakespeare (characters, contiguous windows: nanoGPT's protocol), the
last tenth of the rows for guanaco (bits per byte, each conversation scored by itself).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kit.gpt2 import EchoingGPT2
from reso_llm.config import ResoLLMConfig, small_config, with_stage
from reso_llm.data.conversation import Document
from reso_llm.data.prepare import tokenise_all
from reso_llm.data.sources import read_documents
from reso_llm.data.token_cache import Split
from reso_llm.data.windows import Batch, BatchStream
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training.config import OptimConfig
from reso_llm.training.document_past import DocumentPast
from reso_llm.training.evaluation import scored_nats
from reso_llm.training.objective import KNOWN_SHARE, StepObjective
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
    choice: Split | None = None  # validation text, by which `choice.py` chooses a checkpoint
    names: Sequence[bytes] = ()  # of the tokens, for an embedding that reads them
    counts: dict[tuple, tuple[Any, float]] = dataclasses.field(default_factory=dict, repr=False)

    def counted(self, key: tuple, count: Callable[[], Any]) -> tuple[Any, float]:
        """Counts of the training text that several models share, and the seconds they took."""
        if key not in self.counts:
            started = time.perf_counter()
            value = count()
            self.counts[key] = value, time.perf_counter() - started
        return self.counts[key]


def shakespeare(path: str) -> Task:
    """Characters, 4 layers of 128, context 64: about 0.8M parameters; n-grams of up to 8."""
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
    return Task(one_document(ids[:cut]), one_document(ids[cut:]), config,
                {"reso": 24, "gpt2": 12}, OptimConfig(matrix_lr=0.03), stride=64,
                memory_weight_decay=0.1)  # fmt: skip


def one_document(ids: np.ndarray) -> Split:
    """Characters (N,) as one document, of one byte each."""
    mask = np.zeros(len(ids), dtype=np.uint8)
    return Split(ids, mask, np.zeros(1, dtype=np.int64), len(ids), len(ids) - 1, 1)


def guanaco(path: str) -> Task:
    """BPE of 4096 tokens, 4 layers of 256, context 256: about 3.4M parameters, 2.9M in tables.

    The last tenth of the rows, by their order in the file, is held out.
    """
    documents = list(read_documents(path))
    cut = len(documents) * 9 // 10
    tokenizer = ResoTokenizer.train(_texts(documents[:cut]), 4096)
    sizes = [document.num_bytes for document in documents]
    train, val = _parted(tokenise_all(path, tokenizer), cut, sum(sizes[:cut]))
    return Task(train, val, small_config(), {"reso": 8, "gpt2": 8}, OptimConfig(), stride=128,
                names=tokenizer.names)  # fmt: skip


def with_choice(task: Task, num_rows: int) -> Task:
    """The task with its last training rows as validation rows, which no model is trained on."""
    num_rows_left = len(task.train.doc_starts) - num_rows
    if num_rows_left < 1:
        raise ValueError(f"{num_rows} validation rows: expected fewer than the training rows")
    # bytes are those of the tokens' share: losses of one text are compared with each other alone
    place = int(task.train.doc_starts[num_rows_left])
    num_bytes = round(task.train.num_bytes * place / task.train.num_tokens)
    train, choice = _parted(task.train, num_rows_left, num_bytes)
    return dataclasses.replace(task, train=train, choice=choice)


def _texts(documents: Iterable[Document]) -> Iterable[str]:
    for document in documents:
        yield from (message.content for message in document.messages)
        if document.text is not None:
            yield document.text


def _parted(whole: Split, cut: int, num_bytes: int) -> tuple[Split, Split]:
    """The first `cut` documents, of num_bytes bytes, and the others."""
    place = int(whole.doc_starts[cut])
    starts, num_tokens = whole.doc_starts, whole.num_tokens
    head = Split(whole.tokens[:place], whole.reply_mask[:place], starts[:cut],
                 place, num_bytes, cut)  # fmt: skip
    rest = Split(whole.tokens[place:], whole.reply_mask[place:], starts[cut:] - place,
                 num_tokens - place, whole.num_bytes - num_bytes, len(starts) - cut)  # fmt: skip
    return head, rest


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


def reso_learner(task: Task, config: ResoLLMConfig, seed: int, device: str = "cpu") -> Learner:
    """A model of `config`, charged for counting the text into its binding memory and its echo."""
    torch.manual_seed(seed)
    model = ResoLLMModel(config)
    model.embedding.read_names(task.names)
    return learner_for(model.to(device), task, seed)


def learner_for(model: ResoLLMModel, task: Task, seed: int) -> Learner:
    """A model in training on the device that it is on, by the optimizers of the task."""
    device, optim = model.head_weight.device, task.optim
    if model.prsc is not None:
        optim = dataclasses.replace(optim, weight_decay=task.memory_weight_decay)
    optimizers = make_optimizers(model, optim)
    stream = BatchStream(task.train, task.config.max_seq_len, task.batch["reso"], seed)
    fitting = fit_bindings(task, model)
    past, counting = counted_past(task, model)

    def step(progress: float) -> None:
        set_learning_rate(optimizers, learning_rate_factor(task.optim, progress))
        generator = torch.Generator().manual_seed(stream.position)
        objective = StepObjective(model, [on_device(stream, device)], generator, past=past)
        objective.pass_loss(0).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.optim.grad_clip)
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return Learner(model, step, task.batch["reso"], fitting + counting)


def gpt2_learner(task: Task, seed: int, echo: bool = False, device: str = "cpu") -> Learner:
    """nanoGPT's recipe: AdamW 1e-3, 3 % warmup, cosine to a tenth, weight decay 0.1, clip 1.

    With the echo, its scalars have the rate that ours has, and no decay; as in ours, half of the
    windows know nothing of their document's past.
    """
    torch.manual_seed(seed)
    config = with_stage(task.config, "echo", enabled=echo)
    model = EchoingGPT2(config).to(device)
    groups = [{"params": [*model.body.parameters()], "lr": 1e-3, "weight_decay": 0.1}]
    if model.echo is not None:
        scalars = [*model.echo.parameters()]
        groups.append({"params": scalars, "lr": task.optim.scalar_lr, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    peaks = [group["lr"] for group in groups]
    stream = BatchStream(task.train, config.max_seq_len, task.batch["gpt2"], seed)
    past, counting = counted_past(task, model)

    def step(progress: float) -> None:
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1.0, progress / 0.03 + 0.01) * cosine
        generator = torch.Generator().manual_seed(stream.position)
        known = torch.rand(task.batch["gpt2"], generator=generator) < KNOWN_SHARE
        batch = on_device(stream, device)
        evidence = past.evidence(batch.starts, config.max_seq_len, known)
        model.loss(batch.inputs, batch.targets, evidence).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Learner(model, step, task.batch["gpt2"], counting)


def on_device(stream: BatchStream, device: str) -> Batch:
    """The next windows, on the device."""
    return Batch(*(values.to(device) for values in stream.next()))


def fit_bindings(task: Task, model: ResoLLMModel) -> float:
    """`model.fit_bindings`, with tables that models of one task share; the seconds it takes."""
    if model.prsc is None:
        return 0.0

    def count() -> tuple[dict[str, torch.Tensor], int]:
        model.prsc.fit(task.train.tokens)
        return dict(model.prsc.named_buffers()), model.prsc.num_fitted

    device = model.head_weight.device
    (tables, model.prsc.num_fitted), seconds = task.counted((model.config.prsc, device), count)
    for name, table in tables.items():
        setattr(model.prsc, name, table)
    started = time.perf_counter()
    if model.gate is not None:
        model.gate.fit(model.prsc.doubts_within(task.train.tokens))
    return seconds + time.perf_counter() - started


def counted_past(task: Task, model: torch.nn.Module) -> tuple[DocumentPast, float]:
    """What windows of the training text know of their documents, and the seconds of counting."""

    def count() -> DocumentPast:
        past = DocumentPast(task.train, model)
        past.evidence(torch.from_numpy(np.asarray(task.train.doc_starts)), 1)
        return past

    max_order = model.config.echo.max_order if model.echo is not None else 0
    return task.counted((max_order, model.tail_length, model.head_weight.device), count)


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


def train_steps(
    learners: dict[str, Learner],
    num_steps: dict[str, int],
    progress: Callable[[float], None] = lambda steps: None,
) -> None:
    """One step of each in turn, until each has done its own number of them."""
    for done in range(max(num_steps.values(), default=0)):
        for name, learner in learners.items():
            if done < num_steps[name]:
                learner.timed_step(done / num_steps[name])
                progress(1)


def score(learner: Learner, task: Task) -> dict[str, float]:
    """What a trained model costs on the held-out text, by both protocols of `evaluation.py`.

    `bits_per_byte` and `nats_per_token` are of the stateful one.
    """
    bits = {}
    for prefix, stateful in (("", True), ("windowed_", False)):
        nats, tokens = total_nats(learner.model, task.val, task.stride, stateful)
        bits[f"{prefix}nats_per_token"] = nats / tokens
        bits[f"{prefix}bits_per_byte"] = nats / math.log(2) / task.val.num_bytes
    return bits


def total_nats(
    model: torch.nn.Module, text: Split, stride: int, stateful: bool = True
) -> tuple[float, int]:
    """What a text costs a model in all, and its number of tokens."""
    nats, tokens = 0.0, 0
    for losses, scored in scored_nats(model, text, stride=stride, stateful=stateful):
        nats += losses[scored].double().sum().item()
        tokens += int(scored.sum())
    return nats, tokens
