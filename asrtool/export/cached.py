"""A streaming encoder as a graph: one chunk in, its log-probabilities and the next caches out.

The caches have fixed sizes: `left_chunks` chunks of keys, of which a mask hides those that were not
heard yet. All of them are zeros before the first chunk. Only whole chunks go in: silence completes
the last one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asrtool.downsamplers import Conv2d, Linear, StridedConv
from asrtool.encoders import Conformer
from asrtool.encoders.conformer import ConformerCache
from asrtool.encoders.echo import EchoAttention
from asrtool.errors import UserError
from asrtool.export.graph import Ports, session, write
from asrtool.export.whole import checked, inputs, scores
from asrtool.nn.attention import KeyValue
from asrtool.nn.conformer import Memory
from asrtool.recognizer import Recognizer
from asrtool.types import Padded

STEMS = (Conv2d, Linear, StridedConv)  # downsamplers whose frames do not depend on the data
NEXT = "next_"  # in front of the name of a cache that comes out
CHUNKS = 3  # that are compared beyond those that fill the caches


@dataclass(frozen=True)
class FixedMemory(Memory):
    """A memory that always holds `size` keys: the last ones."""

    size: int = 0

    def append(self, new: Memory) -> FixedMemory:
        joined = super().append(new)
        return FixedMemory(joined.positions, joined.valid, self.size)

    def keep(self, chunk: int, left_chunks: int | None, most: int | None = None) -> slice:
        total = self.valid.shape[1]
        return slice(total - self.size, total)

    def gather(self, index: Tensor | slice) -> FixedMemory:
        kept = super().gather(index)
        return FixedMemory(kept.positions, kept.valid, self.size)


class CachedGraph(nn.Module):
    """Features (1, T, F) of one chunk, caches -> log-probabilities (1, S, V), next caches."""

    def __init__(self, recognizer: Recognizer, head: str) -> None:
        super().__init__()
        self.model, self.head = recognizer.model, head
        self.encoder = check_encoder(recognizer)
        self.chunk, self.left_chunks = recognizer.chunk, self.encoder.left_chunks
        self.input_frames = self.chunk * self.encoder.input_frames
        cmvn = recognizer.cmvn
        self.register_buffer("mean", torch.from_numpy(cmvn.mean))
        self.register_buffer("std", torch.from_numpy(cmvn.std))
        self.template = fixed(self.encoder, self.chunk)

    @property
    def state(self) -> dict[str, Tensor]:
        """Name -> cache before the first chunk: zeros."""
        return dict(tensors(self.template))

    def forward(self, inputs: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        cache = rebuilt(self.template, iter(state))
        log_probs, cache = self.step((inputs - self.mean) / self.std, cache)
        return log_probs, *(tensor for _, tensor in tensors(cache))

    def step(self, inputs: Tensor, cache: ConformerCache) -> tuple[Tensor, ConformerCache]:
        """Normalised features (B, T, F) of one chunk -> (B, S, V), the cache of the next one."""
        lengths = torch.full((inputs.shape[0],), self.input_frames)
        output, cache = self.encoder.run_piece(Padded(inputs, lengths), self.chunk, cache)
        return scores(self.model, self.head, output).data, cache


def check_encoder(recognizer: Recognizer) -> Conformer:
    """The encoder. Raises `UserError` where its caches cannot be written with fixed sizes."""
    encoder = recognizer.model.encoder
    if not isinstance(encoder, Conformer):
        raise UserError(
            f"the encoder {type(encoder).__name__} has caches that cannot be exported; a "
            "Conformer, an E-Branchformer or a Qifusion-Net can, or leave out --streaming"
        )
    for place, downsampler in encoder.downsamplers.items():
        if not isinstance(downsampler, STEMS):
            raise UserError(
                f"the number of frames behind downsampler {place} "
                f"({type(downsampler).__name__}) depends on what is said, which a graph of chunks "
                "cannot have; leave out --streaming"
            )
    if any(isinstance(layer.attention, EchoAttention) for layer in encoder.layers):
        raise UserError(
            "attention: {type: echo} has caches that cannot be exported; leave out --streaming"
        )
    if not encoder.left_chunks or encoder.left_chunks < 1:
        raise UserError(
            "an exported model has caches of a fixed size: give --left-chunks, the number of "
            "earlier chunks that a frame attends to, as in --left-chunks 4"
        )
    return encoder


def fixed(encoder: Conformer, chunk: int) -> ConformerCache:
    """The cache before the first chunk, with room for all keys that are ever kept."""
    cache = encoder.init_cache(1, chunk)
    step, sizes, size = chunk * encoder.input_frames, [], 0
    memories = {}
    for index in range(len(encoder.layers)):
        if str(index) in encoder.downsamplers:
            step //= encoder.downsamplers[str(index)].factor
            size = encoder.left_chunks * step
            nothing = torch.zeros(1, size, dtype=torch.int64)
            memories[index] = FixedMemory(nothing, nothing.bool(), size)
        sizes.append(size)
    layers = tuple(
        dataclasses.replace(layer, attention=_room(layer.attention, room))
        for layer, room in zip(cache.layers, sizes, strict=True)
    )
    head = cache.head
    if head is not None:
        head = dataclasses.replace(head, seen=_room(head.seen, size))
    return dataclasses.replace(cache, memories=memories, layers=layers, head=head)


def _room(empty: KeyValue, size: int) -> KeyValue:
    """Zeros for `size` keys."""
    return KeyValue(
        *(part.new_zeros(*part.shape[:2], size, part.shape[3]) for part in (empty.key, empty.value))
    )


# -- caches as tensors with names ---------------------------------------------

_PASSING = ("pending",)  # fields of a cache that hold nothing where only whole chunks go in


def tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a cache in a fixed order, named by where they are."""
    if isinstance(state, Tensor):
        yield name, state
    for key, part in _parts(state):
        yield from tensors(part, f"{name}_{key}".lstrip("_"))


def rebuilt(state: Any, values: Iterator[Tensor]) -> Any:
    """The same cache with these tensors in place of its own."""
    if isinstance(state, Tensor):
        return next(values)
    parts = [rebuilt(part, values) for _, part in _parts(state)]
    if isinstance(state, Mapping):
        return dict(zip(state, parts, strict=True))
    if isinstance(state, tuple):
        return tuple(parts)
    if dataclasses.is_dataclass(state):
        names = [key for key, _ in _parts(state)]
        return dataclasses.replace(state, **dict(zip(names, parts, strict=True)))
    return state


def _parts(state: Any) -> list[tuple[str, Any]]:
    if isinstance(state, Mapping):
        return [(str(key), part) for key, part in state.items()]
    if isinstance(state, tuple):
        return [(str(index), part) for index, part in enumerate(state)]
    if dataclasses.is_dataclass(state):
        return [
            (field.name, getattr(state, field.name))
            for field in dataclasses.fields(state)
            if field.name not in _PASSING
        ]
    return []


# -- files ---------------------------------------------------------------------


def export(recognizer: Recognizer, graph: CachedGraph, file: Path) -> float:
    """Write `file`; gives the largest difference from PyTorch."""
    state = graph.state
    ports = Ports(
        inputs={"inputs": (), **{name: () for name in state}},
        outputs={"log_probs": (), **{NEXT + name: () for name in state}},
    )
    chunk, _ = inputs(recognizer, 1, graph.input_frames, seed=0, samples=False)
    write(graph, (chunk, *state.values()), ports, file)
    return compare(recognizer, graph, Chunks(graph, file))


class Chunks:
    """The graph in onnxruntime: features (1, T, F) of the next chunk -> log-probabilities
    (1, S, V).
    """

    def __init__(self, graph: CachedGraph, file: Path) -> None:
        self.running = session(file)
        self.caches = {name: tensor.numpy() for name, tensor in graph.state.items()}

    def __call__(self, features: Tensor) -> Tensor:
        values = {"inputs": features.numpy(), **self.caches}
        log_probs, *following = self.running.run(None, values)
        self.caches = dict(zip(self.caches, following, strict=True))
        return torch.from_numpy(log_probs)


def compare(recognizer: Recognizer, graph: CachedGraph, step: Callable[[Tensor], Tensor]) -> float:
    """The largest difference between `step`, features (1, T, F) -> log-probabilities (1, S, V),
    chunk by chunk, and the encoder at once with the mask of these chunks.
    """
    chunks = graph.left_chunks + CHUNKS
    features, lengths = inputs(recognizer, 1, chunks * graph.input_frames, seed=1, samples=False)
    with torch.inference_mode():
        encoded = recognizer.encode(Padded((features - graph.mean) / graph.std, lengths))
        expected = scores(recognizer.model, graph.head, encoded)
    found = torch.cat([step(part) for part in features.split(graph.input_frames, 1)], 1)
    return checked(found.numpy(), expected, f"{chunks} chunks of {graph.input_frames} frames")
