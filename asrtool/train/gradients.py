"""Do two losses pull the same way? The cosine of the gradient of one term with that of all others.

    cos = <g_1, g_2> / (|g_1| |g_2|)     g: gradients of the weighted sums over a batch, on
                                         parameters that both reach

Near 1 one loss does the other's work, near 0 they do not meet, below 0 what helps one harms the
other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from asrtool.train.objective import Objective
from asrtool.types import Batch, ModelOutput


def cosine(
    model: nn.Module,
    objective: Objective,
    term: str,
    outputs_of: Callable[[Batch], ModelOutput],
    batch: Batch,
) -> dict[str, float] | None:
    """`cosine`, `norm` of the term's gradient and `norm_others`; None where one of them is 0 or not
    finite.

    Runs the batch once more and leaves gradients and weights alone.
    """
    one, others = objective.parts(outputs_of(batch), batch, term)
    if not (one.requires_grad and others.requires_grad):
        return None
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(others, parameters, allow_unused=True)
    shared = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not shared:
        return None
    product = sum(float((a.double() * b.double()).sum()) for a, b in shared)
    norm, norm_others = (
        sum(float(pair[side].double().square().sum()) for pair in shared) for side in (0, 1)
    )
    if not 0 < norm * norm_others < float("inf"):
        return None
    return {
        "cosine": product / (norm * norm_others) ** 0.5,
        "norm": norm**0.5,
        "norm_others": norm_others**0.5,
    }
