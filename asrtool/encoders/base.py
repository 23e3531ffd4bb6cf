"""The interface of encoders, and their registry."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from asrtool.registry import Registry
from asrtool.tuning import EncoderTuning
from asrtool.types import EncoderOutput, Padded

CHUNK_TOLERANCE = 0.01  # milliseconds by which a chunk may miss a multiple of a frame


class EncoderConfig:
    """Base of the config of every encoder: what other parts read of any of them.

    These are class variables of a plain class, not fields: an encoder without a front end has no
    key `frontend` in YAML. The dataclass of an encoder that has one declares a field of that name.
    """

    # an encoder of samples whose frames this encoder reads instead of features; None: it has none
    frontend: ClassVar[object | None] = None
    # pre-trained weights, a hub name or a folder, and the commit, tag or branch of the hub's model;
    # None: random weights, the hub's default branch
    weights: ClassVar[str | None] = None
    revision: ClassVar[str | None] = None
    # the layer whose outputs are the frames, or "sum" for a weighted sum; None: the last layer
    layer: ClassVar[int | str | None] = None
    # which parameters of a pre-trained network are trained
    tuning: ClassVar[EncoderTuning] = EncoderTuning(mode="full")
    # settings of an accent head, among them its number of `classes`; None: it has no accent head
    accent: ClassVar[object | None] = None


class Source(NamedTuple):
    """The origin of pre-trained weights that checkpoints leave out."""

    part: str  # name of the submodule that holds them; "": the encoder itself
    weights: str  # hub name or folder
    revision: str | None

    def below(self, name: str) -> Source:
        """The same source, named from the module that holds this encoder as `name`."""
        return self._replace(part=f"{name}.{self.part}".rstrip("."))


class Encoder(nn.Module):
    """Input features (B, T, F) or samples (B, T) -> frames (B, S, D).

    Built by `ENCODERS.build(config, input_dim=F, vocab_size=V, frame_shift=seconds per input
    step)`; the config derives from `EncoderConfig`. Padding changes no number: an utterance has the
    same frames alone and in a batch.
    """

    dim: int  # D
    frame_shift: float  # seconds per position
    ctc_tap: str | None = None  # the tap that CTC reads; None: the frames
    reads_samples = False  # inputs are samples (B, T), not features (B, T, F)
    look_ahead: float | None = None  # seconds after a frame that it sees; None: the utterance
    max_seconds: float | None = None  # length of the longest utterance it reads; None: no limit
    # names of parameters that are never trained, and of tensors that checkpoints leave out because
    # they are loaded from `sources`
    frozen: frozenset[str] = frozenset()
    pretrained: frozenset[str] = frozenset()
    sources: tuple[Source, ...] = ()
    stored_dim: int | None = None  # numbers per stored frame; None: frames cannot be stored

    def stored(self, inputs: Padded) -> Padded:
        """Samples (B, T) -> what a frozen encoder can store (B, S, stored_dim), rounded to float16.

        `from_stored` turns it into the encoder's output. Raises `ValueError` if the encoder is
        trained.
        """
        raise ValueError(f"{type(self).__name__} has no frames that can be stored")

    def from_stored(self, frames: Padded) -> EncoderOutput:
        """The output of `stored` (B, S, stored_dim) -> the output of `forward`."""
        raise ValueError(f"{type(self).__name__} has no frames that can be stored")

    def forward(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        """inputs (B, T, F) or (B, T). chunk: encoder frames, None for the whole utterance.

        A frame sees its whole chunk and the chunks before it.
        """
        raise NotImplementedError


class StreamingEncoder(Encoder):
    """An encoder that also takes its input piece by piece.

    Its frames equal those of `forward(inputs, chunk)` on the whole utterance.
    """

    input_frames: int  # input frames per encoder frame
    seconds_per_frame: float  # of encoder frames: positions may be finer
    left_chunks: int | None  # how many chunks before its own a frame sees; None: all
    longest_chunk: int | None = None  # frames of the longest chunk in training; None: no chunks
    obstacle: str | None  # the reason why this configuration cannot stream; None: it can

    def frames_of(self, milliseconds: float, key: str = "chunk_ms") -> int:
        """Milliseconds -> encoder frames of a chunk.

        Raises `ValueError` if the length is not a multiple of a frame; `key` names the setting in
        the message.
        """
        frame = 1000 * self.seconds_per_frame
        # rounded, as frame shifts such as 0.01 s are not exact in binary: 640 ms / 40 ms may be
        # 15.999...
        frames = round(milliseconds / frame)
        if frames < 1 or abs(frames * frame - milliseconds) > CHUNK_TOLERANCE:
            # the message names the nearest lengths that would work
            below = math.floor(milliseconds / frame) * frame
            near = " or ".join(f"{x:g}" for x in (below, below + frame) if x > 0)
            raise ValueError(
                f"{key} is {milliseconds:g} ms, but a frame of this encoder is {frame:g} ms: "
                f"expected a multiple of that, such as {near}"
            )
        return frames

    def init_cache(self, batch_size: int, chunk: int) -> object:
        """The state before the first frame: a frozen dataclass that derives from `PerRow`
        (asrtool/nn/rows.py) and is never changed in place. `chunk` as in `forward`.
        """
        raise NotImplementedError

    def forward_chunk(
        self, inputs: Padded, cache: object, final: Tensor
    ) -> tuple[EncoderOutput, object]:
        """The next piece (B, T, F) of each row, of any length, even 0. final (B,): the row ends.

        Frames come out when their chunk is complete or the row ends. A row that has ended has
        length 0 from then on.
        """
        raise NotImplementedError


def check_encoder(encoder: Encoder) -> None:
    """Raise `TypeError` if an encoder lacks an attribute that every model reads."""
    needed = (("dim", "width of its frames"), ("frame_shift", "seconds per position"))
    for name, meaning in needed:
        if not hasattr(encoder, name):
            raise TypeError(
                f"the encoder {type(encoder).__name__} has no `{name}`, the {meaning}: set "
                f"self.{name} in its __init__"
            )


ENCODERS: Registry[Encoder] = Registry("encoder", EncoderConfig)
