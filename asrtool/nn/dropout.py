"""Dropout with cheap masks on CPU, where those of torch take a fifth of a Conformer's training
step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout


class Dropout(nn.Module):
    """torch.nn.Dropout; on CPU the probability is rounded to a multiple of 1/256, at least one (0.1
    becomes 0.1016).

    A mask is then a random byte an element, from a generator seeded by one draw of torch's, so that
    torch's seed and state still decide everything.
    """

    def __init__(self, probability: float, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout {probability} is not a probability below 1")
        self.probability = probability
        self.inplace = inplace  # x is overwritten: for a result that no gradient needs, as SiLU's

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        if x.device.type != "cpu":
            return dropout(x, self.probability, inplace=self.inplace)
        mask = random_mask(x.shape, self.probability, x.dtype)
        return x.mul_(mask) if self.inplace else x * mask

    def extra_repr(self) -> str:
        return f"{self.probability}"


def random_mask(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """A CPU tensor of zeros, and of 1 / (1 - probability) elsewhere."""
    dropped = min(max(round(probability * 256), 1), 255)  # of the 256 values of a byte
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))
    words = generator.integers(
        0, 2**64 - 1, size=-(-shape.numel() // 8), dtype=np.uint64, endpoint=True
    )
    kept = torch.from_numpy(words.view(np.int8))[: shape.numel()].ge_(dropped - 128)
    return kept.to(dtype).mul_(256 / (256 - dropped)).view(shape)
