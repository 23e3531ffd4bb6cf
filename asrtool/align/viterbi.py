"""CTC forced alignment: the most probable path of a given text (Graves et al. 2006, eq. 5).

A path runs through the states of  blank y_1 blank y_2 ... y_U blank,  numbered j = 0 ... 2 U;
p_t(j) is the posterior of state j's label in frame t:

    v_t(j) = p_t(j) max( v_{t-1}(j),  v_{t-1}(j - 1),  v_{t-1}(j - 2) )                          (1)

where the last one is allowed only for a token that differs from the token before. A path begins in
state 0 or 1 and ends in state 2 U - 1 or 2 U. Among equal candidates the first of (1) is taken, and
of the ends state 2 U - 1. NumPy computes all states of all utterances at once, frame by frame, in
float64: nothing has to be compiled before the first utterance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asrtool.types import Padded

INF = float("inf")


@dataclass(frozen=True)
class Alignment:
    """Of U tokens over S frames: token u occupies the frames starts[u] ... ends[u] - 1."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    log_probs: tuple[float, ...]  # of each token, the mean over its frames
    score: float  # log-probability of the whole path, blanks included


def align(
    log_probs: Padded, tokens: Sequence[Sequence[int]], blank: int = 0
) -> list[Alignment | None]:
    """log_probs (B, S, V), tokens of each utterance -> alignments, or None where there is no path.

    There is none in an utterance with fewer frames than tokens and blanks between repeated ones, or
    if every path has probability 0. Raises `ValueError` for a text with blanks.
    """
    rows = [row.detach() for row in log_probs.unpad()]
    wanted = [list(map(int, row)) for row in tokens]
    for row in wanted:
        if blank in row:
            raise ValueError(
                f"align: the text contains the blank (token {blank}); use another token"
            )
    possible = [frames_needed(row) <= len(frames) for row, frames in zip(wanted, rows, strict=True)]
    chosen = [index for index, yes in enumerate(possible) if yes]
    paths = (
        _best_paths([rows[i] for i in chosen], [wanted[i] for i in chosen], blank) if chosen else []
    )
    alignments: list[Alignment | None] = [None] * len(rows)
    for index, path in zip(chosen, paths, strict=True):
        alignments[index] = _describe(rows[index], path, blank)
    return alignments


def frames_needed(tokens: Sequence[int]) -> int:
    """One for each token, and a blank between two that are the same."""
    return len(tokens) + sum(one == other for one, other in zip(tokens, tokens[1:], strict=False))


def _describe(log_probs: Tensor, path: np.ndarray, blank: int) -> Alignment | None:
    """log_probs (S, V), path (S,): the label of each frame."""
    labels = torch.from_numpy(path).to(log_probs.device)
    values = log_probs.gather(1, labels[:, None])[:, 0].double().cpu().numpy()
    score = float(values.sum())
    if score == -INF or score != score:
        return None
    before = np.concatenate([[blank], path[:-1]])
    starts = np.flatnonzero((path != blank) & (path != before))
    after = np.concatenate([path[1:], [blank]])
    ends = np.flatnonzero((path != blank) & (path != after)) + 1
    means = [float(values[start:end].mean()) for start, end in zip(starts, ends, strict=True)]
    return Alignment(tuple(starts.tolist()), tuple(ends.tolist()), tuple(means), score)


def _best_paths(rows: list[Tensor], tokens: list[list[int]], blank: int) -> list[np.ndarray]:
    """(1): rows (S_b, V), tokens of each -> the label of each frame (S_b,)."""
    labels, emitted, columns = _states(rows, tokens, blank)
    # (S, B, 2 U + 1): 0, 1 or 2, by how many states the best path moved
    moves = np.zeros((len(emitted), *labels.shape), dtype=np.int8)
    barrier = np.full(labels.shape, -INF)  # -inf where (1) does not allow a step of two states
    barrier[:, 3::2][labels[:, 3::2] != labels[:, 1:-2:2]] = 0.0
    values = np.full((len(rows), labels.shape[1] + 2), -INF)  # state j in column j + 2
    values[:, 2:4] = emitted[0].take(columns[:, :2])
    last = [len(row) - 1 for row in rows]
    paths = [np.empty(0, dtype=np.int64)] * len(rows)
    for frame in range(len(emitted)):
        if frame:
            values[:, 2:] = _advance(values, barrier, moves[frame]) + emitted[frame].take(columns)
        for index in [index for index, end in enumerate(last) if end == frame]:
            states = _trace(values[index, 2:], 2 * len(tokens[index]), moves[: frame + 1, index])
            paths[index] = labels[index, states]
    return paths


def _states(
    rows: list[Tensor], tokens: list[list[int]], blank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, emissions and columns of the states.

    labels (B, 2 U + 1): of each state, blank behind the end of a row; emitted (S, B * K) float64:
    the log-probabilities of the labels that occur, of all utterances side by side; columns (B, 2 U
    + 1): the column of emitted of each state.
    """
    labels = np.full((len(rows), 2 * max(map(len, tokens)) + 1), blank, dtype=np.int64)
    for row, wanted in zip(labels, tokens, strict=True):
        row[1 : 2 * len(wanted) : 2] = wanted
    occurring = [np.unique(row, return_inverse=True) for row in labels]
    width = max(len(used) for used, _ in occurring)
    emitted = np.zeros((max(map(len, rows)), len(rows), width))
    for index, (row, (used, _)) in enumerate(zip(rows, occurring, strict=True)):
        chosen = row[:, torch.from_numpy(used).to(row.device)]
        emitted[: len(row), index, : len(used)] = chosen.double().cpu().numpy()
    columns = np.stack([width * index + inverse for index, (_, inverse) in enumerate(occurring)])
    return labels, emitted.reshape(len(emitted), -1), columns


def _advance(values: np.ndarray, barrier: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """The maximum of (1) for all states (B, 2 U + 1); `moves` gets how many states back it is."""
    stay, step, skip = values[:, 2:], values[:, 1:-1], values[:, :-2] + barrier
    np.greater(step, stay, out=moves, casting="unsafe")
    best = np.maximum(stay, step)
    np.putmask(moves, skip > best, 2)
    return np.maximum(best, skip, out=best)


def _trace(values: np.ndarray, end: int, moves: np.ndarray) -> list[int]:
    """The states of the path that ends in `end` or the state before; moves (S, 2 U + 1)."""
    state = end if end == 0 or values[end] > values[end - 1] else end - 1
    states = []
    for row in moves[::-1]:
        states.append(state)
        state -= int(row[state])
    return states[::-1]
