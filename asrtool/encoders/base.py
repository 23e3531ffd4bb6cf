"""What an encoder is, and the registry of encoders."""

from __future__ import annotations

from torch import nn

from asrtool.registry import Registry
from asrtool.types import EncoderOutput, Padded


class Encoder(nn.Module):
    """Input features or samples -> frames.

    Built by `ENCODERS.build(config, input_dim=F, vocab_size=V, frame_shift=seconds per input step)`. Padding never changes a
    number: an utterance alone and in a batch gives the same frames.
    """

    dim: int                                # D
    frame_shift: float                      # seconds per position

    def forward(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        """inputs (B, T, F) or (B, T). `chunk`: visible look-ahead in encoder frames, None for the whole utterance."""
        raise NotImplementedError


ENCODERS: Registry[Encoder] = Registry("encoder")
