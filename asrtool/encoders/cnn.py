"""Residual convolutions over time: a light network over the frames of a front end.

    x -> stem -> x + dropout(GELU(conv(norm(x)))) for each layer -> norm

Frames of a pre-trained encoder already carry their context. With a few hours of labelled speech, a
network that sees 0.1 to 0.3 s of them beats one that attends to the whole utterance, and is cheaper
(docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn
from torch.nn.functional import gelu

from asrtool.downsamplers import DOWNSAMPLERS, Conv2dConfig, LinearConfig
from asrtool.encoders.base import ENCODERS, Encoder, EncoderConfig
from asrtool.encoders.frontend import put_in_front, through
from asrtool.nn.dropout import Dropout
from asrtool.registry import bounded
from asrtool.types import EncoderOutput, Padded


@dataclass(frozen=True, kw_only=True)
class CnnConfig(EncoderConfig):
    """Residual convolutions over time."""

    num_layers: int = bounded(2, least=0)
    dim: int = bounded(512, least=1)
    kernel: int = bounded(5, least=1)  # frames of a convolution, an odd number
    dropout: float = bounded(0.2, least=0, below=1)
    stem: Annotated[object, DOWNSAMPLERS] = LinearConfig()
    # an encoder that reads samples, whose frames the stem reads; null: features
    frontend: Annotated[object, ENCODERS] | None = None

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number of frames, got {self.kernel}")
        if self.frontend is not None and isinstance(self.stem, Conv2dConfig):
            raise ValueError(
                "stem: conv2d reads mel bins, not the frames of a front end; take {type: linear} "
                "or {type: strided_conv, factor: 2}"
            )


@ENCODERS.register("cnn", CnnConfig)
class Cnn(Encoder):
    """Features (B, T, F) -> frames (B, S, D); the stem decides S.

    With a front end, inputs are samples (B, T) or the output of the front end's `stored`.
    """

    def __init__(
        self, config: CnnConfig, input_dim: int, vocab_size: int, frame_shift: float
    ) -> None:
        super().__init__()
        input_dim, frame_shift = put_in_front(
            self, config.frontend, input_dim, vocab_size, frame_shift
        )
        self.dim = config.dim
        self.stem = DOWNSAMPLERS.build(
            config.stem, dim_in=input_dim, dim_out=config.dim, vocab_size=vocab_size
        )
        self.frame_shift = frame_shift * self.stem.factor
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(config.num_layers))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.dim, config.dim, config.kernel, padding=config.kernel // 2)
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        if chunk is not None:
            raise ValueError("encoder cnn cannot stream: its convolutions look ahead")
        output = self.stem(through(self.frontend, inputs))
        # residuals are summed in float32, also under autocast
        x, outside = self.dropout(output.frames.data.float()), ~output.frames.mask[:, :, None]
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            # the convolution reads into the padding, which must be zero as at the end of an
            # utterance alone
            x = x + self._branch(norm(x).masked_fill(outside, 0), convolution)
        frames = Padded(self.final_norm(x).masked_fill(outside, 0), output.frames.lengths)
        return EncoderOutput(frames=frames, positions=output.positions, taps=output.taps)

    def _branch(self, x: Tensor, convolution: nn.Conv1d) -> Tensor:
        return self.dropout(gelu(convolution(x.transpose(1, 2)).transpose(1, 2)))
