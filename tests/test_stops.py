"""Time in which processes are stopped counts for nothing: no time-out, no sample, no training."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

import pytest

from bench_helpers import wait_until
from flashmix import _clock
from flashmix._clock import LONGEST_SECONDS, RunningClock
from flashmix.bench import process, timing
from flashmix.bench.process import Worker, WorkerDiedError
from flashmix.bench.timing import interleave
from flashmix.bench.worker import Events
from test_training import bag_trainer

LONG = 10 * LONGEST_SECONDS


class Time:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_running_clock_leaves_out_the_time_in_which_nothing_ticked():
    now = Time()
    clock = RunningClock(now)
    clock.tick()
    start = clock.seconds()
    for seconds in (0.25, 1.0, LONG, LONGEST_SECONDS, LONG, 0.25):
        now.now += seconds
        clock.tick()
    assert clock.seconds() - start == pytest.approx(1.5 + LONGEST_SECONDS)
    assert clock.stopped() == 2 * LONG


def test_a_stop_is_left_out_before_the_first_tick_after_it():
    now = Time()
    clock = RunningClock(now)
    clock.tick()
    start = clock.seconds()
    now.now += LONG
    assert clock.seconds() == start
    assert clock.stopped() == LONG
    clock.tick()
    assert clock.seconds() == start


def test_a_clock_that_nobody_ticks_is_the_clock_itself():
    now = Time()
    clock = RunningClock(now)
    now.now += LONG
    assert clock.seconds() == now.now
    assert clock.stopped() == 0


@pytest.fixture
def jumping(monkeypatch):
    """The process's own clock, in the hands of a test."""
    now, clock = Time(), RunningClock()
    monkeypatch.setattr(_clock._clock, "_now", now)
    monkeypatch.setattr(_clock._clock, "_ticked", None)
    monkeypatch.setattr(_clock._clock, "_stopped", clock._stopped)
    _clock._clock.tick()
    return now


def test_a_sample_in_which_the_process_was_stopped_is_taken_again(jumping):
    calls = []

    def clock(count):
        calls.append(count)
        if len(calls) in (4, 5):
            jumping.now += LONG
            seconds = LONG
        else:
            seconds = 1.0
        _clock._clock.tick()
        return seconds

    warm_up = 2
    found = list(interleave([clock], min_samples=4, max_samples=4, seconds_each=0.0))
    assert found == [(0, 1.0)] * 4
    assert len(calls) == warm_up + 4 + 2
    assert timing.stopped_seconds() == 2 * LONG


def test_a_training_does_not_count_the_time_in_which_it_was_stopped(tmp_path, jumping):
    def listen(progress):
        for _ in range(4):
            jumping.now += 0.25
            _clock._clock.tick()
        if progress.step in (3, 17):
            jumping.now += LONG

    done = bag_trainer(tmp_path, listen=listen).run()
    parts_of_a_tick = 2 * _clock.TICK_SECONDS
    assert done.seconds == pytest.approx(done.step, abs=parts_of_a_tick)
    total = sum(epoch["seconds"] for epoch in done.history)
    assert total == pytest.approx(done.step, abs=parts_of_a_tick)


def test_a_case_that_goes_on_does_not_wait_for_a_reader_that_was_stopped():
    """What it says of itself is dropped; that it begins another case or is done is not."""
    end, pipe = os.pipe()
    emit, said = Events(pipe), []

    def work():
        for index in (0, 1):
            for _ in range(5000):  # many times what the pipe holds
                emit("doing", index=index, what="training")
            emit("done", index=index, result={"status": "ok"})
            said.append(index)
        os.close(pipe)

    worker = threading.Thread(target=work)
    worker.start()
    wait_until(lambda: said or not worker.is_alive() or full(end))
    time.sleep(0.2)
    with os.fdopen(end) as file:
        events = [json.loads(line) for line in file]
    worker.join()
    assert said == [0, 1]
    order = [(one["event"], one["index"]) for one in events]
    assert list(dict.fromkeys(order)) == [("doing", 0), ("done", 0), ("doing", 1), ("done", 1)]
    assert len(events) < 10_000


def full(end):
    """Whether a pipe holds as much as it can, nearly."""
    import fcntl
    import termios

    held = int.from_bytes(fcntl.ioctl(end, termios.FIONREAD, b"\0" * 4), sys.byteorder)
    return held > (1 << 16) - 4096


SCRIPT = """#!/bin/sh
echo '{"event": "ready"}'; read job
echo '{"event": "doing", "index": 0}'
while [ ! -e "$GO" ]; do sleep 0.05; done
echo '{"event": "idle"}'
"""


def test_stopping_and_continuing_a_run_for_longer_than_its_limit_is_no_timeout(
    tmp_path, monkeypatch
):
    """The worker says nothing from before the stop until after it."""
    worker, go, begun, ended = (tmp_path / name for name in ("worker", "go", "begun", "ended"))
    worker.write_text(SCRIPT)
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.setenv("GO", str(go))
    run = os.fork()
    if not run:
        os.setpgid(0, 0)
        found = "no end"
        try:
            one = Worker()
            for _ in one.run({}, 2.0):
                begun.touch()
            found = "finished"
        except WorkerDiedError as death:
            found = death.reason
        finally:
            (tmp_path / "part").write_text(found)
            (tmp_path / "part").rename(ended)
            os._exit(0)
    wait_until(begun.exists)
    os.killpg(run, signal.SIGSTOP)
    os.waitpid(run, os.WUNTRACED)
    time.sleep(2.0 + process.LATE_SECONDS + 0.5)
    os.killpg(run, signal.SIGCONT)
    time.sleep(0.5)
    go.touch()
    wait_until(ended.exists)
    os.waitpid(run, 0)
    assert ended.read_text() == "finished"


def test_a_worker_that_is_silent_while_the_run_goes_on_still_times_out(tmp_path, monkeypatch):
    worker = tmp_path / "worker"
    worker.write_text(SCRIPT)
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.setenv("GO", str(tmp_path / "never"))
    with pytest.raises(WorkerDiedError, match=r"no progress within 0\.7 s"):
        list(Worker().run({}, 0.7))
