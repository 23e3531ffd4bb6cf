"""Dropout with cheap masks on CPU, where torch's take a fifth of a Conformer's training step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

BYTE_VALUES = 256


class Dropout(nn.Module):
    """torch.nn.Dropout; on CPU the probability is rounded to a multiple of 1/256 (0.1 to 0.1016).

    There a mask takes one random byte per element, from a generator seeded by one draw from torch:
    torch's seed and state still determine every mask.
    """

    def __init__(self, probability: float, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout {probability} is not a probability below 1")
        self.probability = probability
        self.inplace = inplace  # overwrite x, if no gradient needs it, as after SiLU

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        if not self.draws(x):
            return dropout(x, self.probability, inplace=self.inplace)
        mask = random_mask(x.shape, self.probability, x.dtype)
        return x.mul_(mask) if self.inplace else x * mask

    def draws(self, x: Tensor) -> bool:
        """Whether masks are drawn here, in training on CPU, and not by torch.

        Compiled code draws its mask within the operation that needs it.
        """
        on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
        return self.training and self.probability > 0 and on_cpu

    def extra_repr(self) -> str:
        return f"{self.probability}"


def random_mask(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """A CPU tensor that is 0 with this probability, and 1 / (1 - probability) elsewhere."""
    kept, factor = random_bytes(shape, probability)
    return kept.to(dtype).mul_(factor)


def random_bytes(shape: torch.Size, probability: float) -> tuple[Tensor, float]:
    """A CPU tensor of bytes that are 0 with this probability and else 1, and what scales them."""
    # how many of a byte's 256 values drop an element: at least one, and not all
    dropped = min(max(round(probability * BYTE_VALUES), 1), BYTE_VALUES - 1)
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))
    # 64 random bits at a time, read as 8 bytes
    words = generator.integers(
        0, 2**64 - 1, size=-(-shape.numel() // 8), dtype=np.uint64, endpoint=True
    )
    # bytes are signed, -128 ... 127: the lowest `dropped` of them drop, the others keep
    kept = torch.from_numpy(words.view(np.int8))[: shape.numel()].ge_(dropped - BYTE_VALUES // 2)
    return kept.view(shape), BYTE_VALUES / (BYTE_VALUES - dropped)
