"""A streaming Conformer in the form of WeNet's: what sherpa-onnx's online recogniser runs.

    x (1, T, F), offset (1,), required_cache_size (1,), attn_cache (L, H, K, 2 D / H),
    conv_cache (L, 1, D, columns), attn_mask (1, 1, K + C)
    -> log_probs (1, C, V), next attn_cache, next conv_cache

for C frames in a chunk and K = C left_chunks cached keys. WeNet's stem reads `right_context` frames
of the next chunk; a causal stem remembers the past instead. What its convolutions and those of the
layers remember lies in a row in conv_cache, with as many columns as that takes: the metadata
`cnn_module_kernel` is their number plus 1, which the runtime only uses to make the first, empty
cache. Offsets are not needed, since only distances between positions count.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from asrtool.encoders.conformer import ConformerCache
from asrtool.errors import UserError
from asrtool.export.cached import (
    CachedGraph,
    FixedMemory,
    compare,
    rebuilt,
    tensors,
)
from asrtool.export.graph import Ports, session, write
from asrtool.nn.attention import KeyValue
from asrtool.recognizer import Recognizer

INPUTS = ("x", "offset", "required_cache_size", "attn_cache", "conv_cache", "attn_mask")
OUTPUTS = ("log_probs", "next_attn_cache", "next_conv_cache")


class WenetGraph(nn.Module):
    """`CachedGraph` with its caches in two tensors.

    lower, least: subtracted from the features, and the least that is left: where the runtime
    computes them from samples of another scale.
    """

    def __init__(self, cached: CachedGraph, lower: float = 0.0, least: float = -math.inf) -> None:
        super().__init__()
        check(cached)
        self.cached, self.lower, self.least = cached, lower, least
        self.layers, self.dim = len(cached.encoder.layers), cached.encoder.dim
        self.keys = cached.left_chunks * cached.chunk
        self.sizes = [part.numel() for part in self._history(cached.template)]
        # columns of conv_cache that hold the histories, all in a row
        self.columns = -(-sum(self.sizes) // (self.layers * self.dim))

    def _history(self, cache: ConformerCache) -> list[Tensor]:
        """What convolutions remember, those of the stem and those of the layers."""
        return [part for _, part in tensors(_bare(cache)) if part.is_floating_point()]

    def metadata(self) -> dict[str, str]:
        """What sherpa-onnx reads, and the chunks that it has to be told."""
        encoder, factor = self.cached.encoder, self.cached.encoder.input_frames
        facts = {
            "model_type": "wenet_ctc",
            "head": encoder.layers[0].attention.num_heads,
            "num_blocks": self.layers,
            "output_size": self.dim,
            "cnn_module_kernel": self.columns + 1,
            "right_context": factor - 1,
            "subsampling_factor": factor,
            "vocab_size": self.cached.model.vocab_size,
            "chunk_size": self.cached.chunk,
            "left_chunks": self.cached.left_chunks,
        }
        return {key: str(value) for key, value in facts.items()}

    def first(self) -> tuple[Tensor, Tensor]:
        """The caches before the first chunk."""
        heads = self.cached.encoder.layers[0].attention.num_heads
        attention = torch.zeros(self.layers, heads, self.keys, 2 * self.dim // heads)
        return attention, torch.zeros(self.layers, 1, self.dim, self.columns)

    def forward(
        self,
        x: Tensor,
        offset: Tensor,
        required_cache_size: Tensor,
        attn_cache: Tensor,
        conv_cache: Tensor,
        attn_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cached = self.cached
        if self.lower:
            x = (x - self.lower).clamp(min=self.least)
        cache = self._unpack(attn_cache, conv_cache, attn_mask)
        log_probs, cache = cached.step((x - cached.mean) / cached.std, cache)
        return log_probs, *self._pack(cache)

    def _unpack(self, attention: Tensor, convolution: Tensor, mask: Tensor) -> ConformerCache:
        # counted from the first frame of this chunk
        positions = torch.arange(-self.keys, 0)[None]
        memory = FixedMemory(positions, mask[:, 0, : self.keys], self.keys)
        template, pieces = self.cached.template, convolution.flatten()[: sum(self.sizes)]
        pieces = iter(pieces.split(self.sizes))
        bare = _bare(template)
        values = [
            next(pieces).view_as(part) if part.is_floating_point() else part
            for _, part in tensors(bare)
        ]
        bare = rebuilt(bare, iter(values))
        layers = tuple(
            replace(layer, attention=KeyValue(*seen[None].chunk(2, dim=-1)))
            for layer, seen in zip(bare.layers, attention, strict=True)
        )
        return replace(bare, memories={0: memory}, layers=layers, head=template.head)

    def _pack(self, cache: ConformerCache) -> tuple[Tensor, Tensor]:
        attention = torch.cat(
            [torch.cat([one.attention.key, one.attention.value], -1) for one in cache.layers]
        )
        room = (self.layers, 1, self.dim, self.columns)
        history = torch.cat([part.flatten() for part in self._history(cache)])
        return attention, pad(history, (0, math.prod(room) - sum(self.sizes))).view(room)


def _bare(cache: ConformerCache) -> ConformerCache:
    """Without what attention remembers, and what follows the layers."""
    layers = tuple(replace(layer, attention=None) for layer in cache.layers)
    return replace(cache, memories={}, layers=layers, head=None)


def check(cached: CachedGraph) -> None:
    """Raise `UserError` where an encoder has more to remember than WeNet's caches hold."""
    encoder, instead = cached.encoder, "give --caches zipformer"
    if list(encoder.downsamplers) != ["0"]:
        place = max(encoder.downsamplers, key=int)
        raise UserError(
            f"WeNet's caches have one size in all layers, but downsampler {place} "
            f"({type(encoder.downsamplers[place]).__name__}) changes the number of frames between "
            f"layers; {instead}"
        )
    source = getattr(cached.model.heads[cached.head], "source", None)
    if cached.template.head is not None and source != encoder.ctc_tap:
        raise UserError(
            f"WeNet's caches have no room for that of the layer fusion "
            f"({type(encoder).__name__}), which the head '{cached.head}' reads; {instead}"
        )


def export(recognizer: Recognizer, graph: WenetGraph, file: Path) -> float:
    """Write `file`; gives the largest difference from PyTorch."""
    cached = graph.cached
    bins = recognizer.config.data.fbank.num_mel_bins
    attention, convolution = graph.first()
    example = (
        torch.randn(1, cached.input_frames, bins, generator=torch.Generator().manual_seed(0)),
        torch.tensor([graph.keys]),
        torch.tensor([graph.keys]),
        attention,
        convolution,
        torch.ones(1, 1, graph.keys + cached.chunk, dtype=torch.bool),
    )
    nothing: tuple = ()
    ports = Ports(
        inputs=dict.fromkeys(INPUTS, nothing),
        outputs=dict.fromkeys(OUTPUTS, nothing),
        metadata=graph.metadata(),
    )
    write(graph, example, ports, file)
    return compare(recognizer, cached, Online(graph, file))


class Online:
    """The graph in onnxruntime, called as sherpa-onnx calls it: features (1, T, F) of the next
    chunk -> log-probabilities (1, C, V).
    """

    def __init__(self, graph: WenetGraph, file: Path) -> None:
        self.graph, self.running = graph, session(file)
        self.caches = [part.numpy() for part in graph.first()]
        self.offset = graph.keys

    def __call__(self, features: Tensor) -> Tensor:
        graph, chunk = self.graph, self.graph.cached.chunk
        heard = min(self.offset - graph.keys, graph.keys)  # keys that the caches hold
        mask = torch.arange(graph.keys + chunk) >= graph.keys - heard
        # the graph takes features as sherpa-onnx computes them
        values = (
            (features + graph.lower).numpy(),
            torch.tensor([self.offset]).numpy(),
            torch.tensor([graph.keys]).numpy(),
            *self.caches,
            mask[None, None].numpy(),
        )
        log_probs, *self.caches = self.running.run(None, dict(zip(INPUTS, values, strict=True)))
        self.offset += log_probs.shape[1]
        return torch.from_numpy(log_probs)
