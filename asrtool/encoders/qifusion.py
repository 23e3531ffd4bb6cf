"""Qifusion-Net (arXiv 2407.03026): a streaming Conformer with an accent embedding.

    U_l = softmax(w)_l E_l                     outputs of the Conformer layers l in `layers`
    G   = relu(norm(conv5x5(stack_l U_l)))     layer-adapted fusion: the accent embedding
    q   = softmax(conv3(G))                    accent of each frame
    Z   = norm(E + attention(G, E, E))         fusion: query G, key and value E
    M   = norm(Z + ffn(Z))

If a layer in `layers` has more frames than the last of them (it lies below a downsampler), the
frames at the last one's positions are taken. So are those of G if the fusion has fewer frames than
G: accents may be classified on all frames, and fused on key frames only.

q is (B, S, A), all others are (B, S, D). E is the output of the last layer and the tap `acoustic`,
which CTC reads; M are the frames, which the attention decoder reads. The other taps are `accent`
(logits of q) and `accent_embedding` (G). The 5x5 convolution sees L layers as channels, S frames
and D channels as its plane.

From the paper and the authors' release: the equations, 5x5, 3, CTC on E and decoder on M,
post-norm, 4 frames of context. Where they say nothing, or contradict the equations, we choose:
* convolutions look back only (the release pads on the right: 6 frames of look-ahead), the norm is a
  layer norm of each frame (release: an instance norm over the whole utterance, padding included),
  and the fusion uses the encoder's chunk mask (release: a random one of its own, also at
  inference); streaming needs each of these;
* no ReLU before the softmax of q: it hides negative logits;
* the weights w are applied (the release computes them, but never uses them);
* value and residual of the attention are E, because the words must reach the decoder; it has no
  positions. `compat` follows the release in all of these but the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad, relu

from asrtool.downsamplers import DOWNSAMPLERS, Conv2dConfig
from asrtool.encoders.base import ENCODERS
from asrtool.encoders.conformer import Conformer, ConformerCache, ConformerConfig, Kept
from asrtool.nn.attention import Attention, KeyValue, attention
from asrtool.nn.conformer import Scope
from asrtool.nn.convolution import continue_from
from asrtool.nn.dropout import Dropout
from asrtool.nn.masks import attention_mask, chunk_mask, random_chunk
from asrtool.nn.rows import PerRow
from asrtool.registry import bounded
from asrtool.types import EncoderOutput, Padded

HEAD_KERNEL = 3  # frames that the accent head sees
LONGEST = 25  # frames of the longest random chunk of the release
NO_POSITION = torch.iinfo(torch.int64).max  # larger than every position


@dataclass(frozen=True, kw_only=True)
class AccentConfig:
    """The accent embedding: its layers, and how it is used."""

    classes: int = 9  # accents that the head classifies; 0: no head, for training without labels
    # counted from 0: the paper's "6th to 12th" are [5, ..., 11]; null: the upper half, after the
    # last downsampler
    layers: tuple[int, ...] | None = None
    kernel: int = bounded(5, least=1)  # of the convolution over frames and channels; 1: pointwise
    fusion: Literal["attention", "add", "none"] = "attention"  # add: M = norm(E + G); none: M = E
    query: Literal["accent", "acoustic"] = "accent"  # acoustic: query E, key and value G
    # of the fusion; null: as in the layers; the release has 4
    num_heads: int | None = bounded(None, least=1)
    compat: bool = False  # compute as the authors' release, which cannot stream

    def __post_init__(self) -> None:
        if self.classes < 0 or self.classes == 1:
            raise ValueError(
                f"accent.classes is {self.classes}: give 2 or more, or 0 for no accent head"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"accent.kernel is {self.kernel}, expected an odd number")
        if self.layers is not None and (
            not self.layers or len(set(self.layers)) < len(self.layers)
        ):
            raise ValueError(
                f"accent.layers needs at least one layer, each once; got {list(self.layers)}"
            )


@dataclass(frozen=True, kw_only=True)
class QifusionConfig(ConformerConfig):
    """Qifusion-Net (arXiv 2407.03026): a causal Conformer with an accent embedding."""

    causal: bool = True  # convolutions of the Conformer layers look back only
    downsamplers: dict[int, Annotated[object, DOWNSAMPLERS]] = field(
        default_factory=lambda: {0: Conv2dConfig(causal=True)}
    )
    accent: AccentConfig = field(default_factory=AccentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        heads, layers = self.accent.num_heads, self.accent.layers or ()
        if wrong := [layer for layer in layers if not 0 <= layer < self.num_layers]:
            raise ValueError(
                f"accent.layers: there is no layer {wrong[0]}, layers count from 0 to "
                f"{self.num_layers - 1}"
            )
        if heads is not None and (heads < 1 or self.dim % heads):
            raise ValueError(f"accent.num_heads is {heads}, expected a divisor of dim, {self.dim}")

    @property
    def fused_layers(self) -> tuple[int, ...]:
        """The layers of the accent embedding, in order."""
        upper = range(max(self.num_layers // 2, *self.downsamplers), self.num_layers)
        return tuple(sorted(self.accent.layers)) if self.accent.layers is not None else tuple(upper)


@dataclass(frozen=True)
class QifusionCache(PerRow):
    """Left contexts of the layer fusion (B, kernel - 1, D, L) and of the accent head (B, 2, D).

    seen: keys and values of the fusion.
    """

    layers: Tensor
    head: Tensor
    seen: KeyValue


def picked(source: Kept, wanted: Kept) -> Tensor:
    """The frames (B, S, D) of `source` at the positions of `wanted`, which are among its own."""
    if source.positions is wanted.positions:
        return source.frames
    # searchsorted needs ascending positions. Those of the padding may be anything, so they are
    # moved past all others, where no search finds them.
    at = source.positions.masked_fill(~source.valid, NO_POSITION).contiguous()
    index = torch.searchsorted(at, wanted.positions.contiguous()).clamp(max=at.shape[1] - 1)
    return source.frames.gather(1, index[:, :, None].expand(-1, -1, source.frames.shape[2]))


class LayerFusion(nn.Module):
    """G = relu(norm(conv(softmax(w)_l E_l))): (B, S, D, L) of L layers -> (B, S, D)."""

    def __init__(self, dim: int, num_layers: int, kernel: int, compat: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.compat = compat
        self.weights = None if compat else nn.Parameter(torch.zeros(num_layers))
        self.convolution = nn.Conv2d(num_layers, 1, kernel)
        self.norm = None if compat else nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, lengths: Tensor, cache: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, S, D, L) with zeros beyond the lengths (B,), cache (B, kernel - 1, D, L)."""
        # Context over frames lies to the left, because this has to stream (compat: to the right).
        # Over channels it lies on both sides (compat: to the right).
        around = self.kernel - 1
        if cache is not None:
            x, cache = continue_from(x, cache.to(x.dtype), lengths)
        else:
            x = pad(x, (0, 0, 0, 0, *((0, around) if self.compat else (around, 0))))
        sides = (0, around) if self.compat else (around // 2, around // 2)
        if self.weights is not None:
            x = x * self.weights.softmax(0)
        # (B, S, D, L) -> (B, L, S, D): layers are the channels of a plane of frames and channels
        y = self.convolution(pad(x.permute(0, 3, 1, 2), sides))[:, 0]  # (B, S, D)
        if self.norm is None:  # statistics over frames and channels, padding included
            return relu(layer_norm(y, y.shape[1:])), cache
        return relu(self.norm(y)), cache


class AccentHead(nn.Module):
    """Accent embedding (B, S, D) -> logits (B, S, A)."""

    def __init__(self, dim: int, classes: int, compat: bool) -> None:
        super().__init__()
        self.compat = compat
        self.convolution = nn.Conv1d(dim, classes, HEAD_KERNEL)

    def forward(
        self, x: Tensor, lengths: Tensor, cache: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, S, D) with zeros beyond the lengths (B,), cache (B, 2, D)."""
        if cache is not None:
            x, cache = continue_from(x, cache.to(x.dtype), lengths)
        else:
            x = pad(x, (0, 0, *((0, HEAD_KERNEL - 1) if self.compat else (HEAD_KERNEL - 1, 0))))
        logits = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return relu(logits) if self.compat else logits, cache


class AccentFusion(nn.Module):
    """A post-norm Transformer layer: attention between accent embedding G and frames E."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, query: str) -> None:
        super().__init__()
        self.query = query
        self.attention = Attention(dim, num_heads)
        self.attention_norm = nn.LayerNorm(dim)
        self.up_proj = nn.Linear(dim, ffn_dim)
        self.down_proj = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        acoustic: Tensor,
        accent: Tensor,
        visible: Tensor,
        past: KeyValue | None,
    ) -> tuple[Tensor, KeyValue]:
        """E, G (B, S, D), visible (B, 1, S or 1, K) -> M (B, S, D), all K keys and values."""
        query, memory = (accent, acoustic) if self.query == "accent" else (acoustic, accent)
        seen = self.attention.project(memory)
        seen = seen if past is None else past.append(seen)
        heads = attention(
            self.attention.split(self.attention.q_proj(query)), seen.key, seen.value, visible
        )
        x = self.attention_norm(acoustic + self.dropout(self.attention.merge(heads)))
        y = self.down_proj(self.dropout(relu(self.up_proj(x))))
        return self.ffn_norm(x + self.dropout(y)), seen


@ENCODERS.register("qifusion", QifusionConfig)
class Qifusion(Conformer):
    """Features (B, T, F) -> frames M (B, S, D).

    Taps: `acoustic` and `accent_embedding` (B, S, D), `accent` (B, S, A).
    """

    ctc_tap = "acoustic"

    def __init__(
        self, config: QifusionConfig, input_dim: int, vocab_size: int, frame_shift: float
    ) -> None:
        super().__init__(config, input_dim, vocab_size, frame_shift)
        accent, dim = config.accent, config.dim
        self.kept = frozenset(config.fused_layers)
        self.compat = accent.compat
        self.layer_fusion = LayerFusion(dim, len(self.kept), accent.kernel, accent.compat)
        self.accent_head = (
            AccentHead(dim, accent.classes, accent.compat) if accent.classes else None
        )
        self.accent_fusion, self.sum_norm = None, None
        if accent.fusion == "attention":
            self.accent_fusion = AccentFusion(
                dim,
                accent.num_heads or config.num_heads,
                config.ffn_dim,
                config.dropout,
                accent.query,
            )
        elif accent.fusion == "add":
            self.sum_norm = nn.LayerNorm(dim)

    def init_cache(self, batch_size: int, chunk: int) -> ConformerCache:
        if self.compat:
            raise ValueError(
                "the encoder cannot stream: accent.compat looks ahead, as the authors' release does"
            )
        fusion, zeros = self.layer_fusion.convolution, self.layers[0].final_norm.weight.new_zeros
        layers = zeros(batch_size, self.layer_fusion.kernel - 1, self.dim, fusion.in_channels)
        frames = zeros(batch_size, HEAD_KERNEL - 1, self.dim)
        fused = self.accent_fusion or self.layers[0]
        none = fused.attention.split(frames[:, :0])
        head = QifusionCache(layers, frames, KeyValue(none, none))
        return replace(super().init_cache(batch_size, chunk), head=head)

    def _nothing(self, inputs: Padded) -> EncoderOutput:
        output = super()._nothing(inputs)
        taps = {"acoustic": output.frames, "accent_embedding": output.frames}
        if self.accent_head is not None:
            empty = inputs.data.new_zeros(
                len(inputs.lengths), 0, self.accent_head.convolution.out_channels
            )
            taps["accent"] = Padded(empty, output.frames.lengths)
        return replace(output, taps=taps)

    def _finish(
        self,
        output: EncoderOutput,
        kept: Mapping[int, Kept],
        scope: Scope,
        cache: QifusionCache | None,
    ) -> tuple[EncoderOutput, QifusionCache | None]:
        acoustic, lengths = output.frames
        heard = kept[max(kept)]  # the accent is classified at the frames of the last layer
        stacked = torch.stack([picked(kept[layer], heard) for layer in sorted(kept)], dim=-1)
        # the padding is zeroed after every step, because the convolutions read into it
        beyond, count = ~heard.valid[:, :, None], heard.valid.sum(dim=1)
        stacked = stacked.masked_fill(beyond[..., None], 0)
        embedding, layers = self.layer_fusion(stacked, count, cache and cache.layers)
        embedding = embedding.masked_fill(beyond, 0)
        taps = {
            **output.taps,
            "acoustic": output.frames,
            "accent_embedding": Padded(embedding, count),
        }
        head, seen = cache and cache.head, cache and cache.seen
        if self.accent_head is not None:
            logits, head = self.accent_head(embedding, count, head)
            taps["accent"] = Padded(logits.masked_fill(beyond, 0), count)
        outside = ~scope.valid[:, :, None]
        # the fusion may have fewer frames than the embedding, if a downsampler lies between them
        last = Kept(acoustic, output.positions, scope.valid)
        accent = picked(heard._replace(frames=embedding), last).masked_fill(outside, 0)
        frames = acoustic
        if self.accent_fusion is not None:
            visible = self._released_mask(output, scope.valid) if self.compat else scope.visible
            frames, seen = self.accent_fusion(acoustic, accent, visible, seen)
            seen = seen if cache is None else seen.gather(scope.keep)
        elif self.sum_norm is not None:
            frames = self.sum_norm(acoustic + accent)
        frames = Padded(frames.masked_fill(outside, 0), lengths)
        output = replace(output, frames=frames, taps=taps)
        return output, None if cache is None else QifusionCache(layers, head, seen)

    def _released_mask(self, output: EncoderOutput, valid: Tensor) -> Tensor:
        """(B, 1, S or 1, S): the mask of a random chunk drawn for the fusion, as in the release."""
        chunk = random_chunk(LONGEST)
        at = output.positions
        return attention_mask(
            valid, None if chunk is None else chunk_mask(at, at, chunk * self._span)
        )
