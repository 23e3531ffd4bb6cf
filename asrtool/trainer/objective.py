"""The weighted sum of the configured losses.

    total = sum over terms w of  weight_w * sum over utterances b of  loss_w(b)

It is a sum, never a mean: the trainer divides by the number of utterances of the whole optimizer
step, so the gradient does not depend on how the step is split into micro-batches and ranks. The
weight of a loss with a warm-up grows linearly from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from asrtool.types import Batch, LossReport, ModelOutput


class Term(Protocol):
    """The part of a loss that the objective uses."""

    head: str
    monitors: tuple[str, ...]  # names of what `measured` returns beside the loss
    views: int  # of each utterance that it compares
    warmup: float  # of its weight: a share of all steps, or steps from 1 on

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor: ...

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor: ...

    def measured(
        self, outputs: ModelOutput, batch: Batch
    ) -> tuple[Tensor, Mapping[str, Tensor]]: ...


class Objective:
    """Losses and their weights, by name. A loss with weight 0 is neither computed nor reported.

    `terms`: the names of the computed losses in the order of the config, then their monitors
    (<loss>.<monitor>). `validated`: those that need only one view of an utterance, which is what
    validation has.
    """

    def __init__(self, losses: Mapping[str, Term], weights: Mapping[str, float]) -> None:
        if set(losses) != set(weights):
            raise ValueError(
                f"losses {sorted(losses)} and weights {sorted(weights)} must have the same names"
            )
        self._losses = {name: loss for name, loss in losses.items() if weights[name] != 0}
        self._weights = {name: float(weights[name]) for name in self._losses}
        self.losses = tuple(self._losses)  # without the monitors
        self._ramps = dict.fromkeys(self._losses, 1.0)
        self.terms = _names(self._losses)
        self.validated = _names(self._of(1))
        if not self._losses:
            raise ValueError(
                f"every loss has weight 0 ({', '.join(losses) or 'there is none'}); nothing "
                "would be trained"
            )
        if not self.validated:
            raise ValueError(
                f"{', '.join(self._losses)} compares views of an utterance, of which validation "
                "has one; add a loss that reads the text, such as ctc"
            )

    def begin(self, step: int, planned: int) -> None:
        """Weights of step number `step` of `planned`."""
        for name, loss in self._losses.items():
            warmup = loss.warmup if loss.warmup >= 1 else loss.warmup * planned
            self._ramps[name] = min(1.0, step / warmup) if warmup else 1.0

    def _of(self, views: int) -> dict[str, Term]:
        """The losses that a batch of so many views of each utterance has."""
        return {name: loss for name, loss in self._losses.items() if loss.views <= views}

    def _weight(self, name: str) -> float:
        return self._weights[name] * self._ramps[name]

    def __call__(self, outputs: ModelOutput, batch: Batch) -> LossReport:
        """The losses of a batch, on its device; `skipped` by any term counts. Waits for nothing."""
        losses = self._of(batch.views)
        values, monitored = {}, {}
        for name, loss in losses.items():
            if loss.monitors:
                values[name], found = loss.measured(outputs, batch)
                monitored |= {f"{name}.{monitor}": value for monitor, value in found.items()}
            else:
                values[name] = loss(outputs, batch)
        for name, value in values.items():
            if value.shape != (len(batch),):
                raise ValueError(
                    f"loss '{name}' returned shape {tuple(value.shape)}; expected "
                    f"({len(batch)},), one value per utterance"
                )
        total = sum(self._weight(name) * value.sum() for name, value in values.items())
        masks = [loss.skipped(outputs, batch) for loss in losses.values()]
        return LossReport(
            total=total,
            terms={name: value.detach() for name, value in (values | monitored).items()},
            skipped=torch.stack(masks).any(0),
        )

    def parts(self, outputs: ModelOutput, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """Weighted sums over the batch: of the term `name`, and of all others."""
        values = {
            key: self._weight(key) * loss(outputs, batch).sum()
            for key, loss in self._of(batch.views).items()
        }
        part = values.pop(name)
        return part, sum(values.values(), start=torch.zeros_like(part))


def _names(losses: Mapping[str, Term]) -> tuple[str, ...]:
    monitors = (f"{name}.{m}" for name, loss in losses.items() for m in loss.monitors)
    return (*losses, *monitors)


# -- agreement of two losses -----------------------------------------------


def cosine(
    model: nn.Module,
    objective: Objective,
    term: str,
    outputs_of: Callable[[Batch], ModelOutput],
    batch: Batch,
) -> dict[str, float] | None:
    """`cosine`, `norm` of the term's gradient and `norm_others`; None for a zero or infinite norm.

        cos = <g_1, g_2> / (|g_1| |g_2|)     g: gradients of the weighted sums over a batch, on
                                             parameters that both reach

    Near 1 the losses agree, near 0 they are independent, below 0 one harms the other.

    Runs the batch once more; gradients and weights do not change.
    """
    part, others = objective.parts(outputs_of(batch), batch, term)
    if not (part.requires_grad and others.requires_grad):
        return None
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(others, parameters, allow_unused=True)
    # a head of one loss alone would only lower the cosine, whatever the losses do to the encoder
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
