"""Where frames are: rotary and relative positions, both for arbitrary (also gappy) integer positions.

Both encode a position p by the angles p * w_n of a few frequencies w_n. Rotary (arXiv 2104.09864) turns queries and
keys by them. Relative (Transformer-XL, arXiv 1901.02860) needs sin((i - j) w) and cos((i - j) w) for each query i and key
j; the addition theorem splits both into a factor of i and a factor of j, so that the bias is one more inner product,
without a table of distances to gather from:

    a sin((i - j) w) + b cos((i - j) w) = (a sin iw + b cos iw) cos jw + (b sin iw - a cos iw) sin jw
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Angles(NamedTuple):
    """cos and sin (B, 1, S, number of frequencies) of positions times frequencies; the 1 stands for heads."""

    cos: Tensor
    sin: Tensor

    def last(self, count: int) -> Angles:
        """The angles of the last `count` positions: queries are the newest keys."""
        size = self.cos.shape[2]
        return Angles(self.cos.narrow(2, size - count, count), self.sin.narrow(2, size - count, count))


def angles(positions: Tensor, num_frequencies: int, dtype: torch.dtype = torch.float32) -> Angles:
    """positions (B, S) -> angles for the frequencies 10000 ** (-n / num_frequencies)."""
    frequencies = 10000 ** -(torch.arange(num_frequencies, device=positions.device) / num_frequencies)
    phase = positions[:, None, :, None] * frequencies
    return Angles(phase.cos().to(dtype), phase.sin().to(dtype))


def rotate(x: Tensor, at: Angles) -> Tensor:
    """x (B, H, S, 2 n) turned by n angles: pairs are (x_k, x_{n+k})."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * at.cos - second * at.sin, second * at.cos + first * at.sin], dim=-1)


def relative_query(coefficients: Tensor, at: Angles) -> Tensor:
    """The query's factor of the theorem above: coefficients (B, H, S, 2 n) = [a, b] -> (B, H, S, 2 n)."""
    a, b = coefficients.chunk(2, dim=-1)
    return torch.cat([a * at.sin + b * at.cos, b * at.sin - a * at.cos], dim=-1)


def relative_key(at: Angles) -> Tensor:
    """The key's factor: (B, 1, S, 2 n)."""
    return torch.cat([at.cos, at.sin], dim=-1)
