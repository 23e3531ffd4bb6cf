"""The transducer's negative log-likelihood (Graves, arXiv 1211.3711), by the full sum.

At frame s, with u tokens said, the model emits the blank with probability b(s, u) and goes to the
next frame, or it emits the next token with t(s, u) and stays. p(y | x) sums over all ways through
S frames and U tokens whose last step is a blank:

    alpha(0, 0) = 1,   alpha(s, u) = alpha(s - 1, u) b(s - 1, u) + alpha(s, u - 1) t(s, u - 1)   (1)
    beta(S, U)  = 1,   beta(s, u)  = b(s, u) beta(s + 1, u) + t(s, u) beta(s, u + 1)             (2)
    L = -log p(y | x),   p(y | x) = alpha(S, U)                                                  (3)
    dL / dlog b(s, u) = -alpha(s, u) b(s, u) beta(s + 1, u) / p(y | x),   t likewise             (4)

where b and t are 0 outside of the lattice, so (S, U) is reached by a blank alone. Points with the
same s + u do not depend on each other: one step computes such an anti-diagonal of all utterances.
A plane (B, S, U + 1) is turned so that it has a row for each, (S + U, B, U + 1), whose column is
still u. Sums are float64, in the log domain.

`fast_emit` is the regularisation of FastEmit (arXiv 2010.11148): the gradient of tokens, not that
of blanks, is 1 + fast_emit times as large, so tokens come earlier. The value stays L.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn.functional import pad

from asrtool.losses.base import LOSSES, Loss, check_range
from asrtool.registry import bounded
from asrtool.types import Batch, ModelOutput


@dataclass(frozen=True, kw_only=True)
class TransducerConfig:
    """The full-sum transducer loss (arXiv 1211.3711) on the head `input`."""

    weight: float
    input: str = "transducer"
    fast_emit: float = bounded(0.0, least=0)  # FastEmit's lambda; 0: off


@LOSSES.register("transducer", TransducerConfig)
class TransducerLoss(Loss):
    """Sum over the path, in nats: (B,); 0 and `skipped` for tokens without frames."""

    def __init__(self, config: TransducerConfig, *, eos: int) -> None:
        self.head = config.input
        self.fast_emit = config.fast_emit

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        lattice = outputs.head(self.head)
        loss = transducer_loss(*lattice, self.fast_emit)
        return loss.float().masked_fill(self.skipped(outputs, batch), 0.0)

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        lattice = outputs.head(self.head)
        return (lattice.lengths == 0) & (lattice.token_lengths > 0)

    def example(
        self, frames: int, tokens: int, vocab_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        logits = torch.randn(frames, tokens + 1, vocab_size, generator=generator)
        return {self.head: logits.log_softmax(-1)[:, :, :2]}


def transducer_loss(
    log_probs: Tensor, lengths: Tensor, token_lengths: Tensor, fast_emit: float = 0.0
) -> Tensor:
    """log_probs (B, S, U + 1, 2) as in `Lattice`, lengths and token_lengths (B,) -> (B,) float64.

    Infinite for tokens without frames. Raises `ValueError` for shapes and lengths that do not fit.
    """
    if log_probs.dim() != 4 or log_probs.shape[3] != 2 or not log_probs.shape[2]:
        raise ValueError(
            f"transducer loss: expected log_probs (B, S, U + 1, 2), got {tuple(log_probs.shape)}"
        )
    check_range(lengths, log_probs.shape[1], "transducer loss: lengths")
    check_range(token_lengths, log_probs.shape[2] - 1, "transducer loss: token_lengths")
    blanks, tokens = log_probs.double().unbind(3)
    if fast_emit:
        tokens = tokens + fast_emit * (tokens - tokens.detach())
    return FullSum.apply(blanks, tokens, lengths, token_lengths)


class FullSum(torch.autograd.Function):
    """log b and log t (B, S, U + 1) float64, lengths, token_lengths (B,) -> L (B,)."""

    @staticmethod
    def forward(ctx, blanks: Tensor, tokens: Tensor, lengths: Tensor, said: Tensor) -> Tensor:
        _, frames, columns = blanks.shape
        heard = (torch.arange(frames, device=blanks.device) < lengths[:, None])[:, :, None]
        column = torch.arange(columns, device=blanks.device)
        blank = turned(blanks.masked_fill(~(heard & (column <= said[:, None])[:, None]), -inf))
        token = turned(tokens.masked_fill(~(heard & (column < said[:, None])[:, None]), -inf))
        alphas = blank.new_full((len(blank) + 1, *blank.shape[1:]), -inf)
        alphas[0, :, 0] = 0.0
        for diagonal in range(len(blank)):  # (1)
            arrived = alphas[diagonal] + token[diagonal]
            torch.logaddexp(
                alphas[diagonal] + blank[diagonal],
                pad(arrived[:, :-1], (1, 0), value=-inf),
                out=alphas[diagonal + 1],
            )
        # the point (S, U) of each utterance, on its anti-diagonal
        diagonals = torch.arange(len(alphas), device=blanks.device)
        ends = (diagonals[:, None] == lengths + said)[:, :, None] & (column == said[:, None])
        total = alphas.masked_fill(~ends, -inf).amax((0, 2))  # (3)
        ctx.save_for_backward(blank, token, alphas, ends, total)
        return -total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        blank, token, alphas, ends, total = ctx.saved_tensors
        beta = torch.full_like(total[:, None], -inf).masked_fill(ends[-1], 0.0)
        # of an utterance that has no way, nothing but -inf is left: its gradient is 0
        least = total.masked_fill(total == -inf, 0.0)[:, None]
        to_blank, to_token = torch.empty_like(blank), torch.empty_like(token)
        for diagonal in reversed(range(len(blank))):
            silent = blank[diagonal] + beta
            spoken = token[diagonal] + pad(beta[:, 1:], (0, 1), value=-inf)
            beta = torch.logaddexp(silent, spoken).masked_fill(ends[diagonal], 0.0)  # (2)
            to_blank[diagonal] = silent + alphas[diagonal] - least  # log of (4)
            to_token[diagonal] = spoken + alphas[diagonal] - least
        scale = -gradient[:, None]
        frames = len(blank) - blank.shape[2] + 1
        parts = (turned_back(part.exp_() * scale, frames) for part in (to_blank, to_token))
        return *parts, None, None


def turned(plane: Tensor) -> Tensor:
    """plane (B, S, U + 1) -> (S + U, B, U + 1): row s + u, column u; -inf outside."""
    _, frames, columns = plane.shape
    # every row of (B, U + 1, S), padded to S + U + 1 and then read as if it had S + U, begins one
    # place later than the row before
    rows = pad(plane.transpose(1, 2), (0, columns), value=-inf).flatten(1)
    diagonals = frames + columns - 1
    rows = rows[:, : columns * diagonals].unflatten(1, (columns, diagonals))
    return rows.permute(2, 0, 1).contiguous()


def turned_back(rows: Tensor, frames: int) -> Tensor:
    """The inverse: (S + U, B, U + 1) -> (B, S, U + 1)."""
    diagonals, _, columns = rows.shape
    plane = pad(rows.permute(1, 2, 0).flatten(1), (0, columns))
    return plane.unflatten(1, (columns, diagonals + 1))[:, :, :frames].transpose(1, 2)
