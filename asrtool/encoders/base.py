"""What an encoder is, and the registry of encoders."""

from __future__ import annotations

from torch import Tensor, nn

from asrtool.registry import Registry
from asrtool.types import EncoderOutput, Padded


class Encoder(nn.Module):
    """Input features or samples -> frames.

    Built by `ENCODERS.build(config, input_dim=F, vocab_size=V, frame_shift=seconds per input
    step)`. Padding never changes a number: an utterance alone and in a batch gives the same frames.
    """

    dim: int  # D
    frame_shift: float  # seconds per position
    ctc_tap: str | None = None  # the tap that CTC reads; None: the frames

    def forward(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        """inputs (B, T, F) or (B, T). `chunk`: visible look-ahead in encoder frames, None for the
        whole utterance.
        """
        raise NotImplementedError


class StreamingEncoder(Encoder):
    """An encoder that can be fed piece by piece; the frames are those of `forward(inputs, chunk)`
    on the whole.
    """

    input_frames: int  # input frames per encoder frame
    seconds_per_frame: float  # of encoder frames: positions may be finer
    left_chunks: int | None  # how many chunks before its own a frame sees; None: all
    obstacle: str | None  # why this one cannot stream, if it cannot

    def init_cache(self, batch_size: int, chunk: int) -> object:
        """What there is before the first frame; a frozen dataclass, never changed in place. `chunk`
        as in `forward`.
        """
        raise NotImplementedError

    def forward_chunk(
        self, inputs: Padded, cache: object, final: Tensor
    ) -> tuple[EncoderOutput, object]:
        """The next piece (B, T, F), of any length in each row, 0 included; final (B,): the row ends
        with this piece.

        Frames come out when their chunk is complete or the row ends; a row that has ended gives
        length 0.
        """
        raise NotImplementedError


ENCODERS: Registry[Encoder] = Registry("encoder")
