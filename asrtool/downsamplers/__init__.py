"""The downsamplers: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.downsamplers.base import DOWNSAMPLERS, Downsampler

__all__ = ["DOWNSAMPLERS", "Downsampler"]
