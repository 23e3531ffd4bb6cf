"""How many loader processes a device needs: `data.workers: auto`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from asrtool import distributed
from asrtool.system import processes

# more than the device eats on average: some utterances take longer to prepare, and to read
RESERVE = 1.5


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """What was measured, in inputs (frames, samples or tokens) a second."""

    eats: float  # the device, in forward and backward passes
    feeds: float  # one loader process
    cores: int  # that this process may use for its loader processes

    @property
    def needed(self) -> int:
        return max(1, math.ceil(RESERVE * self.eats / max(self.feeds, 1e-9)))

    @property
    def workers(self) -> int:
        return min(self.needed, self.cores)

    def describe(self, frame_seconds: float | None) -> str:
        """One sentence. frame_seconds: of an input frame or sample; None: inputs are tokens."""
        # seconds of audio a second are hours an hour
        scale, unit = (1, "tokens a second") if frame_seconds is None else (frame_seconds, "hours")
        times = "" if frame_seconds is None else " of audio an hour"
        text = (
            f"data.workers: auto is {self.workers}: the device trains on {self.eats * scale:.3g} "
            f"{unit}{times}, a loader process prepares {self.feeds * scale:.3g}"
        )
        if self.needed <= self.cores:
            return text
        return (
            f"{text}, and there are cores for no more; the device will wait for data unless "
            "features are stored"
        )


def cores() -> int:
    """Cores of this machine for the loader processes of one rank, which keeps one for itself."""
    return max(1, processes.cores() // distributed.ranks_here() - 1)
