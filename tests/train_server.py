"""Runs `train.py` as real processes without paying for the imports each time.

One server process imports everything and computes nothing; each run is a fork of it, with its own
arguments, environment, signals, exit code and files for stdout and stderr.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

SERVER = """
import json, os, resource, runpy, signal, sys
import reso_llm.training.run, run_core.cli, matplotlib.figure, matplotlib.ticker
import torch._dynamo  # the first optimizer of a process imports it
def child(job):
    for number, path in ((1, job["stdout"]), (2, job["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(job["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
    if job["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"],) * 2)
    sys.argv = ["train.py", *job["args"]]
    status = 1
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
print("ready", flush=True)
while line := sys.stdin.readline():
    job = json.loads(line)
    if "args" in job:
        answer = os.fork() or child(job)
    else:
        pid, status = os.waitpid(job["pid"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    print(json.dumps(answer), flush=True)
"""


class Run:
    """One `train.py`: its pid, exit code (negative: a signal), stdout and stderr."""

    def __init__(self, server, pid, stdout, stderr):
        self.server, self.pid, self.code = server, pid, None
        self._stdout, self._stderr = stdout, stderr

    @property
    def stdout(self):
        return self._stdout.read_text()

    @property
    def stderr(self):
        return self._stderr.read_text()

    @property
    def errors(self):
        """Lines of stderr that are not the progress bar's."""
        lines = self.stderr.replace("\r", "\n").split("\n")
        return [line for line in lines if line.strip() and "|" not in line and "B/s" not in line]

    def poll(self):
        if self.code is None:
            self.code = self.server.ask({"pid": self.pid})
        return self.code

    def wait(self, seconds=60):
        self.wait_until(lambda: False, seconds)
        return self.code

    def wait_until(self, condition, seconds=60):
        """Until `condition()` holds or the run ends."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and not condition():
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"no end after {seconds} s: {self.stdout}{self.stderr}")
            time.sleep(0.005)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        """End it, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


class TrainServer:
    """Context manager; `start` starts a train.py, `run` waits for its end as well."""

    def __init__(self, directory, env):
        self.directory, self.env, self.runs = Path(directory), env, []

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            env={**os.environ, **self.env, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *exception):
        for run in self.runs:
            with contextlib.suppress(ProcessLookupError):
                run.kill()
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

    def ask(self, job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *args, file_size=None, **env):
        out, err = (self.directory / f"{len(self.runs)}.{name}" for name in ("out", "err"))
        for path in (out, err):
            path.touch()  # readable before the child has opened it
        job = {
            "args": [str(a) for a in args],
            "stdout": str(out),
            "stderr": str(err),
            "env": env,
            "file_size": file_size,
        }
        run = Run(self, self.ask(job), out, err)
        self.runs.append(run)
        return run

    def run(self, *args, **options):
        run = self.start(*args, **options)
        run.wait()
        return run
