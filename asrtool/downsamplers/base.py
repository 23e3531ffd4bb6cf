"""The interface of downsamplers, which have fewer frames out than in, and their registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asrtool.nn.rows import PerRow
from asrtool.registry import Registry
from asrtool.types import DownsamplerOutput, Padded


class Downsampler(nn.Module):
    """Frames (B, T, D_in) -> fewer frames (B, S, D_out), before an encoder layer or an LLM.

    Built by `DOWNSAMPLERS.build(config, dim_in=..., dim_out=..., vocab_size=V)`. An output is at
    least one frame long and at most as long as its input, padding never changes a valid frame, and
    positions are strictly increasing.
    """

    factor: int  # input frames per output frame; 1 if it depends on the data
    # tokens of the longest text of the batch, which the model sets in training; None: unknown
    longest_text: int | None = None
    uniform: bool = False  # output positions are every `factor`-th input position, without gaps

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        """positions (B, T) of the inputs, counted in frames after the stem; None for the stem."""
        raise NotImplementedError


class StreamingDownsampler(Downsampler):
    """A downsampler that also takes its input piece by piece.

    Output s sees no input after factor * s + factor - 1, the last of the frames that it replaces.
    """

    causal: bool  # False: configured to look ahead, so it cannot stream

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        """The whole utterance as one piece."""
        output, _ = self.forward_chunk(inputs, positions, self.init_cache(len(inputs.lengths)))
        return output

    def init_cache(self, batch_size: int) -> object:
        """The state before the first frame: a frozen dataclass that derives from `PerRow`
        (asrtool/nn/rows.py) and is never changed in place.
        """
        raise NotImplementedError

    def forward_chunk(
        self,
        inputs: Padded,
        positions: Tensor | None,
        cache: object,
    ) -> tuple[DownsamplerOutput, object]:
        """`forward` for the next piece.

        Lengths are multiples of `factor`, 0 included, except in the last piece of a row.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FrameCount(PerRow):
    """emitted (B,): the frames so far, which number those of the next piece."""

    emitted: Tensor


class FrameByFrame(StreamingDownsampler):
    """One that keeps every frame and looks at no other. Subclasses implement `each`."""

    factor = 1
    uniform = True
    causal = True

    def each(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """x (B, T, D_in), 0 in the padding -> (B, T, D_out), and taps (B, T, ...)."""
        raise NotImplementedError

    def init_cache(self, batch_size: int) -> FrameCount:
        some = next(self.parameters())
        return FrameCount(some.new_zeros(batch_size, dtype=torch.int64))

    def forward_chunk(
        self, inputs: Padded, positions: Tensor | None, cache: FrameCount
    ) -> tuple[DownsamplerOutput, FrameCount]:
        outside, lengths = ~inputs.mask[:, :, None], inputs.lengths
        y, taps = self.each(inputs.data.masked_fill(outside, 0))
        if positions is None:
            positions = cache.emitted[:, None] + torch.arange(y.shape[1], device=y.device)
        output = DownsamplerOutput(
            frames=Padded(y.masked_fill(outside, 0), lengths),
            positions=positions,
            taps={name: Padded(tap.masked_fill(outside, 0), lengths) for name, tap in taps.items()},
        )
        return output, FrameCount(cache.emitted + lengths)


DOWNSAMPLERS: Registry[Downsampler] = Registry("downsampler")
