"""The Conformer (arXiv 2005.08100), offline and streaming, with downsamplers before any layer.

Streaming is chunk-wise attention with explicit caches (arXiv 2012.05481) and causal convolutions.
There is one code path: offline recognition is one piece with a chunk mask and no cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from asrtool.downsamplers import DOWNSAMPLERS, Conv2dConfig, StreamingDownsampler
from asrtool.encoders.base import (
    CHUNK_TOLERANCE,
    ENCODERS,
    EncoderConfig,
    StreamingEncoder,
)
from asrtool.encoders.echo import ATTENTIONS, EchoSelfAttention, echo_layers
from asrtool.encoders.frontend import put_in_front, through
from asrtool.nn.attention import RelativeSelfAttention, RotarySelfAttention, SelfAttention
from asrtool.nn.conformer import (
    ConformerLayer,
    ConformerLayerCache,
    Memory,
    NewFrames,
    Scope,
    packed_rows,
)
from asrtool.nn.convolution import ConvolutionModule
from asrtool.nn.dropout import Dropout
from asrtool.nn.layer_drop import drops, without
from asrtool.nn.masks import attention_mask, chunk_mask, random_chunk
from asrtool.nn.positions import distances, rotations
from asrtool.nn.rows import PerRow
from asrtool.registry import OMIT, bounded
from asrtool.types import EncoderOutput, Padded

_ATTENTIONS = {"rotary": RotarySelfAttention, "relative": RelativeSelfAttention}


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """The chunks that a streaming encoder is trained on."""

    # true: half of the batches are whole utterances, the others random chunks; false: always the
    # longest chunk
    dynamic: bool = True
    max_ms: float = bounded(1000.0, least=0)  # the longest chunk
    # of dynamic chunks; null: every number of frames up to the longest
    sizes_ms: tuple[float, ...] | None = None
    left_chunks: int | None = None  # how many chunks before its own a frame sees; null: all
    # former keys, which older experiments have: seconds for `max_ms`, frames for `sizes_ms`
    max_seconds: float | None = bounded(None, least=0, omit=True)
    sizes: tuple[int, ...] | None = field(default=None, metadata=OMIT)

    def __post_init__(self) -> None:
        if self.max_seconds is not None:
            object.__setattr__(self, "max_ms", 1000 * self.max_seconds)
            object.__setattr__(self, "max_seconds", None)
        if not self.max_ms > 0:
            raise ValueError(f"chunk.max_ms is {self.max_ms:g}, expected more than 0")
        for name, sizes in (("sizes_ms", self.sizes_ms), ("sizes", self.sizes)):
            if sizes is not None and (not self.dynamic or not min(sizes, default=0) > 0):
                raise ValueError(
                    f"chunk.{name} needs dynamic: true and sizes above 0; got {list(sizes)}"
                )
        if self.sizes_ms is not None and self.sizes is not None:
            raise ValueError("chunk.sizes counts frames: give chunk.sizes_ms alone")


@dataclass(frozen=True, kw_only=True)
class ConformerConfig(EncoderConfig):
    """Conformer (arXiv 2005.08100) with layer norm in its convolution module."""

    num_layers: int = bounded(12, least=0)
    dim: int = bounded(256, least=1)
    num_heads: int = bounded(4, least=1)
    ffn_dim: int = bounded(2048, least=1)
    kernel: int = bounded(15, least=1)  # frames of the depthwise convolution
    dropout: float = bounded(0.1, least=0, below=1)
    attention_dropout: float = bounded(0.0, least=0, below=1)  # of the attention's weights
    # probability that a training step leaves a layer out
    layer_drop: float = bounded(0.0, least=0, below=1)
    positions: Literal["rotary", "relative"] = "rotary"
    # attention beside that of each layer; with look: back it streams
    attention: Annotated[object, ATTENTIONS] | None = None
    causal: bool = False  # convolutions look back only
    # train for streaming; needs causal: true here and in every downsampler
    chunk: ChunkConfig | None = None
    downsamplers: dict[int, Annotated[object, DOWNSAMPLERS]] = field(
        default_factory=lambda: {0: Conv2dConfig()}
    )
    # an encoder of samples whose frames the stem reads instead of features; null: none
    frontend: Annotated[object, ENCODERS] | None = field(default=None, metadata=OMIT)

    def __post_init__(self) -> None:
        if 0 not in self.downsamplers:
            raise ValueError("downsamplers needs an entry 0, the stem before the first layer")
        for layer in self.downsamplers:
            if not 0 <= layer < self.num_layers:
                raise ValueError(f"downsamplers: there is no layer {layer} among {self.num_layers}")
        if self.frontend is not None and isinstance(self.downsamplers[0], Conv2dConfig):
            raise ValueError(
                "downsamplers: the stem conv2d reads mel bins, not the frames of a front end; take "
                "0: {type: linear}, which keeps every frame, or 0: {type: strided_conv, factor: 2}"
            )
        if self.chunk is not None and not self.causal:
            raise ValueError(
                "chunk needs causal: true, since a convolution that looks ahead cannot stream"
            )


@dataclass(frozen=True)
class ConformerCache(PerRow):
    """The state between two pieces."""

    chunk: int  # encoder frames
    pending: Padded  # input frames of the chunk that is not complete yet
    downsamplers: Mapping[int, object]
    memories: Mapping[int, Memory]  # of the cached keys, by the downsampler before their layers
    layers: tuple[ConformerLayerCache, ...]
    head: object = None  # cache of what follows the layers (`_finish`)


class Kept(NamedTuple):
    """The output of a layer: frames (B, S, D), padding included, positions and valid (B, S)."""

    frames: Tensor
    positions: Tensor
    valid: Tensor


@ENCODERS.register("conformer", ConformerConfig)
class Conformer(StreamingEncoder):
    """Features (B, T, F) -> frames (B, S, D), S = ceil(T / factor) for the strided downsamplers.

    With a front end, inputs are samples (B, T) or the output of the front end's `stored`.
    """

    kept: frozenset[int] = frozenset()  # layers whose outputs `_finish` receives

    def __init__(
        self, config: ConformerConfig, input_dim: int, vocab_size: int, frame_shift: float
    ) -> None:
        super().__init__()
        input_dim, frame_shift = put_in_front(
            self, config.frontend, input_dim, vocab_size, frame_shift
        )
        self.dim = config.dim
        self.layer_drop = config.layer_drop
        self.chunk = config.chunk
        self.left_chunks = config.chunk and config.chunk.left_chunks  # may be changed for decoding
        self.downsamplers = nn.ModuleDict(
            {
                str(layer): DOWNSAMPLERS.build(
                    downsampler,
                    dim_in=config.dim if layer else input_dim,
                    dim_out=config.dim,
                    vocab_size=vocab_size,
                )
                for layer, downsampler in sorted(config.downsamplers.items())
            }
        )
        self.layers = nn.ModuleList(
            self.build_layer(config, index) for index in range(config.num_layers)
        )
        for index in echo_layers(config.attention, config.num_layers) if config.attention else ():
            layer = self.layers[index]
            if not isinstance(layer.attention, SelfAttention):
                raise ValueError(
                    f"attention: Echo-MSA stands beside a self-attention, and the layers of "
                    f"{type(self).__name__} ({type(layer).__name__}) have none; remove `attention`"
                )
            layer.attention = EchoSelfAttention(
                config.attention, full=layer.attention, index=index, num_layers=config.num_layers
            )
        self.dropout = Dropout(config.dropout)
        self.frame_shift = frame_shift * self.downsamplers["0"].factor
        self.input_frames = math.prod(
            downsampler.factor for downsampler in self.downsamplers.values()
        )
        # layer of a downsampler -> step between neighbouring positions behind it; None: it varies
        self._steps, step = {}, 1
        for layer, downsampler in self.downsamplers.items():
            if int(layer):
                step = step * downsampler.factor if step and downsampler.uniform else None
            self._steps[int(layer)] = step
        self.relative = config.positions == "relative"
        # positions count on the grid after the stem; later downsamplers make a frame span several
        self._span = self.input_frames // self.downsamplers["0"].factor
        self.seconds_per_frame = self.frame_shift * self._span
        self.input_dim = input_dim
        self.obstacle = self._obstacle(config.causal)
        if self.chunk is not None and self.obstacle:
            raise ValueError(f"chunk: {self.obstacle}")
        self.longest_chunk, self.chunk_sizes = self._trained_chunks()

    def build_layer(self, config: ConformerConfig, index: int) -> ConformerLayer:
        """Layer `index`, counted from 0: a hook for encoders with another kind of layer.

        A layer is called as `ConformerLayer.forward` is, has `init_cache` and a `final_norm`, and
        computes self-attention with its module `attention`, which `config.attention` may wrap; it
        is None in a layer without any.
        """
        return ConformerLayer(
            config.dim,
            config.ffn_dim,
            self.build_attention(config),
            ConvolutionModule(config.dim, config.kernel, config.causal),
            config.dropout,
        )

    def build_attention(self, config: ConformerConfig) -> SelfAttention:
        """The self-attention of a layer, with the positions of `config`."""
        kind = _ATTENTIONS[config.positions]
        return kind(config.dim, config.num_heads, config.attention_dropout)

    def _trained_chunks(self) -> tuple[int | None, tuple[int, ...] | None]:
        """Frames of the longest chunk in training, and the list of sizes if it is restricted."""
        if self.chunk is None:
            return None, None
        sizes = self.chunk.sizes
        if self.chunk.sizes_ms is not None:
            sizes = tuple(self.frames_of(size, "chunk.sizes_ms") for size in self.chunk.sizes_ms)
        if sizes is not None:
            return max(sizes), sizes
        frame = 1000 * self.seconds_per_frame
        longest = math.floor((self.chunk.max_ms + CHUNK_TOLERANCE) / frame)
        if not longest:
            raise ValueError(
                f"chunk.max_ms is {self.chunk.max_ms:g}, shorter than a frame of this encoder, "
                f"{frame:g} ms"
            )
        return longest, None

    def _obstacle(self, causal: bool) -> str | None:
        """The reason why this encoder cannot stream; None if it can."""
        if self.frontend is not None:
            ahead = self.frontend.look_ahead
            reach = "the whole utterance" if ahead is None else f"{ahead:g} seconds ahead"
            name = type(self.frontend).__name__
            return f"the encoder cannot stream: its front end ({name}) sees {reach}"
        if not causal:
            return "the encoder cannot stream: it is not causal"
        attentions = [layer.attention for layer in self.layers]
        if any(isinstance(part, EchoSelfAttention) and not part.echo.back for part in attentions):
            return (
                "the encoder cannot stream: the windows of attention echo look ahead; look: back "
                "gives windows that do not"
            )
        for layer, downsampler in self.downsamplers.items():
            if not (isinstance(downsampler, StreamingDownsampler) and downsampler.causal):
                return (
                    f"the encoder cannot stream: its downsampler {layer} "
                    f"({type(downsampler).__name__}) looks ahead"
                )
        return None

    def forward(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        if chunk is None and self.chunk is not None and self.training:
            longest = self.longest_chunk
            # dynamic chunk training: one model for every latency (arXiv 2012.05481, section 2.2)
            chunk = random_chunk(longest, self.chunk_sizes) if self.chunk.dynamic else longest
        if chunk is not None and self.obstacle:
            raise ValueError(self.obstacle)
        return self.run_piece(through(self.frontend, inputs), chunk, None)[0]

    def init_cache(self, batch_size: int, chunk: int) -> ConformerCache:
        if self.obstacle:
            raise ValueError(self.obstacle)
        device = self.layers[0].final_norm.weight.device
        pending = torch.zeros(batch_size, 0, self.input_dim, device=device)
        return ConformerCache(
            chunk,
            Padded(pending, torch.zeros(batch_size, dtype=torch.int64, device=device)),
            {
                int(layer): downsampler.init_cache(batch_size)
                for layer, downsampler in self.downsamplers.items()
            },
            {int(layer): Memory.empty(batch_size, device) for layer in self.downsamplers},
            tuple(layer.init_cache(batch_size) for layer in self.layers),
        )

    def forward_chunk(
        self,
        inputs: Padded,
        cache: ConformerCache,
        final: Tensor,
    ) -> tuple[EncoderOutput, ConformerCache]:
        # Each row has its pending frames and the new ones. Whole chunks are computed now, and at
        # the end of a row the incomplete one too; the rest stays pending. Rows advance
        # independently, since their audio arrives at different rates.
        rows = [torch.cat(pair) for pair in zip(cache.pending.unpad(), inputs.unpad(), strict=True)]
        step = cache.chunk * self.input_frames
        usable = [
            len(row) if last else len(row) // step * step
            for row, last in zip(rows, final.tolist(), strict=True)
        ]
        ready = Padded.stack([row[:size] for row, size in zip(rows, usable, strict=True)])
        pending = Padded.stack([row[size:] for row, size in zip(rows, usable, strict=True)])
        if not any(usable):
            return self._nothing(inputs), replace(cache, pending=pending)
        return self.run_piece(ready, cache.chunk, replace(cache, pending=pending))

    def _nothing(self, inputs: Padded) -> EncoderOutput:
        """The output without frames, while no row has a complete chunk."""
        nothing = inputs.data.new_zeros(len(inputs.lengths), 0, self.dim)
        empty = Padded(nothing, torch.zeros_like(inputs.lengths))
        return EncoderOutput(frames=empty, positions=nothing[..., 0].long())

    def run_piece(
        self,
        inputs: Padded,
        chunk: int | None,
        cache: ConformerCache | None,
    ) -> tuple[EncoderOutput, ConformerCache | None]:
        """All layers over one piece (B, T, F); without a cache the piece is the whole utterance."""
        # frames are (B, T, F) before the stem and (B, S, D) after it. Each downsampler reduces S,
        # and with it positions (B, S), lengths (B,) and the scope of the layers that follow: what
        # those may see is computed once per frame rate, not once per layer.
        frames, positions, taps = inputs, None, {}
        # the parts of the next cache, and the outputs of the layers in `self.kept`
        stems, memories, layers, kept = {}, {}, [], {}
        for index, layer in enumerate(self.layers):
            if str(index) in self.downsamplers:
                downsampler = self.downsamplers[str(index)]
                if cache is None:
                    output = downsampler(frames, positions)
                else:
                    output, stems[index] = downsampler.forward_chunk(
                        frames, positions, cache.downsamplers[index]
                    )
                positions, taps = output.positions, {**taps, **output.taps}
                # residuals are summed in float32, also under autocast
                x = output.frames.data.float()
                # later downsamplers follow a layer, whose output has had dropout
                frames = Padded(x if index else self.dropout(x), output.frames.lengths)
                scope, memories[index] = self._scope(
                    frames, positions, chunk, cache and cache.memories[index], self._steps[index]
                )
            # layer drop happens in training alone, where there is no cache: `layers` is complete
            # whenever a cache is made of it
            if self.training and drops(self.layer_drop):
                x = without(layer, frames.data)
            else:
                x, layer_cache = layer(frames.data, scope, cache and cache.layers[index])
                layers.append(layer_cache)
            # The layers leave numbers in the padding. Masks hide them from valid frames, so it
            # is zeroed once, at the end.
            frames = Padded(x, frames.lengths)
            if index in self.kept:
                kept[index] = Kept(x, positions, scope.valid)
        frames = Padded(frames.data.masked_fill(~scope.valid[:, :, None], 0), frames.lengths)
        output = EncoderOutput(frames=frames, positions=positions, taps=taps)
        output, head = self._finish(output, kept, scope, cache and cache.head)
        if cache is None:
            return output, None
        return output, replace(
            cache, downsamplers=stems, memories=memories, layers=tuple(layers), head=head
        )

    def _finish(
        self,
        output: EncoderOutput,
        kept: Mapping[int, Kept],
        scope: Scope,
        cache: object,
    ) -> tuple[EncoderOutput, object]:
        """A hook for what follows the layers: returns the output and the cache of its own.

        kept: layer -> its output, for the layers `self.kept`; scope: of the last layers.
        """
        return output, cache

    def _scope(
        self,
        frames: Padded,
        positions: Tensor,
        chunk: int | None,
        memory: Memory | None,
        step: int | None,
    ) -> tuple[Scope, Memory | None]:
        """What the layers after a downsampler see: the frames of this piece and the cached keys.

        frames (B, S, D), positions (B, S) -> the scope, and the memory for the next piece.
        step: between neighbouring positions; None: it varies.
        """
        new = NewFrames(positions, frames.mask)
        keys = new if memory is None else memory.append(new)
        # positions count on the grid after the stem, `chunk` counts frames after all downsamplers
        structure, keep = None, None
        if chunk is not None:
            structure = chunk_mask(positions, keys.positions, chunk * self._span, self.left_chunks)
            keep = None if memory is None else keys.keep(chunk * self._span, self.left_chunks)
        # Only distances between positions matter, so they are counted from the first frame of this
        # piece: float32 angles of the positions after hours of audio would lose precision.
        near = keys.positions - positions[:, :1]
        attentions = (layer.attention for layer in self.layers if layer.attention is not None)
        num_frequencies = next((one.num_frequencies for one in attentions), 1)
        visible, angles = attention_mask(keys.valid, structure), rotations(near, num_frequencies)
        if self.relative and step is not None:
            sizes = positions.shape[1], keys.positions.shape[1]
            table = distances(*sizes, step, num_frequencies, positions.device)
            new = replace(new, distances=table)
        scope = Scope(new.valid, visible, angles, packed_rows(new.valid), keep, new)
        return scope, None if memory is None else keys.gather(keep)
