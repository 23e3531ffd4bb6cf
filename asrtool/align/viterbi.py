"""CTC forced alignment: the most probable path of a given text (Graves et al. 2006, eq. 5).

A path runs through the states of  blank y_1 blank y_2 ... y_U blank,  numbered j = 0 ... 2 U;
p_t(j) is the posterior of state j's label in frame t:

    v_t(j) = p_t(j) max( v_{t-1}(j),  v_{t-1}(j - 1),  v_{t-1}(j - 2) )                          (1)

where the last one is allowed only for a token that differs from the previous token. A path begins
in state 0 or 1 and ends in state 2 U - 1 or 2 U. Of equal candidates the first one of (1) is taken,
of equal ends state 2 U - 1. NumPy computes all states of all utterances at once, frame by frame, in
float64: nothing has to be compiled before the first utterance.

The most probable labels of all frames are the best path of all texts. Where they spell the text, as
they do for most of what is recognised, they are the answer, and (1) is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from asrtool.types import Padded

INF = float("inf")


@dataclass(frozen=True)
class Alignment:
    """U tokens aligned to S frames: token u occupies the frames starts[u] ... ends[u] - 1."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    log_probs: tuple[float, ...]  # of each token, the mean over its frames
    score: float  # log-probability of the whole path, blanks included


def align(
    log_probs: Padded, tokens: Sequence[Sequence[int]], blank: int = 0
) -> list[Alignment | None]:
    """log_probs (B, S, V), tokens of each utterance -> alignments, None if there is no path.

    There is none if an utterance has fewer than `frames_needed` frames, or if every path has
    probability 0. Raises `ValueError` if the tokens contain the blank.
    """
    rows = [row.detach() for row in log_probs.unpad()]
    references = [list(map(int, row)) for row in tokens]
    for row in references:
        if blank in row:
            raise ValueError(
                f"align: the text contains the blank (token {blank}); use another token"
            )
    pairs = list(zip(references, rows, strict=True))
    paths = [_greedy(frames, row, blank) for row, frames in pairs]
    searched = [
        i
        for i, (row, frames) in enumerate(pairs)
        if paths[i] is None and frames_needed(row) <= len(frames)
    ]
    if searched:
        found = _best_paths([rows[i] for i in searched], [references[i] for i in searched], blank)
        for index, path in zip(searched, found, strict=True):
            paths[index] = path
    return [
        None if path is None else _describe(row, path, blank)
        for row, path in zip(rows, paths, strict=True)
    ]


def frames_needed(tokens: Sequence[int]) -> int:
    """The fewest frames of a path: one per token, and a blank between two equal ones."""
    return len(tokens) + sum(left == right for left, right in pairwise(tokens))


def _describe(log_probs: Tensor, path: np.ndarray, blank: int) -> Alignment | None:
    """The alignment of one path; log_probs (S, V), path (S,) the label of each frame."""
    labels = torch.from_numpy(path).to(log_probs.device)
    values = log_probs.gather(1, labels[:, None])[:, 0].double().cpu().numpy()
    score = float(values.sum())
    # NaN (score != score) if the log-probabilities themselves are not finite.
    if score == -INF or score != score:
        return None
    # A token lasts from the frame in which the label changes to it until the label changes again;
    # equal tokens in succession have a blank between them, by (1).
    before = np.concatenate([[blank], path[:-1]])
    starts = np.flatnonzero((path != blank) & (path != before))
    after = np.concatenate([path[1:], [blank]])
    ends = np.flatnonzero((path != blank) & (path != after)) + 1
    means = [float(values[start:end].mean()) for start, end in zip(starts, ends, strict=True)]
    return Alignment(tuple(starts.tolist()), tuple(ends.tolist()), tuple(means), score)


def _greedy(log_probs: Tensor, tokens: list[int], blank: int) -> np.ndarray | None:
    """The most probable label of each frame (S,), if these are the best path of the tokens: if they
    spell them, and no other label is as probable. log_probs (S, V).
    """
    if not len(log_probs):
        return None
    values = log_probs.float().cpu().numpy()
    path = values.argmax(axis=1)
    best = values[np.arange(len(path)), path]
    if np.count_nonzero(values == best[:, None]) != len(path):  # NaN or ties, which (1) decides
        return None
    changes = np.concatenate([[True], path[1:] != path[:-1]])
    return path if path[changes & (path != blank)].tolist() == tokens else None


def _best_paths(rows: list[Tensor], tokens: list[list[int]], blank: int) -> list[np.ndarray]:
    """(1): rows (S_b, V), tokens of each -> the label of each frame (S_b,)."""
    labels, emitted, columns = _states(rows, tokens, blank)
    # (S, B, 2 U + 1): 0, 1 or 2, by how many states the best path moved
    moves = np.zeros((len(emitted), *labels.shape), dtype=np.int8)
    barrier = np.full(labels.shape, -INF)  # -inf where (1) does not allow a step of two states
    barrier[:, 3::2][labels[:, 3::2] != labels[:, 1:-2:2]] = 0.0
    # The two extra columns stand for the states -1 and -2, so that (1) needs no special cases.
    values = np.full((len(rows), labels.shape[1] + 2), -INF)  # state j in column j + 2
    values[:, 2:4] = emitted[0].take(columns[:, :2])
    last = [len(row) - 1 for row in rows]
    paths = [np.empty(0, dtype=np.int64)] * len(rows)
    for frame in range(len(emitted)):
        if frame:
            values[:, 2:] = _advance(values, barrier, moves[frame]) + emitted[frame].take(columns)
        # Utterances end at their own last frame; later values of theirs are never read.
        for index in [index for index, end in enumerate(last) if end == frame]:
            states = _trace(values[index, 2:], 2 * len(tokens[index]), moves[: frame + 1, index])
            paths[index] = labels[index, states]
    return paths


def _states(
    rows: list[Tensor], tokens: list[list[int]], blank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, emissions and columns of the states.

    labels (B, 2 U + 1): of each state, blank after the last state of a row; emitted (S, B * K)
    float64: the log-probabilities of the K labels that occur, all utterances side by side; columns
    (B, 2 U + 1): the column of `emitted` of each state.
    """
    labels = np.full((len(rows), 2 * max(map(len, tokens)) + 1), blank, dtype=np.int64)
    for row, reference in zip(labels, tokens, strict=True):
        row[1 : 2 * len(reference) : 2] = reference
    # K is far smaller than V: gathered once, not once per state.
    occurring = [np.unique(row, return_inverse=True) for row in labels]
    width = max(len(distinct) for distinct, _ in occurring)
    emitted = np.zeros((max(map(len, rows)), len(rows), width))
    for index, (row, (distinct, _)) in enumerate(zip(rows, occurring, strict=True)):
        gathered = row[:, torch.from_numpy(distinct).to(row.device)]
        emitted[: len(row), index, : len(distinct)] = gathered.double().cpu().numpy()
    columns = np.stack([width * index + inverse for index, (_, inverse) in enumerate(occurring)])
    return labels, emitted.reshape(len(emitted), -1), columns


def _advance(values: np.ndarray, barrier: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """The maximum of (1) for all states (B, 2 U + 1); `moves` receives how many states it moved."""
    stay, step, skip = values[:, 2:], values[:, 1:-1], values[:, :-2] + barrier
    # Strict comparisons: of equal candidates the first one wins. The bool result is the move 0 or
    # 1.
    np.greater(step, stay, out=moves, casting="unsafe")
    best = np.maximum(stay, step)
    np.putmask(moves, skip > best, 2)
    return np.maximum(best, skip, out=best)


def _trace(values: np.ndarray, end: int, moves: np.ndarray) -> list[int]:
    """The states of the best path that ends in `end` or the state before it; moves (S, 2 U + 1)."""
    state = end if end == 0 or values[end] > values[end - 1] else end - 1
    states = []
    for row in moves[::-1]:
        states.append(state)
        state -= int(row[state])
    return states[::-1]
