"""The decoders: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.decoders.base import DECODERS, Decoder
from asrtool.decoders.transformer import TransformerDecoder, TransformerDecoderConfig

__all__ = ["DECODERS", "Decoder", "TransformerDecoder", "TransformerDecoderConfig"]
