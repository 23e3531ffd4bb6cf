"""Aligned cross entropy against every monotonic alignment, for all that is small enough to
enumerate.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from asrtool.losses.axe import aligned_cross_entropy
from asrtool.types import Padded

CASES = 2000


@functools.cache
def alignments(frames: int, tokens: int) -> np.ndarray:
    """(paths, frames + tokens) of costs by number: a_ij, then d a_ij, then e_j, then 0 (see
    `costs`).
    """
    size = frames * tokens

    def walk(i: int, j: int):
        if (i, j) == (tokens, frames):
            yield []
        if i < tokens and j < frames:
            yield from ([i * frames + j, *rest] for rest in walk(i + 1, j + 1))
        if j < frames:
            yield from ([2 * size + j, *rest] for rest in walk(i, j + 1))
        if i < tokens:
            yield from ([size + i * frames + max(j - 1, 0), *rest] for rest in walk(i + 1, j))

    nothing = 2 * size + frames
    return np.array([path + [nothing] * (frames + tokens - len(path)) for path in walk(0, 0)])


def costs(log_probs: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    align = -log_probs[:, target].T.flatten()
    return np.concatenate([align, penalty * align, -log_probs[:, 0], [0.0]])


def gradient(
    log_probs: np.ndarray, target: np.ndarray, penalty: float, path: np.ndarray
) -> np.ndarray:
    """Of one alignment's cost."""
    frames, tokens = len(log_probs), len(target)
    used = np.bincount(path, minlength=2 * frames * tokens + frames + 1)
    own, skipped = used[: 2 * frames * tokens].reshape(2, tokens, frames)
    found = np.zeros(log_probs.shape)
    for i, token in enumerate(target):
        found[:, token] -= own[i] + penalty * skipped[i]
    found[:, 0] -= used[2 * frames * tokens : -1]
    return found


def brute_force(
    log_probs: np.ndarray, target: np.ndarray, penalty: float
) -> tuple[float, np.ndarray | None]:
    """The loss, and the gradient unless alignments with different ones are equally cheap."""
    paths = alignments(len(log_probs), len(target))
    totals = costs(log_probs, target, penalty)[paths].sum(1)
    cheapest = paths[totals <= totals.min() + 1e-9]
    first = gradient(log_probs, target, penalty, cheapest[0])
    tie = any((gradient(log_probs, target, penalty, path) != first).any() for path in cheapest[1:])
    return totals.min(), None if tie else first


def cases():
    """Batches of ten random cases: frames 1 to 6, tokens 0 to 6, 2 to 4 classes."""
    rng = np.random.default_rng(0)
    for number in range(CASES // 10):
        vocabulary, penalty = int(rng.integers(2, 5)), (1.0, 2.0, 5.0, 1.3)[number % 4]
        rows = []
        for _ in range(10):
            logits = torch.from_numpy(
                rng.normal(scale=2, size=(int(rng.integers(1, 7)), vocabulary))
            )
            rows.append(
                (logits.log_softmax(-1), rng.integers(1, vocabulary, size=int(rng.integers(0, 7))))
            )
        yield penalty, rows


def test_axe_and_its_gradient_are_those_of_the_cheapest_alignment():
    unique = total = 0
    for penalty, rows in cases():
        log_probs = Padded.stack([row for row, _ in rows], padding=float("nan"))
        targets = Padded.stack([torch.from_numpy(row) for _, row in rows], padding=-1)
        data = log_probs.data.requires_grad_()
        loss = aligned_cross_entropy(data, log_probs.lengths, *targets, skip_penalty=penalty)
        (found,) = torch.autograd.grad(loss.sum(), data)
        for row, (own, target) in enumerate(rows):
            expected, slope = brute_force(own.numpy(), target, penalty)
            assert loss[row].item() == pytest.approx(expected, abs=1e-9)
            total += 1
            if slope is not None:
                unique += 1
                np.testing.assert_allclose(found[row, : len(own)].numpy(), slope, atol=1e-12)
                assert not found[row, len(own) :].any()
    assert total == CASES and unique > 0.95 * CASES


def test_the_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(3)
    checked = 0
    for frames, tokens, penalty in (
        (6, 4, 1.0),
        (3, 5, 2.0),
        (5, 5, 5.0),
        (1, 3, 2.0),
        (4, 1, 1.0),
    ):
        logits = torch.randn(
            2, frames, 4, generator=generator, dtype=torch.float64, requires_grad=True
        )
        target = torch.randint(1, 4, (2, tokens), generator=generator)
        lengths = torch.tensor([frames, max(1, frames - 1)]), torch.tensor([tokens, tokens - 1])

        def loss(logits, target=target, lengths=lengths, penalty=penalty):
            return aligned_cross_entropy(
                logits.log_softmax(-1), lengths[0], target, lengths[1], 0, penalty
            )

        assert torch.autograd.gradcheck(loss, logits, eps=1e-6, atol=1e-6)
        checked += 1
    assert checked == 5
