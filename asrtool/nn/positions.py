"""Rotary and relative positions, both for arbitrary integer positions, gaps included.

Both rotate pairs of channels, read as complex numbers, by angles p w that grow with the position p,
for a few frequencies w. Rotary (arXiv 2104.09864) rotates queries and keys, so that their product
depends on the distance i - j alone:

    Re(q e^(i w) conj(k e^(j w))) = Re(q conj(k) e^((i - j) w))

where e^x is the complex number of modulus 1 and angle x.

Relative (Transformer-XL, arXiv 1901.02860) scores a query against cos((i - j) w) and
sin((i - j) w), with coefficients c projected from the query. This is the same product with a key
of 1, so no table of distances is needed:

    Re(c e^(i w) conj(e^(j w))) = Re(c) cos((i - j) w) - Im(c) sin((i - j) w)

Where positions lie on a grid, few distances occur, and a table of them costs less: `distances`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(positions: Tensor, num_frequencies: int) -> Tensor:
    """positions (B, S) -> complex (B, 1, S, n) of modulus 1: angles position * 10000^(-k / n).

    The dimension of size 1 broadcasts over heads.
    """
    frequencies = 10000 ** -(
        torch.arange(num_frequencies, device=positions.device) / num_frequencies
    )
    angles = positions[:, None, :, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """x (B, H, S, 2 n) rotated by complex (B, 1, S, n), in float32.

    Channels 2 k and 2 k + 1 are the real and imaginary part of a complex number.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(-2)


def distances(
    queries: int, keys: int, step: int, num_frequencies: int, device: torch.device | None = None
) -> Tensor:
    """The sinusoids of all distances on a grid, the largest first: (queries + keys, 2 n).

    Positions are `step` apart, and the last key stands where the last query does. Row r holds cos
    and -sin of (keys - 1 - r) step w for each of the n frequencies w, side by side. The last row
    is of a distance that does not occur (asrtool.nn.relative.diagonals).
    """
    count = torch.arange(keys - 1, -queries - 1, -1, device=device) * step
    return torch.view_as_real(rotations(count[None], num_frequencies).conj().resolve_conj())[
        0, 0
    ].flatten(-2)
