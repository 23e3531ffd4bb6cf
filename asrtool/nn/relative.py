"""Attention to positions on a grid by Transformer-XL's scores (arXiv 1901.02860), for CPUs.

The same products as those of `asrtool.nn.attention` on other devices, but head by head and for a
few queries at a time: scores are made where the former ones were, and a block of queries reads
little more of the table of distances than it needs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

SCORES = 2**18  # that are made at once, for all utterances: a megabyte, about what caches hold


def diagonals(scores: Tensor, keys: int) -> Tensor:
    """scores (..., Q, Q + keys) of distances, the largest first -> (..., Q, keys) of keys.

    Query i reads key j at column Q - 1 - i + j: each row begins one column before the row above
    it. In memory that is a row of one column less, so a view does it (Transformer-XL, appendix B).
    """
    num_queries, columns = scores.shape[-2:]
    flat = scores.flatten(-2)
    shifted = flat[..., num_queries - 1 : num_queries - 1 + num_queries * (columns - 1)]
    return shifted.unflatten(-1, (num_queries, columns - 1))[..., :keys]


class RelativeAttention(torch.autograd.Function):
    """kept * softmax(content key^T + diagonals(position table) + mask) value.

    content = (q + u) / sqrt(d) and position = (q + v) / sqrt(d), both (B, H, Q, d), key and value
    (B, H, K, d), table (H, d, Q + K) of W_kR r, mask (B, 1, Q or 1, K) of 0 and -inf or None, kept
    (B, H, Q, K), the dropout of the weights, or None -> (B, H, Q, d).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        content: Tensor,
        position: Tensor,
        key: Tensor,
        value: Tensor,
        table: Tensor,
        mask: Tensor | None,
        kept: Tensor | None,
    ) -> Tensor:
        keys = key.shape[2]
        mixed, saved = side_by_side(content), []
        for head, block, window in blocks(content, keys):
            query = content[:, head, block]
            distant = (
                position[:, head, block].flatten(0, 1) @ table[head, :, window]
            )  # (B b, b + K)
            scores = diagonals(distant.unflatten(0, query.shape[:2]), keys).contiguous()
            scores.baddbmm_(query, key[:, head].mT)
            if mask is not None:
                scores += mask[:, 0] if mask.shape[2] == 1 else mask[:, 0, block]
            weights = torch.softmax(scores, dim=-1)
            used = weights if kept is None else weights * kept[:, head, block]
            mixed[:, head, block] = used @ value[:, head]
            if any(ctx.needs_input_grad):
                saved.append(weights)
        ctx.save_for_backward(content, position, key, value, table, kept, *saved)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        content, position, key, value, table, kept, *saved = ctx.saved_tensors
        keys = key.shape[2]
        of_content, of_position = side_by_side(content), side_by_side(position)
        of_key, of_value, of_table = (torch.zeros_like(one) for one in (key, value, table))
        for (head, block, window), weights in zip(blocks(content, keys), saved, strict=True):
            query, arriving = content[:, head, block], gradient[:, head, block]
            of_weights = arriving @ value[:, head].mT
            used = weights
            if kept is not None:
                of_weights *= kept[:, head, block]
                used = weights * kept[:, head, block]
            of_value[:, head] += used.mT @ arriving
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_content[:, head, block] = of_scores @ key[:, head]
            of_key[:, head] += of_scores.mT @ query
            # the scores of distances that no pair of the block has are 0
            distant = of_scores.new_zeros(*of_scores.shape[:2], of_scores.shape[1] + keys)
            diagonals(distant, keys).copy_(of_scores)
            distant = distant.flatten(0, 1)
            of_position[:, head, block] = (distant @ table[head, :, window].mT).view_as(query)
            of_table[head, :, window] += position[:, head, block].flatten(0, 1).mT @ distant
        return of_content, of_position, of_key, of_value, of_table, None, None


def blocks(content: Tensor, keys: int) -> list[tuple[int, slice, slice]]:
    """For queries (B, H, Q, d): heads, queries, and the columns of the table that they read."""
    batch, heads, size, _ = content.shape
    step = max(SCORES // (batch * keys), 1)
    return [
        (head, slice(start, end), slice(size - end, size - start + keys))
        for head in range(heads)
        for start in range(0, size, step)
        for end in [min(start + step, size)]
    ]


def side_by_side(like: Tensor) -> Tensor:
    """Room of a shape (B, H, Q, d) whose heads are side by side in memory, as they are merged."""
    return like.new_empty(like.transpose(1, 2).shape).transpose(1, 2)
