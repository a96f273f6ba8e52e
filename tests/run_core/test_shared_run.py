"""A run directory that is hostile, shared or used by hand, and output that nobody reads."""

import contextlib
import errno
import io
import json
import logging
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.studies import soak
from reso_llm.data.errors import DataError
from reso_llm.data.token_cache import default_cache_dir
from reso_llm.training.evaluation import LanguageModelScore
from run_core import config_file, streams, terminal
from run_core.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
    build_from,
    load_checkpoint,
    save_directory,
    verify,
)
from run_core.files import expanded, seal
from run_core.lock import RunBusyError, lock_run
from run_core.run import (
    newest_checkpoint,
    open_run,
    prune,
    record_best,
    resolve,
    save_checkpoint,
    step_paths,
)
from run_core.signals import Abandoned, StopRequests
from run_core.wandb_log import chosen_mode, run_id


def save(run, step):
    tensors = {"model": {"w": torch.full((4,), float(step))}}
    return save_checkpoint(run, step, tensors=tensors, documents={"training.json": {}})


def never(message):
    raise AssertionError(f"unexpected warning: {message}")


def test_files_that_the_manifest_does_not_list_are_no_damage(tmp_path):
    path = save(tmp_path, 1)
    for name in (".DS_Store", "README.md", ".gitattributes"):
        (path / name).write_text("not ours")
    (path / "notes").mkdir()
    assert newest_checkpoint(tmp_path, never) == path


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", ".tmp-mine", "metrics.jsonl"])
def test_a_directory_with_own_files_is_refused_and_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine: 1")
    with pytest.raises(CheckpointError, match="holds files that are no run's"), open_run(tmp_path):
        pass
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine: 1"


def test_a_run_is_opened_again_also_one_of_an_earlier_version(tmp_path):
    with open_run(tmp_path / "new") as run:
        (run / "config.yaml").write_text("out: x")
    with open_run(tmp_path / "new"):
        pass
    save(tmp_path / "new", 1)
    (tmp_path / "new" / ".lock").write_text("123")  # as earlier versions wrote it
    (tmp_path / "new" / ".tmp-mine-12").write_text("mine")
    (tmp_path / "new" / ".tmp-config.yaml-99").write_text("half")
    with open_run(tmp_path / "new"):
        assert (tmp_path / "new" / ".tmp-mine-12").exists()
        assert not (tmp_path / "new" / ".tmp-config.yaml-99").exists()


def test_a_lock_that_is_a_link_or_not_ours_is_refused_and_its_target_kept(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(precious)
    with pytest.raises(CheckpointError, match="it is a link"), lock_run(run):
        pass
    (run / ".lock").unlink()
    os.link(precious, run / ".lock")
    with pytest.raises(CheckpointError, match="is not the lock of a run"), lock_run(run):
        pass
    assert precious.read_text() == "years of work"


def test_removing_the_lock_file_lets_no_second_writer_in(tmp_path):
    with lock_run(tmp_path):
        (tmp_path / ".lock").unlink()
        with pytest.raises(RunBusyError), lock_run(tmp_path):
            pass


def test_a_checkpoint_moved_away_and_linked_back_is_pruned_as_a_link(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    moved = shutil.move(tmp_path / "checkpoints" / "step_00000001", tmp_path / "moved")
    (tmp_path / "checkpoints" / "step_00000001").symlink_to(moved)
    assert len(prune(tmp_path, 1)) == 1
    assert os.listdir(tmp_path / "checkpoints") == ["step_00000002"]
    verify(moved)


def test_files_and_broken_links_named_like_checkpoints_do_not_block(tmp_path):
    sound = save(tmp_path, 1)
    (sound.parent / "step_00000002").write_text("a file")
    (sound.parent / "step_00000003").symlink_to("nowhere")
    assert resolve(tmp_path) == sound
    warnings = []
    assert newest_checkpoint(tmp_path, warnings.append) == sound
    assert len(warnings) == 2
    assert step_paths(tmp_path) == [sound]


def test_any_flipped_bit_of_best_json_is_noticed(tmp_path):
    for step in (1, 3):
        save(tmp_path, step)
    record_best(tmp_path, 1, 1.5)
    path = tmp_path / "best.json"
    sound = path.read_bytes()
    for bit in range(8 * len(sound)):
        broken = bytearray(sound)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="is damaged"):
            resolve(tmp_path)
    warnings = []
    assert newest_checkpoint(tmp_path, warnings.append).name == "step_00000003"
    assert len(warnings) == 1
    assert not path.exists()
    path.write_text('{"step": 1, "validation_bits_per_byte": 1.5}\n')  # of an earlier version
    assert resolve(tmp_path).name == "step_00000001"


def test_an_export_that_is_replaced_is_there_at_every_moment(tmp_path, monkeypatch):
    """A kill between two renames lost it: both copies had names that a resume cleared."""
    tensors = {"model": {"w": torch.ones(2)}}
    save_directory(tmp_path / "m", tensors=tensors, documents={})
    renames = []
    monkeypatch.setattr(os, "rename", lambda *names: renames.append(names))
    save_directory(tmp_path / "m", tensors={"model": {"w": torch.zeros(2)}}, documents={})
    assert renames == []
    assert load_checkpoint(tmp_path / "m")[0]["model"]["w"].tolist() == [0.0, 0.0]
    assert os.listdir(tmp_path) == ["m"]


def test_weights_that_are_not_finite_are_refused_on_load(tmp_path):
    import hashlib

    import safetensors.torch

    path = save(tmp_path, 1)
    data = safetensors.torch.save({"w": torch.tensor([1.0, float("nan")])})
    (path / "model.safetensors").write_bytes(data)
    body = json.loads((path / "MANIFEST.json").read_text())
    del body["sha256"]
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    body["files"]["model.safetensors"] |= entry
    (path / "MANIFEST.json").write_bytes(seal(body))
    with pytest.raises(CorruptCheckpointError, match="holds 'w', which is not finite"):
        load_checkpoint(path)


def test_unknown_and_missing_keys_of_a_record_are_named():
    with pytest.raises(CheckpointError, match="counters has the unknown key b"):
        build_from(lambda a: a, {"a": 1, "b": 2}, "counters")
    with pytest.raises(CheckpointError, match="counters lacks a"):
        build_from(lambda a: a, {}, "counters")
    with pytest.raises(CheckpointError, match="no JSON object"):
        build_from(lambda a: a, [1], "counters")


# --- configuration files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &a [x]\nb: *a\n", ":2: not YAML: aliases"),
        ("a: " + "[" * 2000 + "]" * 2000, "nested more than 20 deep"),
        ("a: 1\n" * 300_000, "bytes are no configuration"),
        ("a: 2020-13-45\n", "not YAML"),
    ],
)
def test_a_file_without_measure_is_refused(tmp_path, text, told):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        config_file.read_mapping(str(tmp_path / "c.yaml"))


def test_home_is_written_in_full_in_every_part_of_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a.jsonl+b+~/c") == "/home/me/a.jsonl+b+/home/me/c"


def test_no_home_and_an_unknown_user_is_one_line(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "RESO_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123_456_789)
    with pytest.raises(DataError, match="set RESO_CACHE"):
        default_cache_dir()
    with pytest.raises(ValueError, match="HOME is not set"):
        expanded("~/a")


# --- output nobody reads ------------------------------------------------------------------------


class Broken(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "gone"), [(errno.EPIPE, True), (errno.EIO, True), (errno.ENOSPC, False)]
)
def test_a_stream_outlives_its_reader(number, gone):
    stream = streams.LastingStream(Broken(number))
    print("lost", file=stream)
    assert stream.failure.errno == number
    assert streams.reader_is_gone(stream) is gone


def test_a_perplexity_beyond_a_float_is_inf():
    score = LanguageModelScore(nats=1e6, tokens=1, bytes=1, documents=1)
    assert score.perplexity == score.byte_perplexity == math.inf


# --- signals and wandb --------------------------------------------------------------------------


def test_an_overdue_request_ends_what_may_be_abandoned_and_nothing_else():
    requests = StopRequests()
    with pytest.raises(Abandoned), requests.abandonable():
        requests._overdue(0, None)
    requests._overdue(0, None)  # outside: only noted
    with pytest.raises(Abandoned), requests.abandonable():
        raise AssertionError("never entered")
    with contextlib.suppress(Abandoned), requests.abandonable():
        pass


@pytest.mark.parametrize(
    ("environment", "configured", "is_flag", "mode"),
    [
        ({}, "offline", False, "offline"),
        ({"WANDB_MODE": "online"}, "offline", False, "online"),
        ({"WANDB_MODE": "dryrun"}, "online", False, "offline"),
        ({"WANDB_MODE": "online"}, "offline", True, "offline"),
        ({"WANDB_MODE": "online"}, "disabled", False, "disabled"),
        ({"WANDB_DISABLED": "true"}, "online", False, "disabled"),
        ({"WANDB_DISABLED": "true"}, "online", True, "online"),
        ({"WANDB_MODE": ""}, "offline", False, "offline"),
    ],
)
def test_a_flag_comes_before_the_environment_and_that_before_a_file(
    environment, configured, is_flag, mode
):
    assert chosen_mode(environment, configured, is_flag) == mode


def test_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    first = run_id(tmp_path, resumes=False)
    assert run_id(tmp_path, resumes=True) == first
    assert run_id(tmp_path, resumes=False) != first
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert run_id(tmp_path, resumes=True) == "mine"


@pytest.mark.parametrize("kept", [b"[]", b"{", b'{"id": 5}'])
def test_a_damaged_id_is_replaced(tmp_path, kept):
    (tmp_path / "wandb.json").write_bytes(kept)
    assert len(run_id(tmp_path, resumes=True)) == 8


def test_many_saves_keep_no_file_open_and_no_memory(tmp_path):
    """The soak in short: 200 steps, each saved, resumed from and pruned."""

    def use(steps):
        for step in steps:
            with open_run(tmp_path):
                save(tmp_path, step)
                newest = newest_checkpoint(tmp_path, never)
                load_checkpoint(newest)
                record_best(tmp_path, step, 1 / step)
                prune(tmp_path, 2, best_step=step)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/fd")), pages

    files, pages = use(range(1, 50))
    files_after, pages_after = use(range(50, 250))
    assert files_after == files
    assert pages_after < 1.05 * pages
    assert len(step_paths(tmp_path)) == 2


# --- what is shown ----------------------------------------------------------------------------


def test_a_warning_of_the_log_passes_the_filter_of_escape_sequences(capsys):
    with terminal.printable_log():
        logging.getLogger("test").warning("%s: damaged", "a\x1b[31m.jsonl")
    assert capsys.readouterr().err == "a\ufffd[31m.jsonl: damaged\n"
    assert not any(isinstance(h.formatter, terminal._PrintableFormatter)
                   for h in logging.getLogger().handlers)  # fmt: skip


def test_a_busy_run_names_its_writer_where_the_lock_file_was_removed(tmp_path):
    with lock_run(tmp_path):
        (tmp_path / ".lock").unlink()
        with pytest.raises(RunBusyError, match=f"pid {os.getpid()}") as refused, lock_run(tmp_path):
            pass
    assert "unknown" not in str(refused.value)


def test_the_soak_compares_the_first_third_with_the_last():
    held = [soak.Reading(step, 100 + step, 9) for step in range(30)]
    assert soak.growth(held) == pytest.approx((124.5 - 104.5) / 104.5)
    assert soak.growth([soak.Reading(step, 100, 9) for step in range(30)]) == 0
    now = soak.read_process(os.getpid(), 3)
    with open(os.devnull):
        assert soak.read_process(os.getpid(), 3).open_files == now.open_files + 1
    assert now.resident_bytes > 1e7
