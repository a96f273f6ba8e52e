"""metrics.jsonl, its picture, and wandb: what survives kills, full disks and a failing wandb."""

import errno
import json
import os
import sys
import threading
import types
import weakref

import pytest

from run_core import runlog, wandb_log
from run_core.loss_picture import draw_losses, smoothed
from run_core.runlog import RunLog, RunLogError, plot_loss, read_metrics


def open_log(run_dir, resume_step=None, wandb="disabled", messages=None):
    report = [].append if messages is None else messages.append
    return RunLog(run_dir, resume_step=resume_step, wandb=wandb, config={"a": 1}, report=report)


def write_steps(run_dir, steps, **options):
    with open_log(run_dir, **options) as log:
        for step in steps:
            log.log({"step": step, "tokens": step * 10, "loss_nats": 5.0 - step / 10})


def steps_of(run_dir):
    return [row["step"] for row in read_metrics(run_dir / "metrics.jsonl")]


def test_rows_come_back_as_they_were_logged(tmp_path):
    with open_log(tmp_path) as log:
        log.log({"step": 1, "loss_nats": 2.5, "sample": "é\n\u2028", "skipped": 0})
        log.log({"step": 2, "loss_nats": float("nan")})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0] == {"step": 1, "loss_nats": 2.5, "sample": "é\n\u2028", "skipped": 0}
    assert rows[1] == {"step": 2, "loss_nats": None}  # JSON has no NaN


def test_a_row_is_on_disk_before_the_log_is_closed(tmp_path):
    """Guards against buffering: a kill must not cost rows that were logged."""
    log = open_log(tmp_path)
    log.log({"step": 1})
    assert steps_of(tmp_path) == [1]
    log.close()


def test_resuming_removes_the_rows_that_will_be_repeated(tmp_path):
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, [5, 6], resume_step=4)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_new_run_starts_a_new_curve(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    write_steps(tmp_path, [1])
    assert steps_of(tmp_path) == [1]


def test_a_line_torn_by_a_kill_is_dropped(tmp_path):
    write_steps(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')
    assert steps_of(tmp_path) == [1, 2]
    write_steps(tmp_path, [3], resume_step=2)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_damaged_rows_are_named(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 2', '"stop": 2'))
    with pytest.raises(RunLogError, match=r"metrics\.jsonl:2 is not a row"):
        read_metrics(path)
    messages = []
    write_steps(tmp_path, [4], resume_step=3, messages=messages)
    assert steps_of(tmp_path) == [1, 3, 4]
    assert len(messages) == 1
    assert "line 2" in messages[0]


@pytest.mark.parametrize("row", [{}, {"step": 1.5}, {"step": True}, {"step": 1, "x": [1]}])
def test_what_is_no_metric_is_refused(tmp_path, row):
    with open_log(tmp_path) as log, pytest.raises(ValueError, match=r"step|metric"):
        log.log(row)
    assert steps_of(tmp_path) == []


def test_a_full_disk_is_told_and_tears_no_row(tmp_path, monkeypatch):
    log = open_log(tmp_path)
    log.log({"step": 1})
    real, calls = os.write, []

    def full(descriptor, data):
        calls.append(data)
        if len(calls) == 1:
            return real(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runlog.os, "write", full)
    with pytest.raises(RunLogError, match=r"metrics\.jsonl: No space left"):
        log.log({"step": 2})
    monkeypatch.undo()
    assert steps_of(tmp_path) == [1]
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    log.close()


def test_a_deleted_file_is_noticed(tmp_path):
    """Guards against writing to a file nobody will ever see."""
    log = open_log(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(RunLogError, match="deleted"):
        log.log({"step": 1})
    log.close()


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(RunLogError, match="cannot write"):
        open_log(tmp_path / "gone")


# --- the picture ------------------------------------------------------------------------------


def test_the_picture_has_both_curves(tmp_path):
    pytest.importorskip("matplotlib")
    with open_log(tmp_path) as log:
        for step in range(1, 30):
            log.log({"step": step, "tokens": 100 * step, "loss_nats": 5 / step})
        log.log({"step": 30, "tokens": 3000, "validation_bits_per_byte": 2.0})
        log.plot()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules  # no backend or window was chosen


def test_a_drawn_picture_leaves_no_figure_behind(monkeypatch):
    """In a run with many saves the memory grew by one figure for each picture."""
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []

    class Counted(figure.Figure):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            drawn.append(weakref.ref(self))

    monkeypatch.setattr(figure, "Figure", Counted)
    curve = ([0.0, 1.0], [2.0, 1.0])
    draw_losses(curve, curve, ("steps", "loss", "validation"), "run")
    assert [reference() for reference in drawn] == [None]


def test_nothing_to_draw(tmp_path):
    write_steps(tmp_path, [])
    assert plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png") is False
    assert not (tmp_path / "loss.png").exists()


def test_smoothing_is_a_mean_without_bias_at_the_start():
    assert smoothed([3.0] * 100) == pytest.approx([3.0] * 100)
    smooth = smoothed([0.0, 1.0] * 200)
    assert smooth[-1] == pytest.approx(0.5, abs=0.06)


def test_smoothing_does_not_lag_behind_a_falling_curve():
    """Guards against a running mean, which lies above every point of the first drop."""
    falling = [1000.0 - i for i in range(400)]
    assert smoothed(falling)[:390] == pytest.approx(falling[:390])


def test_missing_matplotlib_costs_one_message(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    messages = []
    with open_log(tmp_path, messages=messages) as log:
        log.log({"step": 1, "tokens": 1, "loss_nats": 1.0})
        log.plot()
        log.plot()
    assert messages == ['no loss.png: matplotlib is missing, pip install "reso-llm[plots]"']


# --- wandb ------------------------------------------------------------------------------------


class FakeWandb(types.ModuleType):
    """wandb with one function that fails."""

    def __init__(self, failing=None, logged_in=True):
        super().__init__("wandb")
        self.failing, self.logged_in, self.rows, self.modes = failing, logged_in, [], []

    def _do(self, name):
        if self.failing == name:
            raise OSError(errno.ENOSPC, "No space left on device")

    def Settings(self, **options):
        return options

    def setup(self, settings):
        pass

    def login(self, prompt, verify):
        return self.logged_in

    def init(self, mode, **options):
        self.modes.append(mode)
        self._do("init")
        return self

    def log(self, row, step):
        self._do("log")
        self.rows.append((step, row))

    def finish(self):
        self._do("finish")


def log_with(fake, tmp_path, monkeypatch, mode="offline"):
    monkeypatch.setitem(sys.modules, "wandb", fake)
    messages = []
    write_steps(tmp_path, [1, 2], wandb=mode, messages=messages)
    assert steps_of(tmp_path) == [1, 2]  # whatever wandb does
    return messages


def test_wandb_gets_every_row(tmp_path, monkeypatch):
    fake = FakeWandb()
    assert log_with(fake, tmp_path, monkeypatch) == []
    assert [step for step, _ in fake.rows] == [1, 2]
    assert fake.modes == ["offline"]


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_failing_wandb_costs_one_message(tmp_path, monkeypatch, failing):
    messages = log_with(FakeWandb(failing), tmp_path, monkeypatch)
    assert len(messages) == 1
    assert "No space left" in messages[0]


def test_online_without_a_key_logs_offline(tmp_path, monkeypatch):
    fake = FakeWandb(logged_in=False)
    messages = log_with(fake, tmp_path, monkeypatch, mode="online")
    assert fake.modes == ["offline"]
    assert len(messages) == 1
    assert "no API key" in messages[0]


def test_a_hanging_wandb_is_left_behind(tmp_path, monkeypatch):
    fake, release = FakeWandb(), threading.Event()
    fake.init = lambda **_: release.wait(5)
    monkeypatch.setattr(wandb_log, "SECONDS", 0.2)
    messages = log_with(fake, tmp_path, monkeypatch)
    release.set()
    assert len(messages) == 1
    assert "no answer" in messages[0]


def test_disabled_does_not_import_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    messages = []
    write_steps(tmp_path, [1], messages=messages)
    assert messages == []


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="offline, online, disabled"):
        open_log(tmp_path, wandb="offlin")


def test_empty_environment_variables_count_as_unset(tmp_path, monkeypatch):
    """wandb itself refuses WANDB_MODE= with a validation error."""
    monkeypatch.setenv("WANDB_MODE", "")
    assert log_with(FakeWandb(), tmp_path, monkeypatch) == []
    assert "WANDB_MODE" not in os.environ


def test_rows_are_json_lines(tmp_path):
    write_steps(tmp_path, [1])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]
