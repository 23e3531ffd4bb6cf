"""What goes wrong in training is counted and named: `bad_batches.jsonl`, and utterances that no
loss can rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from asrtool import distributed
from asrtool.log import JsonLines, warn_once
from asrtool.train.config import TrainState
from asrtool.train.progress import Progress
from asrtool.train.step import StepBatches, StepResult, TrainError

NAMES_SHOWN = 10


class Troubles:
    """Of one phase. limit: bad steps in a row that end the run."""

    def __init__(self, phase: str, logs: Path, limit: int) -> None:
        self._phase, self._file, self._limit = phase, logs / "bad_batches.jsonl", limit
        self._skipped: set[str] = set()
        self._named: set[str] = set()

    def bad(self, group: StepBatches, result: StepResult, state: TrainState) -> None:
        """Name a step that changed nothing; end the run when there were too many in a row."""
        if distributed.is_main():
            lines = JsonLines(self._file)
            for entry in result.bad:
                lines.write(phase=self._phase, epoch=group.epoch + 1, step=state.step, **entry)
            lines.close()
        guilty = [name for entry in result.bad for name in entry["not_finite"]]
        guilty = guilty or [name for entry in result.bad for name in entry["ids"]]
        warn_once(
            "step %d is not finite and changed nothing; see bad_batches.jsonl: %s",
            state.step,
            some(guilty),
        )
        if state.bad_row >= self._limit:
            raise TrainError(
                f"{state.bad_row} steps in a row were not finite; {self._file} names the "
                "utterances and the first "
                "module concerned. If the inputs are finite: lower optim.lr, warm up longer, or "
                "set "
                "trainer.precision: float32"
            )

    def unrated(self, ids: Iterable[str]) -> None:
        """Remember utterances of this rank that a loss could not rate."""
        self._skipped.update(ids)

    def report(self, epoch: int, progress: Progress) -> None:
        """Name those that were not named before; all ranks call it together. epoch 0: before the
        first step.
        """
        gathered = distributed.gather_objects(sorted(self._skipped))
        fresh = sorted({name for names in gathered for name in names} - self._named)
        self._named.update(fresh)
        self._skipped.clear()
        if not fresh:
            return
        when = f"epoch {epoch}" if epoch else "before the first step"
        text = (
            "%s: %d utterances have no finite loss (fewer frames than their text needs) and "
            "count as 0: %s"
        )
        warn_once(text, when, len(fresh), some(fresh))
        progress.event("skipped", epoch=epoch, ids=fresh)


def some(names: list[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
