"""SIGINT and SIGTERM during training: noted when they come, obeyed once the batch is done and the run is saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class StopSignals:
    """A context in which the first signal sets `received`; outside the main thread nothing is caught."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _EXIT_CODES}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, else 143: a process that received none ends with another one of its run."""
        return _EXIT_CODES.get(signal.Signals(self.received or signal.SIGTERM), 143)
