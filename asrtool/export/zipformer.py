"""A streaming encoder in the form of icefall's Zipformer with a CTC head: what sherpa-onnx runs on
phones, under node and in a server, several streams at once.

    x (B, T, F), cached_key_0 (1, B, N), cached_nonlin_attn_0 (1, B, 1, 3), cached_val1_0 (1, B, 1),
    cached_val2_0 (1, B, 1), cached_conv1_0 (B, 4, 1), cached_conv2_0 (B, 4, 1),
    embed_states (B, 128, 3, 19), processed_lens (B,)
    -> log_probs (B, S, V), and the same names with `new_` in front

A streaming transducer has the same caches, and encoder_out (B, S, J) in place of log_probs.

The runtime makes the first caches from the metadata and gives back what it got. So the graph says
that it has one layer whose attention keeps one key of N numbers, which are all that the encoder
remembers, side by side. The other caches are as small as they can be, and pass through; the last
one counts the chunks that were heard.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from asrtool.encoders.conformer import ConformerCache
from asrtool.export.cached import CachedGraph, FixedMemory, compare, rebuilt, tensors
from asrtool.export.graph import Ports, session, write
from asrtool.export.whole import output_of
from asrtool.recognizer import Recognizer

ROWS = "utterances"
KEY, EMBED, COUNT = "cached_key_0", "embed_states", "processed_lens"
# of what the runtime wants to keep beside: names, and shapes with a batch of 1
OTHERS = MappingProxyType(
    {
        "cached_nonlin_attn_0": (1, 1, 1, 3),
        "cached_val1_0": (1, 1, 1),
        "cached_val2_0": (1, 1, 1),
        "cached_conv1_0": (1, 4, 1),
        "cached_conv2_0": (1, 4, 1),
        EMBED: (1, 128, 3, 19),
    }
)
BATCH_FIRST = ("cached_conv1_0", "cached_conv2_0", EMBED)
# from which it makes those shapes, beside the length of the key
SIZES = MappingProxyType(
    {
        "encoder_dims": 4,
        "value_head_dims": 1,
        "num_heads": 1,
        "num_encoder_layers": 1,
        "cnn_module_kernels": 2,
        "left_context_len": 1,
    }
)


class ZipformerGraph(nn.Module):
    """`CachedGraph` for any number of rows, with its caches in one tensor and a count."""

    def __init__(self, cached: CachedGraph) -> None:
        super().__init__()
        self.cached = cached
        self.output = output_of(cached.model, cached.head)
        # name -> numbers
        self.parts = {
            name: part.numel()
            for name, part in tensors(cached.template)
            if part.is_floating_point()
        }
        self.spans, span = {}, 1  # positions between the frames of a memory
        for place, downsampler in cached.encoder.downsamplers.items():
            span *= downsampler.factor if int(place) else 1
            self.spans[int(place)] = span

    def metadata(self) -> dict[str, str]:
        """What sherpa-onnx reads."""
        frames = self.cached.input_frames
        facts = {
            "model_type": "zipformer2",
            "T": frames,  # that it gives to a chunk
            "decode_chunk_len": frames,  # from one chunk to the next
            "query_head_dims": sum(self.parts.values()),
            **SIZES,
        }
        return {key: str(value) for key, value in facts.items()}

    def first(self, rows: int = 1) -> tuple[Tensor, ...]:
        """The caches before the first chunk."""
        others = (
            torch.zeros(rows, *shape[1:])
            if name in BATCH_FIRST
            else torch.zeros(shape[0], rows, *shape[2:])
            for name, shape in OTHERS.items()
        )
        key = torch.zeros(1, rows, sum(self.parts.values()))
        return key, *others, torch.zeros(rows, dtype=torch.int64)

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        nonlin_attn: Tensor,
        val1: Tensor,
        val2: Tensor,
        conv1: Tensor,
        conv2: Tensor,
        embed: Tensor,
        heard: Tensor,
    ) -> tuple[Tensor, ...]:
        cached, passing = self.cached, (nonlin_attn, val1, val2, conv1, conv2, embed)
        log_probs, cache = cached.step((x - cached.mean) / cached.std, self._unpack(key[0], heard))
        # a copy: an output that is an input would lose its name
        return log_probs, self._pack(cache)[None], *(part + 0 for part in passing), heard + 1

    def _unpack(self, packed: Tensor, heard: Tensor) -> ConformerCache:
        """packed (B, N), heard (B,): chunks."""
        rows, template = heard.shape[0], self.cached.template
        pieces = packed.split(list(self.parts.values()), dim=1)
        parts = dict(zip(self.parts, pieces, strict=True))
        values = [
            parts.get(name, part).reshape(-1, *part.shape[1:]).expand(rows, *part.shape[1:])
            for name, part in tensors(template)
        ]
        memories = {}
        for place, memory in template.memories.items():
            step = memory.size // self.cached.left_chunks
            held = (heard.clamp(max=self.cached.left_chunks) * step)[:, None]
            # counted from the first frame of this chunk
            positions = torch.arange(-memory.size, 0) * self.spans[place]
            valid = torch.arange(memory.size) >= memory.size - held
            memories[place] = FixedMemory(positions.expand(rows, -1), valid, memory.size)
        return replace(rebuilt(template, iter(values)), memories=memories)

    def _pack(self, cache: ConformerCache) -> Tensor:
        """(B, N)."""
        found = dict(tensors(cache))
        return torch.cat([found[name].flatten(1) for name in self.parts], 1)


def ports(graph: ZipformerGraph) -> Ports:
    """Names in the order in which sherpa-onnx passes them."""
    caches: dict[str, tuple[str | None, ...]] = {KEY: (None, ROWS, None)}
    for name, shape in OTHERS.items():
        batch = 0 if name in BATCH_FIRST else 1
        caches[name] = tuple(ROWS if axis == batch else None for axis in range(len(shape)))
    # some runtimes take it for 19 with any features, others reckon it
    caches[EMBED] = (ROWS, None, None, "bins")
    caches[COUNT] = (ROWS,)
    new = {f"new_{name}": axes for name, axes in caches.items()}
    return Ports(
        inputs={"x": (ROWS, None, None), **caches},
        outputs={graph.output: (ROWS, None, None), **new},
        metadata=graph.metadata(),
    )


def export(recognizer: Recognizer, graph: ZipformerGraph, file: Path) -> float:
    """Write `file`; gives the largest difference from PyTorch."""
    bins = recognizer.config.data.fbank.num_mel_bins
    example = torch.zeros(2, graph.cached.input_frames, bins)
    write(graph, (example, *graph.first(2)), ports(graph), file)
    return compare(recognizer, graph.cached, Online(graph, file))


class Online:
    """The graph in onnxruntime, called as sherpa-onnx calls it: features (B, T, F) of the next
    chunk -> log-probabilities (B, S, V).
    """

    def __init__(self, graph: ZipformerGraph, file: Path) -> None:
        self.running, self.names = session(file), list(ports(graph).inputs)
        self.caches = [part.numpy() for part in graph.first()]

    def __call__(self, features: Tensor) -> Tensor:
        values = dict(zip(self.names, (features.numpy(), *self.caches), strict=True))
        log_probs, *self.caches = self.running.run(None, values)
        return torch.from_numpy(log_probs)
