"""Encoder, frame-synchronous heads and an optional attention decoder (hybrid CTC/attention, arXiv
1609.06773).

    x -> encoder -> frames h (B, S, D)
        -> head `ctc`: logits (B, S, V)
        -> head `aligned`: logits (B, S, V) of as many frames as tokens (AXE, TIL)
        -> decoder(h, y): stream `attention` (B, U + 1, V)
        -> reverse_decoder(h, reversed y): stream `reverse` (B, U + 1, V)
      -> taps, passed on as streams of the same name

A head exists where a loss reads it and nowhere else; a decoder exists where the config has one, and
needs a loss. The right-to-left decoder (arXiv 2106.05642) serves `attention_rescoring`; row u of
its stream rates token u by those after it, and row U the start, so that the loss is `cross_entropy`
as for the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from asrtool.decoders import DECODERS
from asrtool.decoders.base import Reversed
from asrtool.encoders import ENCODERS
from asrtool.models.base import MODELS, AsrModel
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """An encoder with CTC head(s) and, where configured, attention decoders from left to right and
    right to left.
    """

    encoder: Annotated[object, ENCODERS]
    decoder: Annotated[object, DECODERS] | None = None
    reverse_decoder: Annotated[object, DECODERS] | None = None  # for attention_rescoring
    # tap of the encoder that the head `ctc` reads, or frames; null: as the encoder says
    ctc_input: str | None = None


@MODELS.register("hybrid", HybridConfig)
class Hybrid(AsrModel):
    """Streams: `ctc` and `aligned` from the frames, `attention` and `reverse` from decoders, and
    the encoder's taps.
    """

    FRAME_HEADS = ("ctc", "aligned")  # streams that are one linear layer over the encoder's frames

    def __init__(
        self,
        config: HybridConfig,
        *,
        input_dim: int,
        vocab_size: int,
        frame_shift: float,
        streams: frozenset[str],
    ) -> None:
        super().__init__()
        self.encoder = ENCODERS.build(
            config.encoder, input_dim=input_dim, vocab_size=vocab_size, frame_shift=frame_shift
        )
        self.frame_shift = self.encoder.frame_shift
        self.eos = vocab_size - 1
        self.streams = frozenset(streams)
        self.ctc_tap = self.encoder.ctc_tap if config.ctc_input is None else config.ctc_input
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(self.encoder.dim, vocab_size)
                for name in self.FRAME_HEADS
                if name in streams
            }
        )
        self.decoder = self._decoder("decoder", "attention", config.decoder)
        self.reverse_decoder = self._decoder("reverse_decoder", "reverse", config.reverse_decoder)

    def _decoder(self, key: str, stream: str, config: object | None) -> nn.Module | None:
        if config is None and stream in self.streams:
            raise ValueError(f"a loss reads the stream '{stream}', but model.{key} is not set")
        if config is not None and stream not in self.streams:
            raise ValueError(f"model.{key} is set, but no loss reads its stream '{stream}'")
        return (
            DECODERS.build(config, dim=self.encoder.dim, vocab_size=self.eos + 1)
            if config
            else None
        )

    def forward(self, batch: Batch) -> ModelOutput:
        encoded = self.encode(batch.inputs)
        streams = {name: self._logits(encoded, name) for name in self.heads}
        streams.update({name: tap for name, tap in encoded.taps.items() if name in self.streams})
        if self.decoder is not None:
            streams["attention"] = self.decoder(encoded, batch.targets)
        if self.reverse_decoder is not None:
            streams["reverse"] = Reversed(self.reverse_decoder).logits(encoded, batch.targets)
        return ModelOutput(encoder=encoded, streams=streams)

    def encode(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        return self.encoder(inputs, chunk)

    def log_probs(self, encoded: EncoderOutput, stream: str = "ctc") -> Padded:
        logits, lengths = self._logits(encoded, stream)
        return Padded(logits.float().log_softmax(-1), lengths)

    def scorers(self) -> Mapping[str, object]:
        return {} if self.decoder is None else {"attention": self.decoder}

    def rescorers(self) -> Mapping[str, object]:
        reverse = (
            {} if self.reverse_decoder is None else {"reverse": Reversed(self.reverse_decoder)}
        )
        return {**self.scorers(), **reverse}

    def _logits(self, encoded: EncoderOutput, stream: str) -> Padded:
        if stream in self.heads:
            frames = self._ctc_frames(encoded) if stream == "ctc" else encoded.frames
            return Padded(self.heads[stream](frames.data), frames.lengths)
        if stream in encoded.taps:
            return encoded.taps[stream]
        has = ", ".join(sorted({*self.heads, *encoded.taps})) or "none"
        raise LookupError(
            f"no loss trained the stream '{stream}'; frame-synchronous streams of this model: {has}"
        )

    def _ctc_frames(self, encoded: EncoderOutput) -> Padded:
        if self.ctc_tap in (None, "frames"):
            return encoded.frames
        if self.ctc_tap not in encoded.taps:
            has = ", ".join(sorted(encoded.taps)) or "none"
            raise LookupError(
                f"model.ctc_input: the encoder has no tap '{self.ctc_tap}' (it has: {has}, or "
                "frames)"
            )
        return encoded.taps[self.ctc_tap]
