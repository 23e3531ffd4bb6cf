"""The decoders: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.decoders.base import DECODERS, Decoder

__all__ = ["DECODERS", "Decoder"]
