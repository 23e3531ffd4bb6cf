"""Sizes that recur. Batches are padded to a few sizes, so that what is made for a shape is made
once.

oneDNN, cuDNN and torch.compile keep kernels by shape, and make one for each shape that they have
not seen. Lengths of speech hardly ever repeat: padded to their own longest utterance, nearly all
batches of an epoch differ.

A size keeps its first binary digits and the rest is rounded up: with 5 digits 200 stays 200, 201 to
208 become 208. Sizes then lie 3 to 6 % apart, which costs 2 to 3 % of padding; from one power of
two to the next there are 16.
"""

from __future__ import annotations

import numpy as np

DIGITS = 5  # of inputs: 3 to 6 % apart
# of tokens: 6 to 12 % apart; few as they are, each of their sizes meets many of the inputs'
TARGET_DIGITS = 4
SECONDS = 0.01  # of speech, counted in this unit
ROUNDING = 1e-6  # 4 seconds are 400 units, though 4 / 0.01 is a little more


def recurring(size: int, digits: int = DIGITS) -> int:
    """The least size that is not below `size` and has no more than `digits` binary digits before
    its zeros.
    """
    dropped = max(0, size.bit_length() - digits)
    return -(-size >> dropped) << dropped


def recurring_lengths(lengths: np.ndarray, unit: float) -> np.ndarray:
    """As `recurring`, of lengths (N,) that are counted in `unit`: (N,) float64, at least one unit
    each.
    """
    counts = np.maximum(np.ceil(lengths / unit - ROUNDING), 1.0)
    # frexp's exponent is the number of binary digits
    step = np.exp2(np.maximum(np.frexp(counts)[1] - DIGITS, 0))
    return np.ceil(counts / step) * step * unit
