"""The encoders: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.encoders.base import ENCODERS, Encoder

__all__ = ["ENCODERS", "Encoder"]
