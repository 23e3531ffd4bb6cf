"""The interface of losses, and their registry. Losses own no parameters: heads do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from asrtool.registry import Registry
from asrtool.types import Batch, ModelOutput, Padded, on_host


class Loss:
    """One number per utterance: the objective weights it, the trainer sums and divides.

    Built by `LOSSES.build(config, eos=id of sos/eos)`. A sequence loss is the sum over the tokens
    (or frames) of an utterance, in float32. An utterance without a finite loss (CTC: fewer frames
    than tokens plus repeats) gets 0, and `skipped` is true for it.
    """

    head: str  # the head whose output it reads
    # names of what `monitor` returns: logged as <loss>.<name>, never trained on
    monitors: tuple[str, ...] = ()
    # rows of a training batch that are augmented views of one utterance, side by side; with more
    # than 1 the loss is not computed in validation, which has one view
    views: int = 1
    # until its weight is reached, which grows linearly from 0: a share of all steps, or steps from
    # 1 on
    warmup: float = 0.0

    @classmethod
    def heads_of(cls, config: Any) -> tuple[str, ...]:
        """The heads that a loss with this config reads; the model builds them."""
        return (config.input,)

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        """The loss of each utterance, (B,) float32."""
        raise NotImplementedError

    def count(self, counts: Sequence[int] | None) -> None:
        """Take the counts of the V tokens in the training text; None: unknown."""

    def count_labels(self, counts: Mapping[str, Sequence[int]]) -> None:
        """Take, for each label, the number of training utterances with each of its values."""

    def example(
        self, frames: int, tokens: int, vocab_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Random head outputs of one utterance, (rows, V) by head name, on which tests/contracts
        checks the loss. By default, `head` has a row per frame.
        """
        return {self.head: torch.randn(frames, vocab_size, generator=generator)}

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        """(B,) bool: utterances whose loss is 0 because it would not be finite."""
        return outputs.head(self.head).lengths.new_zeros(len(batch)).bool()

    def monitor(self, outputs: ModelOutput, batch: Batch) -> Mapping[str, Tensor]:
        """name -> (B,) without gradient, for each name of `monitors`."""
        return {}

    def measured(self, outputs: ModelOutput, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss and `monitor`; overridden where both need the same intermediate results."""
        return self(outputs, batch), self.monitor(outputs, batch)


LOSSES: Registry[Loss] = Registry("loss")


def check_sequences(
    name: str,
    log_probs: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    blank: int,
) -> None:
    """Raise `ValueError` if the arguments of a loss over frames and tokens do not fit.

    Lengths and tokens that only a GPU knows are not looked at, which would wait for it.
    """
    if log_probs.dim() != 3 or targets.dim() != 2 or len(targets) != len(log_probs):
        shapes = f"{tuple(log_probs.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"{name}: expected log_probs (B, T, V) and targets (B, U), got {shapes}")
    if not log_probs.is_floating_point():
        raise ValueError(f"{name}: log_probs must be floating point, got {log_probs.dtype}")
    if not 0 <= blank < log_probs.shape[2]:
        raise ValueError(f"{name}: blank {blank} is outside the vocabulary of {log_probs.shape[2]}")
    sizes = (
        ("lengths", lengths, log_probs.shape[1]),
        ("target_lengths", target_lengths, targets.shape[1]),
    )
    for argument, values, size in sizes:
        if values.shape != log_probs.shape[:1]:
            raise ValueError(
                f"{name}: {argument} must have shape ({len(log_probs)},), got {tuple(values.shape)}"
            )
        check_range(values, size, f"{name}: {argument}")
    tokens, numbers = on_host(targets), on_host(target_lengths)
    if tokens is None or numbers is None:
        return
    # ids in the padding are never read, so any number is legal there
    inside = (tokens >= 0) & (tokens < log_probs.shape[2])
    if not bool((inside | ~Padded(tokens, numbers).mask).all()):
        raise ValueError(f"{name}: targets hold ids outside the vocabulary of {log_probs.shape[2]}")


def check_range(values: Tensor, most: int, what: str) -> None:
    """Raise `ValueError` unless all values (B,), where the host knows them, are 0 to `most`."""
    known = on_host(values)
    if known is not None and not bool(((known >= 0) & (known <= most)).all()):
        raise ValueError(f"{what} {known.tolist()} must lie between 0 and {most}")
