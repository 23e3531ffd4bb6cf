"""The losses: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.losses.base import LOSSES, Loss
from asrtool.losses.cross_entropy import CrossEntropyConfig, CrossEntropyLoss
from asrtool.losses.ctc import CtcConfig, CtcLoss

__all__ = ["LOSSES", "CrossEntropyConfig", "CrossEntropyLoss", "CtcConfig", "CtcLoss", "Loss"]
