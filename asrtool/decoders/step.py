"""One step of a search through the layers of the Transformer decoder, in machine code on a CPU.

A step is small: the beams of an utterance are some ten rows, which pass through every weight. In
torch the calls of its fifty operations cost more than the arithmetic, and a BLAS reorders each
weight before so small a product. Here a weight is read once, where it lies, for all rows, and each
token looks only at its own past.

The results are those of `TransformerDecoderLayer`, up to the order of sums in float32.
"""

from __future__ import annotations

from math import factorial, log, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from asrtool.compiled import available, compiled, vectorised
from asrtool.nn.attention import KeyValue
from asrtool.nn.transformer import DecoderLayerCache, TransformerDecoderLayer

ROWS = 5  # of x, whose sums with two rows of a weight fill the registers of AVX2
FEW = 16  # rows up to which one thread is faster than the several that torch would use
CACHED = 32  # pairs of rows of a weight that are read again from the cache, for the next rows of x
APART = 16  # floats between long rows: those 4 KB apart would share few lines of the cache
# constants of `softmax` in float32
SMALLEST = np.float32(-87)  # e^-87 is the smallest that a float32 holds in full
PER_LOG_2, HALF, ONE = np.float32(1 / log(2)), np.float32(0.5), np.float32(1)
LOG_2 = (np.float32(0.693359375), np.float32(log(2) - 0.693359375))  # the first with 9 bits: exact
SERIES = tuple(np.float32(1 / factorial(n)) for n in range(1, 7))


class Affine(NamedTuple):
    """A layer norm (D,), (D,) or a linear layer (N, K), (N,)."""

    weight: np.ndarray
    bias: np.ndarray


class LayerWeights(NamedTuple):
    """The parameters of a `TransformerDecoderLayer`, without copies."""

    heads: int
    eps: float  # of the layer norms
    norm: Affine
    query: Affine
    key: Affine
    value: Affine
    out: Affine
    cross_norm: Affine
    cross_query: Affine
    cross_out: Affine
    ffn_norm: Affine
    up: Affine
    down: Affine


class Weights(NamedTuple):
    """The parameters of a `TransformerDecoder`."""

    layers: tuple[LayerWeights, ...]
    norm: Affine
    eps: float
    output: Affine


def layer_weights(layer: TransformerDecoderLayer) -> LayerWeights | None:
    """None if a module is not the plain one of torch, such as a projection wrapped by LoRA."""
    own, cross = layer.attention, layer.cross_attention
    linears = (own.q_proj, own.k_proj, own.v_proj, own.o_proj, cross.q_proj, cross.o_proj)
    linears = (*linears, layer.up_proj, layer.down_proj)
    if any(type(module) is not nn.Linear for module in linears):
        return None
    query, key, value, out, cross_query, cross_out, up, down = map(affine, linears)
    return LayerWeights(
        own.num_heads,
        layer.attention_norm.eps,
        affine(layer.attention_norm),
        query,
        key,
        value,
        out,
        affine(layer.cross_norm),
        cross_query,
        cross_out,
        affine(layer.ffn_norm),
        up,
        down,
    )


def affine(module: nn.Linear | nn.LayerNorm) -> Affine:
    return Affine(array(module.weight), array(module.bias))


def by_head(memory: KeyValue) -> KeyValue:
    """The keys and values of each head side by side in memory, as `advance` needs them."""
    return KeyValue(memory.key.contiguous(), memory.value.contiguous())


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def suits(frames: Tensor, rows: int) -> bool:
    """Whether a search of `rows` prefixes over these frames is faster in machine code."""
    return (
        frames.device.type == "cpu"
        and frames.dtype == torch.float32
        and torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled("cpu")
        and (rows <= FEW or torch.get_num_threads() == 1)
        and available()
    )


def advance(
    x: Tensor,
    seen: Tensor,
    lengths: Tensor,
    caches: tuple[DecoderLayerCache, ...],
    weights: Weights,
) -> tuple[Tensor, tuple[DecoderLayerCache, ...]]:
    """The newest token of each beam, x (B, beam, D) -> logits (B * beam, V), caches with it.

    seen (B, beam, K) bool: the nodes of each beam, itself included. lengths (B,): frames.
    """
    rows = x.flatten(0, 1)
    state = x.new_zeros((max(len(rows), ROWS), x.shape[2]))
    state[: len(rows)] = rows
    logits = x.new_empty((len(state), len(weights.output.bias)))
    caches = tuple(
        DecoderLayerCache(cache.prefix.extend(seen.shape[1]), cache.memory) for cache in caches
    )
    beams, frames = seen.numpy(), lengths.numpy()
    for cache, layer in zip(caches, weights.layers, strict=True):
        room, memory = cache.prefix.room, cache.memory
        nodes = (room.key.numpy(), room.value.numpy())
        layer_step(
            state.numpy(), beams, *nodes, memory.key.numpy(), memory.value.numpy(), frames, layer
        )
    output_step(state.numpy(), weights.norm, weights.eps, weights.output, logits.numpy())
    return logits[: len(rows)], caches


@compiled
def output_step(x: np.ndarray, norm: Affine, eps: float, output: Affine, out: np.ndarray) -> None:
    """x (M, D) -> logits (M, V)."""
    y = np.empty_like(x)
    normalise(x, norm, eps, y)
    linear(y, output, out)


@vectorised
def layer_step(
    x: np.ndarray,
    seen: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    frame_keys: np.ndarray,
    frame_values: np.ndarray,
    lengths: np.ndarray,
    weights: LayerWeights,
) -> None:
    """x (at least `ROWS`, D) float32 -> itself, after the layer; the first B * beam rows count.

    seen (B, beam, K) bool: the nodes of each beam. keys, values (B, H, more than K, D / H): those
    of the nodes, of which the last `beam` are written here. frame_keys, frame_values
    (B, H, S, D / H), lengths (B,).
    """
    y, query, out = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    hidden = np.empty((len(x), len(weights.up.bias) + APART), dtype=x.dtype)

    normalise(x, weights.norm, weights.eps, y)
    linear(y, weights.query, query)
    linear(y, weights.key, out)
    keep(out, keys, seen)
    linear(y, weights.value, out)
    keep(out, values, seen)
    attend_nodes(query, seen, keys, values, out)
    linear(out, weights.out, y)
    add(x, y)

    normalise(x, weights.cross_norm, weights.eps, y)
    linear(y, weights.cross_query, query)
    attend_frames(query, seen.shape[1], frame_keys, frame_values, lengths, out)
    linear(out, weights.cross_out, y)
    add(x, y)

    normalise(x, weights.ffn_norm, weights.eps, y)
    linear(y, weights.up, hidden)
    for m in range(len(hidden)):
        for n in range(hidden.shape[1]):
            hidden[m, n] = max(hidden[m, n], np.float32(0))
    linear(hidden, weights.down, y)
    add(x, y)


@vectorised
def normalise(x: np.ndarray, norm: Affine, eps: float, out: np.ndarray) -> None:
    """Layer norm of every row."""
    size = x.shape[1]
    for m in range(len(x)):
        mean = variance = 0.0
        for d in range(size):
            mean += x[m, d]
        mean /= size
        for d in range(size):
            variance += (x[m, d] - mean) ** 2
        scale = 1 / sqrt(variance / size + eps)
        for d in range(size):
            out[m, d] = (x[m, d] - mean) * scale * norm.weight[d] + norm.bias[d]


@compiled
def linear(x: np.ndarray, layer: Affine, out: np.ndarray) -> None:
    product(x, layer.weight, out)
    for m in range(len(x)):
        for n in range(len(layer.bias)):
            out[m, n] += layer.bias[n]


@vectorised
def product(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """x (at least `ROWS`, K or more), weight (N, K) -> out (as many, N or more)."""
    # Two rows of the weight at once halve the reads of x. They lie far apart, since a processor
    # fetches ahead for one stream a page.
    half = (len(weight) + 1) // 2
    for start in range(0, half, CACHED):
        for first in range(0, len(x), ROWS):
            # the last rows may overlap those before; what both compute is the same
            m = min(first, len(x) - ROWS)
            x0, x1, x2, x3, x4 = x[m], x[m + 1], x[m + 2], x[m + 3], x[m + 4]
            for n in range(start, min(start + CACHED, half)):
                other = min(n + half, len(weight) - 1)
                one, two = weight[n], weight[other]
                a0 = a1 = a2 = a3 = a4 = b0 = b1 = b2 = b3 = b4 = np.float32(0)
                for k in range(len(one)):
                    a0 += one[k] * x0[k]
                    a1 += one[k] * x1[k]
                    a2 += one[k] * x2[k]
                    a3 += one[k] * x3[k]
                    a4 += one[k] * x4[k]
                    b0 += two[k] * x0[k]
                    b1 += two[k] * x1[k]
                    b2 += two[k] * x2[k]
                    b3 += two[k] * x3[k]
                    b4 += two[k] * x4[k]
                out[m, n], out[m + 1, n], out[m + 2, n], out[m + 3, n] = a0, a1, a2, a3
                out[m + 4, n] = a4
                out[m, other], out[m + 1, other], out[m + 2, other] = b0, b1, b2
                out[m + 3, other], out[m + 4, other] = b3, b4


@compiled
def keep(new: np.ndarray, nodes: np.ndarray, seen: np.ndarray) -> None:
    """Write the keys or values new (M, D) of the newest tokens into nodes (B, H, K..., D / H)."""
    beam, width = seen.shape[1], nodes.shape[3]
    used = seen.shape[2] - beam
    for b in range(len(seen)):
        for h in range(nodes.shape[1]):
            for i in range(beam):
                for d in range(width):
                    nodes[b, h, used + i, d] = new[b * beam + i, h * width + d]


@vectorised
def attend_nodes(
    query: np.ndarray, seen: np.ndarray, keys: np.ndarray, values: np.ndarray, out: np.ndarray
) -> None:
    """Attention of each row to the nodes of its own prefix."""
    beam, width = seen.shape[1], keys.shape[3]
    scale = np.float32(1 / sqrt(width))
    nodes = np.empty(seen.shape[2], dtype=np.int64)
    scores = np.empty(seen.shape[2], dtype=query.dtype)
    for m in range(len(seen) * beam):
        b, count = m // beam, 0
        for node in range(seen.shape[2]):
            if seen[b, m % beam, node]:
                nodes[count] = node
                count += 1
        for h in range(keys.shape[1]):
            row = query[m, h * width : (h + 1) * width]
            total = out[m, h * width : (h + 1) * width]
            for n in range(count):
                scores[n], key = 0, keys[b, h, nodes[n]]
                for d in range(width):
                    scores[n] += row[d] * key[d]
                scores[n] *= scale
            softmax(scores[:count])
            for d in range(width):
                total[d] = 0
            for n in range(count):
                weight, value = scores[n], values[b, h, nodes[n]]
                for d in range(width):
                    total[d] += weight * value[d]


@vectorised
def attend_frames(
    query: np.ndarray,
    beam: int,
    keys: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    out: np.ndarray,
) -> None:
    """Attention of the beams of each utterance to its frames."""
    width = keys.shape[3]
    scale = np.float32(1 / sqrt(width))
    rows = np.zeros((max(beam, ROWS), width), dtype=query.dtype)
    scores = np.empty((len(rows), keys.shape[2] + APART), dtype=query.dtype)
    for b in range(len(keys)):
        for h in range(keys.shape[1]):
            for i in range(beam):
                for d in range(width):
                    rows[i, d] = scale * query[b * beam + i, h * width + d]
            product(rows, keys[b, h, : lengths[b]], scores)
            for i in range(beam):
                softmax(scores[i, : lengths[b]])
            weighted_sums(scores, values[b, h, : lengths[b]], rows)
            for i in range(beam):
                for d in range(width):
                    out[b * beam + i, h * width + d] = rows[i, d]


@vectorised
def weighted_sums(weights: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """weights (M, S or more), values (S, D) -> out (M, D)."""
    whole = len(values) // 4 * 4
    for m in range(len(out)):
        for d in range(out.shape[1]):
            out[m, d] = 0
    for s in range(0, whole, 4):  # four values at once: fewer writes
        v0, v1, v2, v3 = values[s], values[s + 1], values[s + 2], values[s + 3]
        for m in range(len(out)):
            w0, w1, w2, w3 = weights[m, s], weights[m, s + 1], weights[m, s + 2], weights[m, s + 3]
            for d in range(out.shape[1]):
                out[m, d] += w0 * v0[d] + w1 * v1[d] + w2 * v2[d] + w3 * v3[d]
    for s in range(whole, len(values)):
        for m in range(len(out)):
            for d in range(out.shape[1]):
                out[m, d] += weights[m, s] * values[s, d]


@vectorised
def softmax(scores: np.ndarray) -> None:
    """Of one row, in place.

    e^x = 2^k e^r with |r| at most log(2) / 2, where Taylor's series to r^6 has float32's precision:
    unlike calls of `exp`, this loop has SIMD instructions.
    """
    highest, total = np.float32(-np.inf), np.float32(0)
    for n in range(len(scores)):
        highest = max(highest, scores[n])
    bits = np.empty(len(scores), dtype=np.int32)
    for n in range(len(scores)):
        x = max(scores[n] - highest, SMALLEST)
        k = np.floor(x * PER_LOG_2 + HALF)
        r = x - k * LOG_2[0] - k * LOG_2[1]
        series = SERIES[5]
        series = series * r + SERIES[4]
        series = series * r + SERIES[3]
        series = series * r + SERIES[2]
        series = series * r + SERIES[1]
        series = series * r + SERIES[0]
        scores[n] = series * r + ONE
        bits[n] = (np.int32(k) + 127) << 23  # 2^k: the exponent's bits of a float32
    powers = bits.view(np.float32)
    for n in range(len(scores)):
        scores[n] *= powers[n]
        total += scores[n]
    for n in range(len(scores)):
        scores[n] /= total


@compiled
def add(x: np.ndarray, y: np.ndarray) -> None:
    for m in range(len(x)):
        for d in range(x.shape[1]):
            x[m, d] += y[m, d]
