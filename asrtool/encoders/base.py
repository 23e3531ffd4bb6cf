"""What an encoder is, and the registry of encoders."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from asrtool.registry import Registry
from asrtool.types import EncoderOutput, Padded

CHUNK_TOLERANCE = 0.01  # milliseconds by which a chunk may miss a multiple of a frame


class Source(NamedTuple):
    """Where pre-trained weights come from that checkpoints leave out."""

    part: str  # name of the submodule that they fill; "": the encoder itself
    weights: str  # hub name or folder
    revision: str | None

    def below(self, name: str) -> Source:
        """The same, seen from the module that has this encoder as its submodule `name`."""
        return self._replace(part=f"{name}.{self.part}".rstrip("."))


class Encoder(nn.Module):
    """Input features or samples -> frames.

    Built by `ENCODERS.build(config, input_dim=F, vocab_size=V, frame_shift=seconds per input
    step)`. Padding never changes a number: an utterance alone and in a batch gives the same frames.
    """

    dim: int  # D
    frame_shift: float  # seconds per position
    ctc_tap: str | None = None  # the tap that CTC reads; None: the frames
    reads_samples = False  # inputs are (B, T) samples, no (B, T, F) features
    look_ahead: float | None = None  # seconds behind a frame that it sees; None: the utterance
    max_seconds: float | None = None  # of the longest utterance that it reads; None: any
    # names of parameters that are never trained, and of tensors that checkpoints leave out, since
    # they are those of `sources`
    frozen: frozenset[str] = frozenset()
    pretrained: frozenset[str] = frozenset()
    sources: tuple[Source, ...] = ()
    stored_dim: int | None = None  # numbers for each frame that is stored; None: it stores none

    def stored(self, inputs: Padded) -> Padded:
        """Samples (B, T) -> what can be stored of a frozen encoder (B, S, stored_dim): every number
        is one of float16.

        `from_stored` makes the encoder's output of it. Raises `ValueError` where the encoder is
        trained.
        """
        raise ValueError(f"{type(self).__name__} has no frames that can be stored")

    def from_stored(self, frames: Padded) -> EncoderOutput:
        """What `stored` gave (B, S, stored_dim) -> the output of `forward`."""
        raise ValueError(f"{type(self).__name__} has no frames that can be stored")

    def forward(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        """inputs (B, T, F) or (B, T). chunk: encoder frames, None for the whole utterance.

        A frame sees its own chunk to the end, and the chunks before it.
        """
        raise NotImplementedError


class StreamingEncoder(Encoder):
    """An encoder that can be fed piece by piece.

    Its frames are those of `forward(inputs, chunk)` on the whole utterance.
    """

    input_frames: int  # input frames per encoder frame
    seconds_per_frame: float  # of encoder frames: positions may be finer
    left_chunks: int | None  # how many chunks before its own a frame sees; None: all
    longest_chunk: int | None = None  # frames of the longest chunk of training; None: in no chunks
    obstacle: str | None  # why this configuration cannot stream; None: it can

    def frames_of(self, milliseconds: float, key: str = "chunk_ms") -> int:
        """Encoder frames of a chunk that is given in milliseconds.

        Raises `ValueError` where it is no multiple of a frame; `key` is what the user wrote.
        """
        frame = 1000 * self.seconds_per_frame
        frames = round(milliseconds / frame)
        if frames < 1 or abs(frames * frame - milliseconds) > CHUNK_TOLERANCE:
            below = math.floor(milliseconds / frame) * frame
            near = " or ".join(f"{x:g}" for x in (below, below + frame) if x > 0)
            raise ValueError(
                f"{key} is {milliseconds:g} ms, but a frame of this encoder is {frame:g} ms: "
                f"expected a multiple of that, such as {near}"
            )
        return frames

    def init_cache(self, batch_size: int, chunk: int) -> object:
        """What there is before the first frame: a frozen dataclass that is a `PerRow`
        (asrtool/nn/rows.py) and never changed in place. `chunk` as in `forward`.
        """
        raise NotImplementedError

    def forward_chunk(
        self, inputs: Padded, cache: object, final: Tensor
    ) -> tuple[EncoderOutput, object]:
        """The next piece (B, T, F) of each row, of any length, even 0; final (B,): it is the last.

        Frames are returned when their chunk is complete or the row ends. A row that has ended
        returns length 0.
        """
        raise NotImplementedError


def check_encoder(encoder: Encoder) -> None:
    """Raise `TypeError` where an encoder does not say what models ask of it."""
    for need, what in (("dim", "width of its frames"), ("frame_shift", "seconds per position")):
        if not hasattr(encoder, need):
            raise TypeError(
                f"the encoder {type(encoder).__name__} has no `{need}`, the {what}: set "
                f"self.{need} in its __init__"
            )


ENCODERS: Registry[Encoder] = Registry("encoder")
