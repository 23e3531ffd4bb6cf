"""Encoder, frame-synchronous heads and an optional attention decoder (hybrid CTC/attention, arXiv 1609.06773).

    x -> encoder -> frames h (B, S, D) -> head `ctc`: logits (B, S, V)
                                       -> decoder(h, y): stream `attention` (B, U + 1, V)
                 -> taps, passed on as streams of the same name

A head exists where a loss reads it and nowhere else; the decoder exists where the config has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from asrtool.decoders import DECODERS
from asrtool.encoders import ENCODERS
from asrtool.models.base import MODELS, AsrModel
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """An encoder with CTC head(s) and, where configured, an attention decoder."""

    encoder: Annotated[object, ENCODERS]
    decoder: Annotated[object, DECODERS] | None = None


@MODELS.register("hybrid", HybridConfig)
class Hybrid(AsrModel):
    """Streams: `ctc` from the frames, `attention` from the decoder, and the encoder's taps."""

    FRAME_HEADS = ("ctc",)  # streams that are one linear layer over the encoder's frames

    def __init__(
        self, config: HybridConfig, *, input_dim: int, vocab_size: int, frame_shift: float, streams: frozenset[str]
    ) -> None:
        super().__init__()
        self.encoder = ENCODERS.build(
            config.encoder, input_dim=input_dim, vocab_size=vocab_size, frame_shift=frame_shift
        )
        self.frame_shift = self.encoder.frame_shift
        self.eos = vocab_size - 1
        self.streams = frozenset(streams)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.encoder.dim, vocab_size) for name in self.FRAME_HEADS if name in streams}
        )
        if config.decoder is None and "attention" in streams:
            raise ValueError("a loss reads the stream 'attention', but model.decoder is not set")
        if config.decoder is not None and "attention" not in streams:
            raise ValueError("model.decoder is set, but no loss reads its stream 'attention'")
        self.decoder = (
            DECODERS.build(config.decoder, dim=self.encoder.dim, vocab_size=vocab_size) if config.decoder else None
        )

    def forward(self, batch: Batch) -> ModelOutput:
        encoded = self.encode(batch.inputs)
        streams = {name: self._logits(encoded, name) for name in self.heads}
        streams.update({name: tap for name, tap in encoded.taps.items() if name in self.streams})
        if self.decoder is not None:
            streams["attention"] = self.decoder(encoded, batch.targets)
        return ModelOutput(encoder=encoded, streams=streams)

    def encode(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        return self.encoder(inputs, chunk)

    def log_probs(self, encoded: EncoderOutput, stream: str = "ctc") -> Padded:
        logits, lengths = self._logits(encoded, stream)
        return Padded(logits.float().log_softmax(-1), lengths)

    def scorers(self) -> Mapping[str, object]:
        return {} if self.decoder is None else {"attention": self.decoder}

    def _logits(self, encoded: EncoderOutput, stream: str) -> Padded:
        if stream in self.heads:
            return Padded(self.heads[stream](encoded.frames.data), encoded.frames.lengths)
        if stream in encoded.taps:
            return encoded.taps[stream]
        has = ", ".join(sorted({*self.heads, *encoded.taps})) or "none"
        raise LookupError(f"no loss trained the stream '{stream}'; frame-synchronous streams of this model: {has}")
