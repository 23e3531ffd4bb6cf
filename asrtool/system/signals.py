"""Orderly stops: SIGTERM, SIGUSR1 (from Slurm) and Ctrl-C end training after the current step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from asrtool.log import logger

CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """`with StopSignals() as signals`: `signals.received` is the first signal, or 0.

    A second Ctrl-C ends the process at once. Forked loader workers inherit the handlers and ignore
    all three signals, so that they can deliver the batches needed to finish the step; they end with
    their parent.
    """

    def __init__(self) -> None:
        self.received = 0
        self._owner = os.getpid()
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        # Python runs handlers in the main thread only
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return
        if self.received == number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        elif not self.received:
            self.received = number
            advice = (
                "; press Ctrl-C again to end it at once without saving"
                if number == signal.SIGINT
                else ""
            )
            logger.info(
                "%s: finishing the step, then saving%s", signal.Signals(number).name, advice
            )
