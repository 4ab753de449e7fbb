"""SIGINT and SIGTERM during training: the first is obeyed once the batch is done and saved, a second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignals:
    """`received` is the number of the last signal that came within `caught`, or 0."""

    received = 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Note both signals for the length of a context; outside the main thread Python catches none."""
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):  # the system's own, which also end what waits forever
            signal.signal(each, signal.SIG_DFL)

    @property
    def number(self) -> int:
        """The signal to end by: SIGTERM where another process of the run received one."""
        return self.received or signal.SIGTERM
