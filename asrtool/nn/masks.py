"""Attention masks. Every mask is boolean, True = valid or visible.

Structure masks compare *positions*, not row numbers, so they also hold for frames with gaps, for
strides between layers and for cached keys.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

NEVER = 2.0  # larger than any random number in 0 ... 1


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """lengths (B,) -> (B, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def causal_mask(queries: Tensor, keys: Tensor) -> Tensor:
    """positions (B, Q) and (B, K) -> (B, Q, K): a query sees keys up to its own position."""
    return keys[:, None, :] <= queries[:, :, None]


def window_mask(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """positions (B, Q), (B, K) -> (B, Q, K): i sees i - window // 2 ... i + (window - 1) // 2."""
    offset = keys[:, None, :] - queries[:, :, None]
    return (offset >= -(window // 2)) & (offset < (window + 1) // 2)


def chunk_mask(queries: Tensor, keys: Tensor, chunk: int, left_chunks: int | None = None) -> Tensor:
    """positions (B, Q), (B, K) -> (B, Q, K): own chunk and `left_chunks` before it (None: all)."""
    distance = (queries // chunk)[:, :, None] - (keys // chunk)[:, None, :]  # in chunks
    visible = distance >= 0
    return visible if left_chunks is None else visible & (distance <= left_chunks)


def attention_mask(valid: Tensor, structure: Tensor | None = None) -> Tensor:
    """valid (B, K) keys, structure (B, Q, K) -> (B, 1, Q or 1, K), ready for attention over heads.

    A query that sees nothing (padding, an empty utterance) would be NaN after softmax, so it sees
    everything instead: its output is meaningless but finite, and the caller masks it.
    """
    visible = valid[:, None, :] if structure is None else valid[:, None, :] & structure
    return (visible | ~visible.any(dim=-1, keepdim=True))[:, None]


def random_chunk(longest: int, sizes: Sequence[int] | None = None) -> int | None:
    """A chunk size for dynamic chunk training (arXiv 2012.05481).

    Half the time None (the whole utterance), else 1 ... `longest`, or one of `sizes`. Drawn from
    Python's `random`, which the trainer seeds alike on all ranks.
    """
    if sizes is not None:
        return random.choice(sizes) if random.random() < 0.5 else None
    # one draw for both decisions: the upper half of the range is the whole utterance
    draw = random.randrange(2 * longest)
    return None if draw >= longest else draw + 1


def span_mask(lengths: Tensor, size: int, share: float, length: int) -> Tensor:
    """lengths (B,) -> (B, size): random spans of `length` frames, True = masked.

    A row of n frames gets about share * n / length spans (rounded up or down at random), whose
    starts are drawn without replacement; they may overlap, so `share` is an upper bound (wav2vec
    2.0, arXiv 2006.11477, section 3.1). Rows shorter than a span get none.
    """
    starts = (lengths - length + 1).clamp(min=0)
    # stochastic rounding of share * n / length: up, with the probability of its fraction
    number = (
        (share * lengths / length + torch.rand(lengths.shape, device=lengths.device))
        .long()
        .minimum(starts)
    )
    index = torch.arange(size, device=lengths.device)
    # Drawing without replacement, for all rows at once: each frame has a random key, and the frames
    # with the `number` lowest keys are starts. No span fits where the key is NEVER.
    order = torch.rand(len(lengths), size, device=lengths.device).masked_fill(
        index >= starts[:, None], NEVER
    )
    first = order.argsort(dim=1).argsort(dim=1) < number[:, None]
    # frame t is masked if a span began at t - length + 1 ... t: a difference of cumulative counts
    begun = first.cumsum(dim=1)
    return begun > torch.nn.functional.pad(begun, (length, 0))[:, :size]
