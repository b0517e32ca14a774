"""SIGTERM and Ctrl-C, turned into a flag so that a run can be saved before it ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """Context manager that records the first SIGTERM or Ctrl-C instead of ending the process.

    The code inside checks :attr:`received` where it can stop, saves, and calls :meth:`raise_if_received`.  A second
    signal ends the process at once, and so does the first one after ``patience`` seconds without a save.  A signal for
    which the program has its own handler, or which it ignores, is left alone.  Python allows signal handlers only in
    the main thread: in other threads this does nothing.
    """

    patience = 10.0
    """Maximum time from the signal to the save, in seconds."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._timer: threading.Timer | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
                if signal.getsignal(number) == default:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_timer()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def stop_timer(self) -> None:
        """Do not end the process after ``patience`` seconds: the run is being saved."""
        if self._timer is not None:
            self._timer.cancel()

    def raise_if_received(self) -> None:
        """End the process as the signal asks.

        Raises:
            SystemExit: for SIGTERM, with code 143.
            KeyboardInterrupt: for Ctrl-C.
        """
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self._timer = threading.Timer(self.patience, os.kill, (os.getpid(), number))
            self._timer.daemon = True  # a data loader's process gets the same Ctrl-C and must not wait for it
            self._timer.start()
        else:
            self.raise_if_received()
