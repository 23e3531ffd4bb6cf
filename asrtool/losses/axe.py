"""Aligned cross entropy (arXiv 2004.01655): along the cheapest monotonic alignment.

With predictions P_j, j = 1..m, targets Y_i, i = 1..n, a_ij = -log P_j(Y_i), e_j = -log P_j(blank)
and d = `skip_penalty`:

    A[0,0] = 0,   A[i,0] = A[i-1,0] + d a_i1,   A[0,j] = A[0,j-1] + e_j                        (1)
    A[i,j] = min( A[i-1,j-1] + a_ij,      align target i with prediction j
                  A[i,j-1]   + e_j,       prediction j is blank
                  A[i-1,j]   + d a_ij )   target i has no prediction of its own                (2)
    loss   = A[n,m]

It is meant for about as many frames as tokens, too few for CTC: n may exceed m. A row of (2) needs
no loop over j. With E_j = e_1 + ... + e_j, c_ij the minimum of the first and the third line, and
R = A - E,

    R[i,j] = min over k <= j of (c_ik - E_k)                                                   (3)

so a row is one cumulative minimum, whose arguments are kept for backtracking. The costs are then
summed again along the cheapest path. Only this sum has a gradient: a sub-gradient of the minimum.
The paper leaves the choice between equally cheap paths open; here rounding decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool.losses.base import LOSSES, Loss, check_sequences
from asrtool.types import Batch, ModelOutput, Padded, sent

# cost of probability 0 while paths are compared, finite because inf - inf would be NaN
IMPOSSIBLE = 1e9


@dataclass(frozen=True, kw_only=True)
class AxeConfig:
    """Aligned cross entropy on the head `input`."""

    weight: float
    input: str = "aligned"
    skip_penalty: float = 1.0  # d: factor on the cost of a target without its own prediction

    def __post_init__(self) -> None:
        if not self.skip_penalty > 0:
            raise ValueError(f"skip_penalty must be above 0, got {self.skip_penalty}")


@LOSSES.register("axe", AxeConfig)
class AxeLoss(Loss):
    """Sum over the path, in nats: (B,); 0 and `skipped` for tokens without frames."""

    def __init__(self, config: AxeConfig, *, eos: int, blank: int = 0) -> None:
        self.head = config.input
        self.skip_penalty = config.skip_penalty
        self.blank = blank

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, lengths = outputs.head(self.head)
        log_probs = logits.float().log_softmax(-1)
        return aligned_cross_entropy(
            log_probs, lengths, *batch.targets, self.blank, self.skip_penalty
        )

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        return (outputs.head(self.head).lengths == 0) & (batch.targets.lengths > 0)


class Path(NamedTuple):
    """The cheapest alignments of a batch."""

    predictions: Tensor  # (B, U) int64: index of the prediction that scores each target
    aligned: Tensor  # (B, U) bool: aligned with that prediction; False: skipped, at cost d a
    blank: Tensor  # (B, T) bool: predictions without a target, scored as blank


def aligned_cross_entropy(
    log_probs: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    skip_penalty: float = 1.0,
) -> Tensor:
    """log_probs (B, T, V), lengths (B,), targets (B, U), target_lengths (B,) -> loss (B,).

    log_probs are natural logarithms. Any T and U are legal: without targets every prediction is
    scored as blank, without predictions the loss is 0. The result is float32, or float64 if
    log_probs are. Raises `ValueError` for shapes and lengths that do not fit.
    """
    lengths, targets, target_lengths = (
        sent(part, log_probs.device, non_blocking=True)
        for part in (lengths, targets, target_lengths)
    )
    check_sequences("aligned cross entropy", log_probs, lengths, targets, target_lengths, blank)
    if not skip_penalty > 0:
        raise ValueError(f"aligned cross entropy: skip_penalty must be above 0, got {skip_penalty}")
    if not log_probs.shape[1]:
        return log_probs.sum((1, 2))  # 0, connected to the graph
    frames, tokens = Padded(log_probs, lengths), Padded(targets, target_lengths)
    # ids in the padding may be anything; gather needs valid ones
    known = targets.to(torch.int64).masked_fill(~tokens.mask, blank)
    # The path is found without a gradient: by the envelope theorem, the gradient of the minimum is
    # that of the cost of the best path, taken as fixed.
    with torch.no_grad():
        path = cheapest_path(frames, Padded(known, target_lengths), blank, skip_penalty)
        counted = tokens.mask & (lengths > 0)[:, None]
        # (B, U + T): the factor of each cost in the sum, 1 for an aligned target, d for a skipped
        # one, 1 for a blank prediction, 0 for everything else
        weights = torch.ones_like(known, dtype=torch.float64).masked_fill(
            ~path.aligned, skip_penalty
        )
        weights = torch.cat([weights.masked_fill(~counted, 0.0), path.blank.double()], 1)
        # (B, U + T): the index of each cost in log_probs.flatten(1), targets first, then blanks
        index = torch.cat(
            [path.predictions * log_probs.shape[2] + known, _column(log_probs, blank)], 1
        )
    costs = -log_probs.flatten(1).gather(1, index)  # (B, U + T)
    costs = costs if costs.dtype == torch.float64 else costs.float()
    # masked, as 0 * inf would be NaN
    return (costs.masked_fill(weights == 0, 0.0) * weights.to(costs.dtype)).sum(1)


def cheapest_path(frames: Padded, tokens: Padded, blank: int, skip_penalty: float) -> Path:
    """(1) to (3) for frames (B, T, V) with T > 0 and tokens (B, U).

    Ids in the padding of tokens must be within the vocabulary.
    """
    log_probs, lengths = frames
    targets, _ = tokens
    batch, num_tokens = targets.shape
    if not num_tokens:
        return Path(targets, targets.bool(), frames.mask)
    index = targets[:, None].expand(-1, log_probs.shape[1], -1)
    align = _costs(log_probs.gather(2, index).permute(2, 0, 1))  # (U, B, T), a_ij
    empty = _costs(log_probs[:, :, blank]).masked_fill(~frames.mask, 0.0)  # (B, T), e_j
    skip = skip_penalty * F.pad(align, (1, 0))  # (U, B, T + 1): column 0 is that of (1)
    skip[:, :, 0] = skip[:, :, 1:2].squeeze(2)
    # In terms of R, c_ij - E_j of (3) is the smaller of R[i-1, j-1] + a_ij - e_j (the first line of
    # (2)) and R[i-1, j] + d a_ij (the third): E itself is never computed. From column j of a row,
    # option 2 j leads to the same column of the next row (third line), option 2 j + 1 to the column
    # after it (first line): in this order, one cumulative minimum over both is (3).
    steps = torch.stack([skip, F.pad(align - empty, (0, 1), value=torch.inf)], 3)
    options = align.new_empty(batch, skip.shape[2], 2)
    least = align.new_zeros(batch, 2 * skip.shape[2])  # R[i, j] at 2 j
    best = torch.empty(num_tokens, *least.shape, dtype=torch.int64, device=least.device)
    # Row i + 1 from row i, for all columns j of all utterances at once. An utterance with fewer
    # tokens computes rows that its path never enters.
    for i in range(num_tokens):
        torch.add(least[:, ::2, None], steps[i], out=options)
        torch.cummin(options.flatten(1), 1, out=(least, best[i]))
    # (U, B, T + 1): the option by which the path reaches each column of row i + 1, and the column
    # of row i that it comes from. In the rows of the padding, it stays where it is.
    options = best[:, :, ::2]
    columns = torch.arange(options.shape[2], device=best.device)
    before = torch.where(tokens.mask.T[:, :, None], options >> 1, columns)
    # backtracking starts in column m: the columns where the path leaves each row, the last first
    left = [lengths.to(torch.int64)[:, None]]
    for i in range(num_tokens - 1, 0, -1):
        left.append(before[i].gather(1, left[-1]))
    chosen = options.gather(2, torch.stack(left[::-1]))[:, :, 0].T  # (B, U)
    aligned = (chosen & 1).bool() & tokens.mask
    # Columns count predictions from 1. A target skipped in column 0 has the cost of the first
    # prediction, as in (1).
    predictions = (((chosen + 1) >> 1) - 1).clamp(min=0)
    # several targets may be scored by one prediction, of which at most one is aligned with it
    taken = torch.zeros_like(frames.mask, dtype=torch.int64).scatter_add(
        1, predictions, aligned.to(torch.int64)
    )
    return Path(predictions, aligned, frames.mask & (taken == 0))


def _costs(log_probs: Tensor) -> Tensor:
    """Negative log-probabilities as float64, all finite."""
    return (
        (-log_probs).to(torch.float64, memory_format=torch.contiguous_format).clamp_(max=IMPOSSIBLE)
    )


def _column(log_probs: Tensor, token: int) -> Tensor:
    """Indices (B, T) of the log-probabilities of a token in log_probs.flatten(1)."""
    _, frames, vocabulary = log_probs.shape
    index = torch.arange(frames, device=log_probs.device) * vocabulary + token
    return index.expand(len(log_probs), -1)
