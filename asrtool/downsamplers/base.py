"""What a downsampler is (fewer frames out than in), and the registry of downsamplers."""

from __future__ import annotations

from torch import Tensor, nn

from asrtool.registry import Registry
from asrtool.types import DownsamplerOutput, Padded


class Downsampler(nn.Module):
    """Frames (B, T, D_in) -> fewer frames (B, S, D_out), before an encoder layer or an LLM.

    Built by `DOWNSAMPLERS.build(config, dim_in=..., dim_out=..., vocab_size=V)`. Output lengths are
    never 0 and never above those of the input; the padding never changes a valid frame; positions
    increase strictly.
    """

    factor: int  # input frames per output frame; 1 where it depends on the data
    uniform: bool = False  # output positions are every `factor`-th input position, without gaps

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        """positions (B, T): of the inputs, counted in frames after the stem; None for the stem."""
        raise NotImplementedError


class StreamingDownsampler(Downsampler):
    """A downsampler that can be fed piece by piece.

    Output s sees no input behind factor * s + factor - 1, the last of those that it stands for.
    """

    causal: bool  # False: configured to look ahead, so it cannot stream

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        """The whole utterance is one piece."""
        output, _ = self.forward_chunk(inputs, positions, self.init_cache(len(inputs.lengths)))
        return output

    def init_cache(self, batch_size: int) -> object:
        """What there is before the first frame: a frozen dataclass that is a `PerRow`
        (asrtool/nn/rows.py) and never changed in place.
        """
        raise NotImplementedError

    def forward_chunk(
        self,
        inputs: Padded,
        positions: Tensor | None,
        cache: object,
    ) -> tuple[DownsamplerOutput, object]:
        """`forward` for the next piece.

        Lengths are multiples of `factor`, except in the last piece of a row; 0 is legal.
        """
        raise NotImplementedError


DOWNSAMPLERS: Registry[Downsampler] = Registry("downsampler")
