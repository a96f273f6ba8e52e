"""Checkpoints under kill -9, bit flips, truncation, full and read-only disks, and malice.

Numbers such as FAULT 5 refer to the list of faults the project was designed against.
"""

import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from run_core import checkpoint
from run_core.checkpoint import (
    FORMAT,
    CheckpointError,
    CorruptCheckpointError,
    FormatVersionError,
    load_checkpoint,
    save_directory,
    verify,
)
from run_core.files import seal, unseal
from run_core.lock import RunBusyError, lock_run
from run_core.run import (
    best_checkpoint,
    clean_leftovers,
    newest_checkpoint,
    prune,
    record_best,
    resolve,
    save_checkpoint,
    step_paths,
)
from run_core.saved_state import flatten_state, rng_state, set_rng_state, unflatten_state

FILES = ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"]


def never(message):
    raise AssertionError(f"unexpected warning: {message}")


def save(run, step, width=8):
    generator = torch.Generator().manual_seed(step)
    model = {
        "weight": torch.randn(width, width, generator=generator),
        "scale": torch.ones((), dtype=torch.bfloat16),
    }
    optimizer = {"exp_avg": torch.randn(width, generator=generator, dtype=torch.float64)}
    return save_checkpoint(
        run,
        step,
        tensors={"model": model, "optimizer": optimizer},
        documents={"config.json": {"step": step, "lr": 0.1}, "tokenizer.json": "Ünïcode\r\n"},
    )


def hidden(run):
    """Names of temporary and half-deleted entries anywhere in the run."""
    return [p.name for p in Path(run).rglob(".t*") if p.name.startswith((".tmp-", ".trash-"))]


def reseal(path, **changes):
    """Rewrite a manifest as an attacker or another version would: consistent with itself."""
    body = json.loads((path / "MANIFEST.json").read_text())
    del body["sha256"]
    for name, entry in body["files"].items():
        data = (path / name).read_bytes()
        entry |= {"size": len(data), "sha256": checkpoint.hashlib.sha256(data).hexdigest()}
    (path / "MANIFEST.json").write_bytes(seal(body | changes))


# --- round trip and refusals ------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved(tmp_path):
    path = save(tmp_path, 7)
    assert path == tmp_path / "checkpoints" / "step_00000007"
    tensors, documents = load_checkpoint(path, ("model", "optimizer"))
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(tensors["model"]["weight"], torch.randn(8, 8, generator=generator))
    assert tensors["model"]["scale"].dtype == torch.bfloat16
    assert tensors["model"]["scale"].shape == ()
    assert tensors["optimizer"]["exp_avg"].dtype == torch.float64
    assert documents == {"config.json": {"step": 7, "lr": 0.1}, "tokenizer.json": "Ünïcode\r\n"}
    assert set(load_checkpoint(path)[0]) == {"model"}
    assert (path / "tokenizer.json").read_bytes() == "Ünïcode\r\n".encode()


def test_views_and_transposes_are_stored_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    path = save_directory(
        tmp_path / "m", tensors={"model": {"t": base.T, "row": base[1]}}, documents={}
    )
    loaded = load_checkpoint(path)[0]["model"]
    assert torch.equal(loaded["t"], base.T)
    assert torch.equal(loaded["row"], base[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_non_finite_tensor_is_never_written(tmp_path, value, dtype):
    bad = torch.full((2,), value, dtype=dtype)
    with pytest.raises(ValueError, match=r"optimizer tensor 'exp_avg' is not finite"):
        save_checkpoint(
            tmp_path,
            1,
            tensors={"model": {"w": torch.ones(1)}, "optimizer": {"exp_avg": bad}},
            documents={},
        )
    assert newest_checkpoint(tmp_path, never) is None
    assert not hidden(tmp_path)


def test_tied_tensors_are_refused_by_name(tmp_path):
    weight = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"'embedding' and 'head' share memory"):
        save_directory(
            tmp_path / "m", tensors={"model": {"embedding": weight, "head": weight}}, documents={}
        )


@pytest.mark.parametrize(
    "name", ["../evil", "MANIFEST.json", "model.safetensors", ".hidden", "a/b", ""]
)
def test_documents_cannot_escape_or_replace(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be the name"):
        save_directory(
            tmp_path / "m", tensors={"model": {"w": torch.ones(1)}}, documents={name: "x"}
        )


@pytest.mark.parametrize("document", [{"loss": float("nan")}, {"x": {1, 2}}, "\ud800"])
def test_a_document_that_json_or_utf8_cannot_hold_is_named(tmp_path, document):
    with pytest.raises(ValueError, match=r"document 'training\.json' cannot be written"):
        save_directory(tmp_path / "m", tensors={}, documents={"training.json": document})


def test_saving_a_step_again_returns_the_sound_one_and_replaces_a_corrupt_one(tmp_path):
    path = save(tmp_path, 3)
    inode = path.stat().st_ino
    assert save(tmp_path, 3).stat().st_ino == inode
    (path / "config.json").write_text("{}")
    verify(save(tmp_path, 3))
    assert path.stat().st_ino != inode
    assert (path.parent / "corrupt-step_00000003").is_dir()


def test_save_pretrained_directory_is_replaced_but_nothing_else_is(tmp_path):
    for value in (1.0, 2.0):
        tensors = {"model": {"w": torch.full((2,), value)}}
        save_directory(tmp_path / "m", tensors=tensors, documents={})
    assert load_checkpoint(tmp_path / "m")[0]["model"]["w"].tolist() == [2.0, 2.0]
    assert not hidden(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        save_directory(tmp_path / "home", tensors=tensors, documents={})
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_a_missing_part_is_named_with_those_there_are(tmp_path):
    with pytest.raises(CheckpointError, match=r"no part 'ema'; its parts: model\.safetensors, opt"):
        load_checkpoint(save(tmp_path, 1), ("ema",))


# --- kill -9 ----------------------------------------------------------------------------------

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def kill_at_event(run, number):
    """SIGKILL this process before its `number`-th filesystem operation inside `run`."""
    count = 0

    def tick():
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, args):
        inside = event != "open" or (isinstance(args[0], str) and args[0].startswith(str(run)))
        if event in EVENTS and inside:
            tick()

    real_fsync = os.fsync
    os.fsync = lambda descriptor: (tick(), real_fsync(descriptor))
    sys.addaudithook(audit)


def train(run, done=lambda step: None):
    """Four steps of x <- sin(x + noise), saved every second step: resume, save, best, prune."""
    with lock_run(run):
        clean_leftovers(run)
        path = newest_checkpoint(run, never)
        noise, x, start = torch.Generator().manual_seed(0), torch.ones(4), 0
        if path:
            tensors, documents = load_checkpoint(path)
            x, start = tensors["model"]["x"], documents["training.json"]["step"]
            noise.set_state(tensors["model"]["noise"])
            record_best(run, start, 1 / start)
            prune(run, 1, start)
        for step in range(start + 1, 5):
            x = torch.sin(x + torch.randn(4, generator=noise))
            if step % 2 == 0:
                model = {"x": x, "noise": noise.get_state()}
                documents = {"training.json": {"step": step}}
                save_checkpoint(run, step, tensors={"model": model}, documents=documents)
                done(step)
                record_best(run, step, 1 / step)
                prune(run, 1, step)


def train_noting_saves(run):
    train(run, done=lambda step: (run.parent / "saved").write_text(str(step)))


def prune_to_one(run):
    prune(run, 1)


def die_everywhere(target, root, num_runs):
    """Run `target` on root/1/run, root/2/run, ..., killed before its 1st, 2nd, ... operation."""
    torch.set_num_threads(1)
    for number in range(1, num_runs + 1):
        pid = os.fork()
        if pid == 0:
            kill_at_event(root / str(number) / "run", number)
            target(root / str(number) / "run")
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        (root / str(number) / "status").write_text(str(status))


def killed_runs(processes, target, root, num_runs):
    """The run directories of the killed ones, in the order of their last operation."""
    process = processes.Process(target=die_everywhere, args=(target, root, num_runs))
    process.start()
    process.join(60)
    statuses = [int((root / str(n) / "status").read_text()) for n in range(1, num_runs + 1)]
    kills = statuses.count(signal.SIGKILL)
    assert statuses == [signal.SIGKILL] * kills + [0] * (num_runs - kills)
    assert kills < num_runs  # the last run survived, so every operation was hit
    return [root / str(n) / "run" for n in range(1, kills + 1)]


@pytest.fixture(scope="module")
def processes():
    """Processes from a clean server: a fork of pytest itself would copy its threads' locks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["run_core.checkpoint"])
    return context


def test_kill_9_at_every_filesystem_operation_of_a_run(tmp_path, processes):
    """FAULTS 2 and 3: saves, best records, prunes; final bytes equal the undisturbed run's."""
    (tmp_path / "calm").mkdir()
    train(tmp_path / "calm")
    expected = (resolve(tmp_path / "calm") / "MANIFEST.json").read_bytes()
    for number in range(1, 66):
        (tmp_path / str(number) / "run").mkdir(parents=True)
    runs = killed_runs(processes, train_noting_saves, tmp_path, 65)
    assert len(runs) > 40  # fewer would mean that the hook no longer sees the operations
    for run in runs:
        marker = run.parent / "saved"
        saved = int(marker.read_text()) if marker.exists() else 0
        newest = newest_checkpoint(run, never)
        assert (int(newest.name[5:]) if newest else 0) >= saved
        train(run)
        assert (resolve(run) / "MANIFEST.json").read_bytes() == expected, run
        assert len(step_paths(run)) == 1
        assert not hidden(run)


def test_kill_9_during_prune_leaves_a_sound_checkpoint(tmp_path, processes):
    """FAULT 3, with three checkpoints to delete."""
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    for number in range(1, 41):
        shutil.copytree(tmp_path / "checkpoints", tmp_path / str(number) / "run" / "checkpoints")
    runs = killed_runs(processes, prune_to_one, tmp_path, 40)
    assert len(runs) > 15
    for run in runs:
        paths = step_paths(run)
        assert paths[0].name == "step_00000004"
        for path in paths:
            verify(path)
        clean_leftovers(run)
        prune(run, 1)
        assert os.listdir(run / "checkpoints") == ["step_00000004"]


def test_the_manifest_is_written_last_and_synced_before_the_rename(tmp_path, monkeypatch):
    """After a power cut a visible checkpoint must be complete: order of sync and rename."""
    trace = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        trace.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rename(old, new):
        trace.append("rename")
        real_rename(old, new)

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    path = save(tmp_path, 1)
    assert trace == [
        *FILES,
        "MANIFEST.json",
        f".tmp-{path.name}-{os.getpid()}",
        "rename",
        "checkpoints",
    ]


# --- corruption -------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints 1 and 2."""
    for step in (1, 2):
        save(tmp_path, step)
    return tmp_path


def newest_copy(run, trial):
    """A fresh copy of the run, so that every trial corrupts a sound checkpoint."""
    copy = run / f"trial{trial}"
    copy.mkdir()
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    return copy, copy / "checkpoints" / "step_00000002"


def assert_set_aside(run, file):
    """The previous one is used, and exactly one line says which file and why."""
    warnings = []
    assert newest_checkpoint(run, warnings.append).name == "step_00000001"
    assert (run / "checkpoints" / "corrupt-step_00000002").is_dir()
    assert len(warnings) == 1
    assert "step_00000002" in warnings[0]
    assert file in warnings[0]
    assert "\n" not in warnings[0]


def test_truncation_is_detected_at_any_length(run):
    """FAULT 4: 20 random files and lengths."""
    draw = random.Random(4)
    for trial in range(20):
        copy, newest = newest_copy(run, trial)
        file = newest / draw.choice([*FILES, "MANIFEST.json"])
        os.truncate(file, draw.randrange(file.stat().st_size))
        assert_set_aside(copy, file.name)


def test_one_flipped_bit_is_always_detected_before_use(run):
    """FAULT 5: 100 trials over all files; safetensors and torch.load notice none of them."""
    draw = random.Random(5)
    newest = run / "checkpoints" / "step_00000002"
    for trial in range(100):
        file = newest / [*FILES, "MANIFEST.json"][trial % 5]
        sound = file.read_bytes()
        broken = bytearray(sound)
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        file.write_bytes(broken)
        with pytest.raises(CorruptCheckpointError, match=file.name):
            load_checkpoint(newest)
        file.write_bytes(sound)
    verify(newest)


def test_when_all_are_corrupt_the_run_stops_and_keeps_stopping(run):
    """FAULT 5: never a silent restart at step 0, also not at the second attempt."""
    for path in (run / "checkpoints").iterdir():
        (path / "model.safetensors").write_bytes(b"")
    warnings = []
    for _ in range(2):
        with pytest.raises(CheckpointError, match="corrupt-step_00000001, corrupt-step_00000002"):
            newest_checkpoint(run, warnings.append)
    assert len(warnings) == 2
    assert newest_checkpoint(run / "elsewhere", never) is None


def test_missing_files_are_named(run):
    """FAULT 6."""
    for trial, name in enumerate([*FILES, "MANIFEST.json"]):
        copy, newest = newest_copy(run, f"missing{trial}")
        (newest / name).unlink()
        with pytest.raises(CorruptCheckpointError, match=f"{name} is missing"):
            verify(newest)
        assert_set_aside(copy, name)
    copy, newest = newest_copy(run, "pipe")
    (newest / "config.json").unlink()
    os.mkfifo(newest / "config.json")
    assert_set_aside(copy, "config.json")


def test_a_checkpoint_of_another_step_under_this_name_is_refused(run):
    """FAULT 6."""
    newest = run / "checkpoints" / "step_00000002"
    shutil.rmtree(newest)
    shutil.copytree(run / "checkpoints" / "step_00000001", newest)
    with pytest.raises(CorruptCheckpointError, match="belongs to step 1"):
        verify(newest)
    assert_set_aside(run, "MANIFEST.json")


@pytest.mark.parametrize("version", [0, FORMAT - 1, FORMAT + 1])
def test_another_format_version_is_an_error_and_is_not_set_aside(run, version):
    """FAULT 6: an intact checkpoint of another version is not corrupt."""
    newest = run / "checkpoints" / "step_00000002"
    reseal(newest, format=version)
    for use in (verify, lambda path: newest_checkpoint(run, never), lambda path: save(run, 2)):
        with pytest.raises(FormatVersionError, match=f"format {version}, and this version reads"):
            use(newest)
    assert newest.is_dir()


def test_reading_what_is_not_a_checkpoint_names_the_path(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
        verify(tmp_path / "nowhere")
    with pytest.raises(CorruptCheckpointError, match=r"MANIFEST\.json is missing"):
        load_checkpoint(tmp_path)


def test_a_forged_manifest_cannot_reach_outside_its_directory(run):
    newest = run / "checkpoints" / "step_00000002"
    (newest.parent / "secret").write_text("key")
    body = json.loads((newest / "MANIFEST.json").read_text())
    entry = {"kind": "text", "size": 3, "sha256": checkpoint.hashlib.sha256(b"key").hexdigest()}
    reseal(newest, files=body["files"] | {"../secret": entry})
    with pytest.raises(CorruptCheckpointError, match="lists something that is no checkpoint file"):
        load_checkpoint(newest)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("forged_manifest", [False, True])
@pytest.mark.parametrize("name", [*FILES[:3], "MANIFEST.json"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_malicious_pickle_is_never_run(run, tmp_path, name, forged_manifest, writer):
    """FAULT 15: with the manifest untouched, and with one forged to match the pickle."""
    newest, owned = run / "checkpoints" / "step_00000002", tmp_path / "owned"
    with (newest / name).open("wb") as file:
        (pickle.dump if writer == "pickle" else torch.save)(Payload(owned), file)
    if forged_manifest and name != "MANIFEST.json":
        reseal(newest)
    with pytest.raises(CorruptCheckpointError, match=name):
        load_checkpoint(newest, ("model", "optimizer"))
    assert not owned.exists()
    pickle.loads(pickle.dumps(Payload(owned)))
    assert owned.exists()  # the payload works, so its absence above meant something


# --- disks that refuse ------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(1, 8))
def test_a_full_disk_at_any_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch, call):
    """FAULT 7: 4 files, manifest, directory, parent; no partial checkpoint is visible."""
    save(tmp_path, 1)
    count, real_fsync = 0, os.fsync

    def fsync(descriptor):
        nonlocal count
        count += 1
        if count == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, 2)
    message = str(caught.value)
    assert "step_00000002: No space left on device; it needs" in message
    assert "bytes are free" in message
    assert "\n" not in message
    assert not hidden(tmp_path)
    monkeypatch.setattr(os, "fsync", real_fsync)
    verify(tmp_path / "checkpoints" / "step_00000001")
    assert newest_checkpoint(tmp_path, never)
    verify(save(tmp_path, 2))


def test_an_interrupted_save_leaves_nothing_half_written(tmp_path, monkeypatch):
    """Ctrl-C is no OSError: it takes another way out of the save."""
    save(tmp_path, 1)

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert not hidden(tmp_path)
    assert newest_checkpoint(tmp_path, never).name == "step_00000001"


@pytest.fixture
def small_disk(tmp_path):
    """A real 2 MB file system; skipped where mounting is not permitted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_really_full_disk(small_disk):
    """FAULT 7: training may go on, and room made by pruning is used."""
    for step in (1, 2):
        save(small_disk, step, width=450)  # 810 kB each
    with pytest.raises(CheckpointError, match=r"No space left.* it needs 813,\d+ bytes and 4\d+,"):
        save(small_disk, 3, width=450)
    assert not hidden(small_disk)
    assert newest_checkpoint(small_disk, never).name == "step_00000002"
    prune(small_disk, 1)
    verify(save(small_disk, 3, width=450))


def test_a_disk_that_turns_read_only(small_disk):
    """FAULT 8."""
    save(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match=r"step_00000002: Read-only file system"):
        save(small_disk, 2)
    with pytest.raises(CheckpointError, match="Read-only file system"), lock_run(small_disk):
        pass
    with pytest.raises(CheckpointError, match="Read-only file system"):
        record_best(small_disk, 1, 1.0)
    assert newest_checkpoint(small_disk, never).name == "step_00000001"


def test_a_run_directory_deleted_under_the_run(run):
    """FAULT 8: one line, and it does not come back half empty."""
    with lock_run(run):
        shutil.rmtree(run)
        with pytest.raises(CheckpointError, match=f"run directory {run} is gone"):
            save(run, 3)
    assert not run.exists()


# --- one writer -------------------------------------------------------------------------------


def hold_lock(run, ready, release):
    with lock_run(run):
        ready.set()
        release.wait(60)
        save(run, 5)


def sleep_for_ever(ready):
    ready.set()
    signal.pause()


def lock_fork_and_die(run, pids):
    """A data-loader worker forked under the lock outlives its killed parent."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    with lock_run(run):
        worker = context.Process(target=sleep_for_ever, args=(ready,))
        worker.start()
        ready.wait(60)
        pids.put(worker.pid)
        pids.close()
        pids.join_thread()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_second_writer_is_refused_and_the_first_is_undisturbed(tmp_path, processes):
    """FAULT 14."""
    ready, release = processes.Event(), processes.Event()
    first = processes.Process(target=hold_lock, args=(tmp_path, ready, release))
    first.start()
    assert ready.wait(60)
    busy = rf"another process \(pid {first.pid}\) is writing to {tmp_path}; "
    with pytest.raises(RunBusyError, match=busy), lock_run(tmp_path):
        pass
    release.set()
    first.join(60)
    assert first.exitcode == 0
    assert newest_checkpoint(tmp_path, never).name == "step_00000005"


def test_a_dead_writer_does_not_block(tmp_path, processes):
    """FAULT 14: neither its stale lock file nor a worker it forked."""
    pids = processes.Queue()
    process = processes.Process(target=lock_fork_and_die, args=(tmp_path, pids))
    process.start()
    worker = pids.get(timeout=60)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    try:
        os.kill(worker, 0)  # still alive
        with lock_run(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"run of process {os.getpid()}\n"
    finally:
        os.kill(worker, signal.SIGKILL)
    with lock_run(tmp_path):
        pass


# --- which checkpoint -------------------------------------------------------------------------


def test_resolve_takes_best_then_newest_then_the_directory_itself(run):
    assert resolve(run).name == "step_00000002"
    record_best(run, 1, 1.5)
    assert best_checkpoint(run) == resolve(run) == run / "checkpoints" / "step_00000001"
    record = {"step": 1, "validation_bits_per_byte": 1.5}
    assert unseal((run / "best.json").read_bytes()) == record
    path = run / "checkpoints" / "step_00000002"
    assert resolve(path) == path
    pretrained = save_directory(run / "m", tensors={}, documents={"config.json": {}})
    assert resolve(str(pretrained)) == pretrained


def test_resolve_changes_nothing_and_names_what_it_looked_for(run):
    (run / "checkpoints" / "step_00000002" / "config.json").unlink()
    before = sorted(run.rglob("*"))
    with pytest.raises(CorruptCheckpointError, match=r"config\.json is missing"):
        load_checkpoint(resolve(run))
    assert sorted(run.rglob("*")) == before
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*MANIFEST\.json, best\.json and"):
        resolve(run / "nowhere")


def test_best_must_be_saved_finite_and_readable(run):
    for step, value in ((9, 1.0), (1, float("nan"))):
        with pytest.raises(ValueError, match="no saved, finite best"):
            record_best(run, step, value)
    assert best_checkpoint(run) is None
    (run / "best.json").write_text('{"step"')
    with pytest.raises(CheckpointError, match=r"best\.json is damaged; delete best\.json"):
        resolve(run)
    (run / "best.json").write_text('{"step": 9, "validation_bits_per_byte": 1.0}')
    with pytest.raises(CheckpointError, match=r"names step_00000009, which is gone"):
        resolve(run)


def test_a_best_record_does_not_outlive_its_corrupt_checkpoint(run):
    record_best(run, 2, 1.0)
    os.truncate(run / "checkpoints" / "step_00000002" / "model.safetensors", 5)
    assert_set_aside(run, "model.safetensors")
    assert resolve(run).name == "step_00000001"


def test_prune_keeps_the_last_and_the_best(tmp_path):
    for step in (2, 10, 100, 123456789):
        save(tmp_path, step)
    record_best(tmp_path, 2, 1.0)
    deleted = prune(tmp_path, 2, best_step=2)
    assert [path.name for path in deleted] == ["step_00000010"]
    deleted = prune(tmp_path, 1)
    assert [path.name for path in deleted] == ["step_00000100", "step_00000002"]
    assert newest_checkpoint(tmp_path, never).name == "step_123456789"
    with pytest.raises(ValueError, match="keep_last is 0"):
        prune(tmp_path, 0)


def test_prune_deletes_nothing_while_the_newest_is_corrupt(run):
    os.truncate(run / "checkpoints" / "step_00000002" / "model.safetensors", 5)
    assert prune(run, 1) == []
    verify(run / "checkpoints" / "step_00000001")


# --- state without pickle ---------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.integers() | st.text() | st.booleans() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_nested_state_survives_json_exactly(value):
    """repr tells 1 from 1.0 and True, -0.0 from 0.0, tuple from list, and keeps NaN comparable."""
    tensors, document = flatten_state(value)
    assert repr(unflatten_state(tensors, json.loads(json.dumps(document)))) == repr(value)


@pytest.mark.parametrize("value", [{1, 2}, object(), np.float64(1.0), b"x"])
def test_what_cannot_be_stored_is_named_by_place(value):
    with pytest.raises(ValueError, match=r"state\.state\.0\.step is a \w+ that cannot be stored"):
        flatten_state({"state": {0: {"step": value}}})


def test_a_state_whose_tensors_are_missing_is_refused():
    tensors, document = flatten_state({"a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"state names 'state\.a', which"):
        unflatten_state({}, document)
    with pytest.raises(ValueError, match="names 'code', which"):
        unflatten_state(tensors, {"code": "import os"})


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "muon": lambda p: torch.optim.Muon(p, lr=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


def optimize(name, dtype, saved=None):
    """A weight, its optimizer, and a function that takes three steps."""
    weight = torch.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4).requires_grad_()
    optimizer = OPTIMIZERS[name]([weight])
    if saved:
        with torch.no_grad():
            weight.copy_(saved[0])
        optimizer.load_state_dict(saved[1])

    def steps():
        for _ in range(3):
            optimizer.zero_grad()
            (weight.float() ** 3).sum().backward()
            optimizer.step()

    return weight, optimizer, steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_continues_bit_for_bit(tmp_path, name, dtype):
    weight, optimizer, steps = optimize(name, dtype)
    steps()
    tensors, document = flatten_state(optimizer.state_dict())
    path = save_checkpoint(
        tmp_path,
        3,
        tensors={"model": {"w": weight}, "optimizer": tensors},
        documents={"training.json": {"optimizer": document}},
    )
    steps()
    tensors, documents = load_checkpoint(path, ("model", "optimizer"))
    state = unflatten_state(tensors["optimizer"], documents["training.json"]["optimizer"])
    resumed, _, steps = optimize(name, dtype, (tensors["model"]["w"], state))
    steps()
    assert torch.equal(resumed, weight)


def draws(generators):
    return [
        torch.randn(2, generator=generators["torch"]).tolist(),
        generators["numpy"].normal(size=2).tolist(),
        generators["twister"].integers(0, 99, 2).tolist(),
        generators["python"].random(),
    ]


def test_every_generator_continues_where_it_was(tmp_path):
    def fresh(seed):
        return {
            "torch": torch.Generator().manual_seed(seed),
            "numpy": np.random.default_rng(seed),
            "twister": np.random.Generator(np.random.MT19937(seed)),
            "python": random.Random(seed),
        }

    generators = fresh(1)
    draws(generators)
    before = rng_state({})
    try:
        tensors, document = flatten_state(rng_state(generators))
        path = save_directory(
            tmp_path / "m", tensors={"rng": tensors}, documents={"rng.json": {"rng": document}}
        )
        expected = [draws(generators), torch.rand(2).tolist(), random.random()]
        torch.manual_seed(99)
        tensors, documents = load_checkpoint(path, ("rng",))
        state = unflatten_state(tensors["rng"], documents["rng.json"]["rng"])
        other = fresh(2)
        set_rng_state(state, other)
        assert [draws(other), torch.rand(2).tolist(), random.random()] == expected
        with pytest.raises(ValueError, match=r"were saved, not \[\]"):
            set_rng_state(state, {})
    finally:
        set_rng_state(before, {})
