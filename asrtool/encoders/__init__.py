"""The encoders: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.encoders.base import ENCODERS, Encoder, StreamingEncoder
from asrtool.encoders.conformer import ChunkConfig, Conformer, ConformerConfig

__all__ = ["ENCODERS", "ChunkConfig", "Conformer", "ConformerConfig", "Encoder", "StreamingEncoder"]
