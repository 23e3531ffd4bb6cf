"""Where the time of a step goes.

data      waiting for the loader (measured by the trainer)
forward   forward pass and losses
backward  backward pass, the summing of gradients over ranks included as far as it is not hidden
behind it wait      waiting for the other ranks after that
update    clipping and optimizer
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

PARTS = ("data", "forward", "backward", "wait", "update")


class Clock:
    """Stops the time of parts one after the other.

    On a GPU by events in its stream, which are read when the step has synchronised anyway: nothing
    waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        self._marks = [("", self._now())]

    def lap(self, part: str) -> None:
        """The time since the last lap, or the start, belongs to `part`."""
        self._marks.append((part, self._now()))

    def seconds(self) -> Mapping[str, float]:
        """Part -> seconds since the start."""
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        total: dict[str, float] = {}
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            elapsed = before.elapsed_time(after) / 1000 if self._on_gpu else after - before
            total[part] = total.get(part, 0.0) + elapsed
        return total

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
