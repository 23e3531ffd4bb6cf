"""The losses: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.losses.base import LOSSES, Loss

__all__ = ["LOSSES", "Loss"]
