"""A bidirectional LSTM over stacked frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asrtool.encoders import ENCODERS, Encoder, EncoderConfig
from asrtool.registry import bounded
from asrtool.types import EncoderOutput, Padded


@dataclass(frozen=True, kw_only=True)
class BlstmConfig(EncoderConfig):
    """Bidirectional LSTM (Graves and Schmidhuber 2005)."""

    num_layers: int = bounded(4, least=1)
    dim: int = bounded(512, least=2)  # of both directions together
    factor: int = bounded(4, least=1)  # frames that are stacked into one
    dropout: float = bounded(0.1, least=0, below=1)  # between layers

    def __post_init__(self) -> None:
        if self.dim % 2:
            raise ValueError(f"dim is {self.dim}: two directions need an even number")


@ENCODERS.register("blstm", BlstmConfig)
class Blstm(Encoder):
    """Features (B, T, F) -> frames (B, S, D), S = ceil(T / factor)."""

    def __init__(
        self, config: BlstmConfig, *, input_dim: int, vocab_size: int, frame_shift: float
    ) -> None:
        super().__init__()
        self.dim = config.dim
        self.factor = config.factor
        self.frame_shift = frame_shift * config.factor
        self.stack = nn.Linear(input_dim * config.factor, config.dim)
        self.lstm = nn.LSTM(
            config.dim,
            config.dim // 2,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout,
            bidirectional=True,
        )

    def forward(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        if chunk is not None:
            raise ValueError("blstm cannot stream: it reads utterances from both ends")
        # padding may hold anything, and the last stack of a row may reach into it
        x = inputs.data.masked_fill(~inputs.mask[:, :, None], 0)
        x = pad(x, (0, 0, 0, -x.shape[1] % self.factor))
        x = self.stack(x.unflatten(1, (-1, self.factor)).flatten(2))
        lengths = (inputs.lengths + self.factor - 1) // self.factor
        packed = pack_padded_sequence(
            x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        x, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        positions = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return EncoderOutput(frames=Padded(x, lengths), positions=positions)
