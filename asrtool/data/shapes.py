"""Batches are padded to a few recurring sizes, so that kernels are built once per shape.

oneDNN, cuDNN and torch.compile cache kernels by shape, and build one for each new shape. Lengths of
speech hardly ever repeat: padded to their longest utterance, nearly all batches of an epoch would
differ in shape.

A size keeps its leading binary digits, and the rest is rounded up: with 5 digits, 200 stays 200,
and 201 to 208 become 208. Sizes are then 3 to 6 % apart, which costs 2 to 3 % of padding; there are
16 between powers of two.
"""

from __future__ import annotations

import numpy as np

DIGITS = 5  # for inputs: 3 to 6 % apart
# for tokens: 6 to 12 % apart; each size occurs with many sizes of inputs, so there should be few
TARGET_DIGITS = 4
SECONDS = 0.01  # unit of lengths of speech
ROUNDING = 1e-6  # 4 seconds are 400 units, although 4 / 0.01 is a little more


def recurring(size: int, digits: int = DIGITS) -> int:
    """The smallest number >= `size` with at most `digits` binary digits before its zeros."""
    dropped = max(0, size.bit_length() - digits)
    # an arithmetic shift rounds down, so negating twice rounds up
    return -(-size >> dropped) << dropped


def recurring_lengths(lengths: np.ndarray, unit: float) -> np.ndarray:
    """`recurring` for lengths (N,), counted in `unit`: (N,) float64, at least one unit each."""
    counts = np.maximum(np.ceil(lengths / unit - ROUNDING), 1.0)
    # frexp's exponent is the number of binary digits
    step = np.exp2(np.maximum(np.frexp(counts)[1] - DIGITS, 0))
    return np.ceil(counts / step) * step * unit
