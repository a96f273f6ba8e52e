"""A training run from its configuration to its last checkpoint."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from reso_llm.data.errors import DataError
from reso_llm.data.prepare import prepare, tokenizer_texts
from reso_llm.data.sources import absolute
from reso_llm.data.token_cache import TokenData
from reso_llm.tokenizer import ResoTokenizer, check_tokenizer, create_default_tokenizer
from reso_llm.training.config import TrainConfig
from reso_llm.training.initial import Initial, read_initial
from reso_llm.training.trainer import Trainer, TrainSummary
from run_core import terminal
from run_core.checkpoint import get_document, load_checkpoint
from run_core.files import expanded
from run_core.hardware import pick_device, require_memory
from run_core.run import Report, TrainingError, find_start, open_run, write_records
from run_core.world import ALONE, World, is_restart_of, launch, local_device, open_world

BYTES_PER_WEIGHT = 4  # in float32
BYTES_LEARNING = 8  # for each weight: its gradient, and one number of the optimizer


def train(
    config: TrainConfig, *, resume: bool = False, report: Report = terminal.report
) -> TrainSummary:
    """Run the training `config` describes; messages go to `report`, progress to stderr.

    Called by several processes of one run (`run_core/world.py`), it is one training by all of them;
    the first alone reports, and writes to the run. Raises TrainingError, DataError, CheckpointError
    or RunLogError, each with one message.
    """
    with _as_training_error():
        config = _with_absolute_paths(config)
        device = local_device(pick_device(config.device))
    with open_world(device) as world:
        return _train(config, device, world, resume, report if world.is_first else _unreported)


def _train(
    config: TrainConfig, device: torch.device, world: World, resume: bool, report: Report
) -> TrainSummary:
    with _as_training_error():
        _require_memory(config, device, world)
    with contextlib.ExitStack() as held:
        if world.is_first:
            resume = resume or is_restart_of(config.out)
            held.enter_context(open_run(config.out, resume))
        with _as_training_error():
            start = world.first_does(lambda: find_start(Path(config.out), resume, report))
            if start is None and world.is_first:
                write_records(config.out, config, device, **launch())  # now --resume finds a run
            initial = read_initial(config) if start is None else None
            tokenizer = _tokenizer(config, start, initial, report, world)
            data = _prepare(config, tokenizer, report, world)
            trainer = Trainer(config, tokenizer, data, device, report, initial, world)
            if initial is not None:
                report(f"starting from the weights of {initial.path}")
            if start is not None:
                trainer.restore(start)
                if world.is_first:
                    write_records(config.out, config, device, **launch())
        return trainer.run()


def _unreported(text: str) -> None:
    """What a process that is not the first reports goes nowhere."""


def _require_memory(config: TrainConfig, device: torch.device, world: World) -> None:
    """MemoryError, before anything is built, for a model or a step that cannot fit.

    ValueError for windows that cannot be shared equally.
    """
    windows = len(range(config.batch_size)[world.rows(config.batch_size, "batch_size")])
    model = config.model
    shares = world.size if config.shard else 1
    needed = model.least_parameters * (BYTES_PER_WEIGHT + BYTES_LEARNING // shares)
    require_memory(needed, device, f"training {model.least_parameters:,} parameters")
    tokens = windows * model.max_seq_len
    needed = tokens * model.num_layers * model.dim * 2  # one bfloat16 activation of each layer
    require_memory(needed, device, f"a pass of batch_size = {windows:,} windows")
    passes = config.grad_accumulation
    needed = passes * tokens * 16  # inputs and targets
    require_memory(needed, device, f"a step of grad_accumulation = {passes:,} passes")


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration with absolute paths, so that a run resumes from any directory."""
    val_data = None if config.val_data is None else absolute(config.val_data)
    initial = config.init_from and str(Path(expanded(config.init_from)).resolve())
    return dataclasses.replace(
        config,
        data=absolute(config.data),
        val_data=val_data,
        tokenizer=config.tokenizer and expanded(config.tokenizer),
        init_from=initial,
        out=expanded(config.out),
    )


def _tokenizer(
    config: TrainConfig,
    start: Path | None,
    initial: Initial | None,
    report: Report,
    world: World = ALONE,
) -> ResoTokenizer:
    """The tokenizer of the checkpoint, the configured one, or one trained on the data."""
    if start is not None:
        _, documents = load_checkpoint(start, parts=())
        if "tokenizer.json" not in documents:
            raise TrainingError(f"{start} is no language model's checkpoint; choose another --out")
        training = get_document(
            documents, start, "training.json", "tokenizer_fingerprint", "config"
        )
        tokenizer = ResoTokenizer.from_json(documents["tokenizer.json"], f"{start}/tokenizer.json")
        check_tokenizer(tokenizer, training["tokenizer_fingerprint"], start)
    elif initial is not None:
        tokenizer = initial.tokenizer
    elif config.tokenizer is not None:
        default = config.tokenizer == "default"
        tokenizer = create_default_tokenizer() if default else ResoTokenizer.load(config.tokenizer)
    else:
        report(f"training a tokenizer of {config.model.vocab_size} tokens on {config.data}")
        content = world.first_does(lambda: _trained_tokenizer(config).to_json())
        tokenizer = ResoTokenizer.from_json(content, "the tokenizer of the first process")
    if tokenizer.vocab_size > config.model.vocab_size:
        raise TrainingError(
            f"the tokenizer has {tokenizer.vocab_size} tokens: set model.vocab_size to at least "
            f"that (it is {config.model.vocab_size})"
        )
    return tokenizer


def _trained_tokenizer(config: TrainConfig) -> ResoTokenizer:
    texts = tokenizer_texts(
        config.data,
        columns=config.columns,
        val_fraction=config.val_fraction,
        val_spec=config.val_data,
        on_bad_row=config.on_bad_row,
    )
    return ResoTokenizer.train(texts, config.model.vocab_size)


def _prepare(
    config: TrainConfig, tokenizer: ResoTokenizer, report: Report, world: World = ALONE
) -> TokenData:
    """The tokens; of the processes of a machine one makes them, and the others wait for it."""
    options = {"unit": "B", "unit_scale": True, "leave": False}
    bar = terminal.progress_bar("tokenising", silent=not world.is_first, **options)
    with logging_redirect_tqdm(), bar:  # so that a warning has a line of its own
        data = prepare(
            config.data,
            tokenizer,
            columns=config.columns,
            val_fraction=config.val_fraction,
            val_spec=config.val_data,
            on_bad_row=config.on_bad_row,
            progress=lambda documents, size: bar.update(size - bar.n),
        )
    for line in data.summary.lines():
        report(line)
    if data.bad_rows.count:
        report(data.bad_rows.summary())
    for name, split in (("train", data.train), ("validation", data.val)):
        report(
            f"{name}: {split.num_documents:,} documents, {split.num_bytes:,} bytes, "
            f"{split.num_tokens:,} tokens"
        )
    if config.replies_only and not data.train.reply_mask.any():
        raise TrainingError(f"replies_only is set, but {config.data} has no assistant's replies")
    return data


@contextlib.contextmanager
def _as_training_error() -> Iterator[None]:
    """Turn a ValueError or OSError of setting a run up into one message for the user."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise TrainingError(f"cannot write {reason}") from error
    except ValueError as error:
        raise TrainingError(str(error)) from error
