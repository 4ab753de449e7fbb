"""Long work can be watched: a bar with the time left on a terminal, plain lines in a pipe."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import termios
from pathlib import Path

import pytest
import torch

from engine import logger
from engine.logger import MetricLogger
from tests.conftest import make_synapse
from tests.reliability import runs


@pytest.mark.reliability
def test_a_terminal_gets_a_bar_with_the_time_left(tmp_path: Path) -> None:
    """Standard error is a pseudo-terminal of 80 columns, standard output a file."""
    root = make_synapse(tmp_path / "data", train=3, shape=(20, 40, 40))
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    command = [*runs.PYTHON, *runs.words(root, tmp_path / "run", "--max_epochs", 3, "--workers", 0)]
    process = runs.start(command, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while block := os.read(controller, 4096):
            shown += block
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(controller)
    out, _ = runs.end(process)
    bars = re.findall(r"epoch \d/3:\s+\d+%, \d\d:\d\d left, loss \d\.\d{3}, ce [^\r]*", shown.decode())
    assert len(bars) > 3 and max(map(len, bars)) <= 80, shown
    assert re.search(r"validation:\s+\d+%", shown.decode()) and "\r" in shown.decode()
    assert "\r" not in out and out.count("epoch") >= 3


@pytest.mark.reliability
def test_a_pipe_gets_plain_lines(synapse: Path, tmp_path: Path) -> None:
    command = [*runs.PYTHON, *runs.words(synapse, tmp_path / "run", "--max_epochs", 2, "--workers", 2)]
    out, error = runs.finish(command)
    assert error == "" and "\r" not in out and "\x1b" not in out
    assert re.search(r"^epoch 1/2  step 2  loss \d\.\d{4}  ce .* left$", out, re.MULTILINE)
    assert re.search(r"^epoch 2/2  step 4  loss \d\.\d{4}  ce ", out, re.MULTILINE)


def test_a_long_epoch_in_a_pipe_tells_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: now[0])
    watcher = MetricLogger(tmp_path, total_steps=1000)
    watcher.begin(100, 0)
    with caplog.at_level(logging.INFO):
        for step in watcher.watch(range(101, 201), "epoch 1/5", total=100):
            now[0] += 1.0
            watcher.progress(step, {"loss": 0.5})
    lines = [found.getMessage() for found in caplog.records]
    assert lines == [
        "epoch 1/5  step 130/1000  loss 0.5000  14:30 left",
        "epoch 1/5  step 160/1000  loss 0.5000  14:00 left",
        "epoch 1/5  step 190/1000  loss 0.5000  13:30 left",
    ]


def test_a_process_that_is_not_to_write_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    silent = MetricLogger(None, total_steps=3, log_freq=1)
    silent.begin(0, 0)
    silent.log_step(1, 0, 0.1, {"loss": 1.0})
    silent.log_scores(1, 1, {"dice": 0.5})
    silent.log_images(1, torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, 2))
    assert list(silent.watch(range(3), "x")) == [0, 1, 2] and silent.size() == 0
    assert not list(tmp_path.iterdir())
