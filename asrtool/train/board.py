"""TensorBoard's event files beside log.jsonl, where the package `tensorboard` is installed."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path

from asrtool.log import logger


class Board:
    """The curves of one phase in `folder`. Built by `open_board`."""

    def __init__(self, writer: object) -> None:
        self._writer = writer

    def write(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        """The finite ones of `values`, under their names."""
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(prefix + name, value, step)

    def close(self) -> None:
        self._writer.close()


def open_board(folder: Path, start: int) -> Board | None:
    """Go on after step `start` (what an interrupted run wrote after it is dropped); None where
    there is no TensorBoard, which is said."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _say_missing(folder.parent.parent)
        return None
    return Board(SummaryWriter(str(folder), purge_step=start + 1))


@functools.cache
def _say_missing(exp: Path) -> None:
    """Once, whatever the number of phases."""
    text = (
        "TensorBoard is not installed (pip install tensorboard); log.jsonl holds the curves, "
        "and asrtool plot"
    )
    logger.info("%s %s draws them", text, exp)
