"""Runs the zombie test on a pair trained to one loss, or on two pretrained models.

Each seed gives one row, which `on_row` receives at once. For a trained pair a seed draws the
weights, the training windows and the noise, so the interval over seeds is one over trainings. For
pretrained models a seed draws the noise alone: that interval says nothing about other models.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cer.zombie import NoiseConfig, Subject, measure, summarise, unit_changes
from cer.zombie_hub import load_subject
from cer.zombie_models import Architecture, TinyLM, make_model
from cer.zombie_training import (
    TrainingConfig,
    common_loss,
    make_corpus,
    markov_text,
    stop_at,
    train,
    valid_windows,
)

KINDS = ("feed-forward", "state-space")
TOLERANCE = 0.01  # of the loss, within which the pair counts as matched


@dataclass(frozen=True)
class ZombieConfig:
    """The whole experiment; `num_layers` gives both models about the same number of weights."""

    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 96
    num_layers: tuple[int, int] = (3, 5)  # feed-forward, state-space
    context: int = 64
    num_windows: int = 32  # held out: for the common loss, and to be perturbed
    markov_bytes: int = 300_000  # where no text is given
    training: TrainingConfig = field(default_factory=TrainingConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)


def quick(config: ZombieConfig) -> ZombieConfig:
    """The same experiment in seconds, too small to conclude anything."""
    return replace(
        config, width=16, num_layers=(1, 1), context=16, num_windows=8, markov_bytes=20_000,
        training=TrainingConfig((60, 40), batch_size=8, learning_rate=0.01, eval_every=10),
        noise=NoiseConfig(levels=(0.1, 1.0), num_draws=4, num_ppl_draws=2, num_positions=2),
    )  # fmt: skip


def zombie_test(
    config: ZombieConfig, text: bytes | None, on_row: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train and measure a pair for every seed; {"rows": ..., "summary": ...}.

    Raises ValueError for a text that is too short or a pair whose losses differ by over 1 %.
    """
    return _collect(_trained_rows(config, text), on_row)


def zombie_test_pretrained(
    config: ZombieConfig,
    names: Sequence[str],
    text: str,
    on_row: Callable[[dict[str, Any]], None],
    *,
    deadline: float,
) -> dict[str, Any]:
    """The same for two pretrained models: directories or hub ids, feed-forward first.

    Their losses and tokens differ, so ΔPPL compares two tests and not two architectures.
    Raises ValueError unless there are two models and both can be loaded.
    """
    if len(names) != 2:
        raise ValueError(
            f"--models takes two, feed-forward then state-space, got {len(names)}: "
            + " ".join(names)
        )
    size = (config.context, config.num_windows)
    loaded = [load_subject(name, text, *size, deadline=deadline) for name in names]

    def rows() -> Iterator[dict[str, Any]]:
        for seed in config.seeds:
            models = [measure(subject, ids, config.noise, seed) for subject, ids in loaded]
            units = unit_changes(*loaded[0], config.noise, seed)
            yield {"seed": seed, "data": "text", "models": models, "units": units}

    return _collect(rows(), on_row)


def _collect(
    source: Iterator[dict[str, Any]], on_row: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    rows = []
    for row in source:
        on_row(row)
        rows.append(row)
    return {"rows": rows, "summary": summarise(rows)}


def _trained_rows(config: ZombieConfig, text: bytes | None) -> Iterator[dict[str, Any]]:
    given = text if text is not None else markov_text(config.markov_bytes, seed=0)
    corpus = make_corpus(given, config.context)
    valid = valid_windows(corpus, config.context, config.num_windows)
    for seed in config.seeds:
        models, paths = [], []
        for k, kind in enumerate(KINDS):
            size = (config.width, config.num_layers[k], config.context)
            models.append(make_model(Architecture(kind, corpus.vocab_size, *size), seed))
            steps = config.training.steps[k]
            paths.append(train(models[-1], corpus, valid, config.training, steps, seed))
        target = common_loss(tuple(paths))
        for model, path in zip(models, paths, strict=True):
            stop_at(model, path, target, valid)
        subjects = [subject_of(kind, m) for kind, m in zip(KINDS, models, strict=True)]
        measured = [measure(subject, valid, config.noise, seed) for subject in subjects]
        _check_match([m["clean_nats"] for m in measured])
        for record, model, path in zip(measured, models, paths, strict=True):
            record["num_parameters"] = sum(p.numel() for p in model.parameters())
            record["best_nats"] = min(path.losses)
        yield {
            "seed": seed,
            "data": "markov" if text is None else "text",
            "common_nats": target,
            "models": measured,
            "units": unit_changes(subjects[0], valid, config.noise, seed),
        }


def subject_of(name: str, model: TinyLM) -> Subject:
    """The test's subject for a trained model, whose head is its embedding table."""
    table = model.table.weight.detach()
    return Subject(name, table, model.states, table)


def _check_match(losses: Sequence[float]) -> None:
    if abs(losses[0] - losses[1]) > TOLERANCE * min(losses):
        raise ValueError(
            f"the pair is not matched: {losses[0]:.4f} and {losses[1]:.4f} nats; "
            "take snapshots more often (eval_every)"
        )
