"""CTC forced alignment: the most probable path among those that read a given text (Graves et al., ICML 2006, eq. 5).

A path runs through the states of  blank y_1 blank y_2 ... y_U blank,  numbered j = 0 ... 2 U; p_t(j) is the posterior
of state j's label in frame t:

    v_t(j) = p_t(j) max( v_{t-1}(j),  v_{t-1}(j - 1),  v_{t-1}(j - 2) where y differs from the token before )     (1)

It begins in state 0 or 1 and ends in state 2 U - 1 or 2 U. Among equal candidates the earlier one of (1) is taken, and
of the ends state 2 U - 1. Three kernels give the same path: torchaudio's kernel where its extension loads,
machine code by numba, and torch, which takes the utterances of a batch side by side. All add in float64; only where
paths are exactly as probable, torchaudio's choice may be another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool import torchaudio_adapter
from asrtool.types import Padded

INF = float("inf")
KERNELS = ("torchaudio", "numba", "torch")  # in the order of preference


@dataclass(frozen=True)
class Alignment:
    """Of U tokens over S frames: token u occupies the frames starts[u] ... ends[u] - 1."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    log_probs: tuple[float, ...]  # of each token, the mean over its frames
    score: float  # log-probability of the whole path, blanks included


def align(
    log_probs: Padded, tokens: Sequence[Sequence[int]], blank: int = 0, kernel: str | None = None
) -> list[Alignment | None]:
    """log_probs (B, S, V), tokens of each utterance -> alignments; None where no path can read the tokens.

    That is so where an utterance has fewer frames than tokens and blanks between repeated ones, or where every path has
    probability 0. `kernel`: one of KERNELS; by default the fastest that this machine has.
    """
    name = kernel or available()[0]
    rows = [row.detach() for row in log_probs.unpad()]
    wanted = [list(map(int, row)) for row in tokens]
    for row in wanted:
        if blank in row:
            raise ValueError(f"align: the text holds the blank (token {blank}), which no frame can read")
    possible = [frames_needed(row) <= len(frames) for row, frames in zip(wanted, rows, strict=True)]
    chosen = [index for index, yes in enumerate(possible) if yes]
    paths = _KERNELS[name]([rows[i] for i in chosen], [wanted[i] for i in chosen], blank) if chosen else []
    found: list[Alignment | None] = [None] * len(rows)
    for index, path in zip(chosen, paths, strict=True):
        found[index] = _describe(rows[index], path, blank)
    return found


def available() -> list[str]:
    """The kernels that this machine can run, the preferred one first."""
    usable = {
        "torchaudio": torchaudio_adapter.extension_available,
        "numba": _compiled() is not None,
        "torch": True,
    }
    return [name for name in KERNELS if usable[name]]


def frames_needed(tokens: Sequence[int]) -> int:
    """One for each token, and a blank between two that are the same."""
    return len(tokens) + sum(one == other for one, other in zip(tokens, tokens[1:], strict=False))


def _describe(log_probs: Tensor, path: np.ndarray, blank: int) -> Alignment | None:
    """log_probs (S, V), path (S,): the label of each frame."""
    labels = torch.from_numpy(path.astype(np.int64))
    values = log_probs.double().cpu().gather(1, labels[:, None])[:, 0].numpy()
    score = float(values.sum())
    if score == -INF or score != score:
        return None
    before = np.concatenate([[blank], path[:-1]])
    starts = np.flatnonzero((path != blank) & (path != before))
    after = np.concatenate([path[1:], [blank]])
    ends = np.flatnonzero((path != blank) & (path != after)) + 1
    means = [float(values[start:end].mean()) for start, end in zip(starts, ends, strict=True)]
    return Alignment(tuple(starts.tolist()), tuple(ends.tolist()), tuple(means), score)


# -- torchaudio's kernel ---------------------------------------------------


def _by_torchaudio(rows: list[Tensor], tokens: list[list[int]], blank: int) -> list[np.ndarray]:
    forced_align = torchaudio_adapter.require().functional.forced_align
    paths = []
    for log_probs, wanted in zip(rows, tokens, strict=True):
        if not wanted:  # the kernel refuses a text without tokens
            paths.append(np.full(len(log_probs), blank))
            continue
        targets = torch.tensor([wanted], dtype=torch.int32, device=log_probs.device)
        labels, _ = forced_align(log_probs.double()[None], targets, blank=blank)
        paths.append(labels[0].cpu().numpy())
    return paths


# -- machine code ----------------------------------------------------------


def _by_numba(rows: list[Tensor], tokens: list[list[int]], blank: int) -> list[np.ndarray]:
    best_path = _compiled()
    return [
        best_path(log_probs.double().cpu().numpy(), np.array(wanted, dtype=np.int64), blank)
        for log_probs, wanted in zip(rows, tokens, strict=True)
    ]


@cache
def _compiled() -> Callable | None:
    try:
        import numba
    except ImportError:
        return None
    return numba.njit(_best_path)


def _best_path(log_probs: np.ndarray, tokens: np.ndarray, blank: int) -> np.ndarray:
    """(1) for one utterance: log_probs (S, V) float64, tokens (U,) -> the label of each frame (S,)."""
    frames, states = log_probs.shape[0], 2 * len(tokens) + 1
    moves = np.zeros((frames, states), dtype=np.int8)
    values = np.full(states, -np.inf)
    before = np.full(states, -np.inf)
    if frames:
        values[0] = log_probs[0, blank]
        if states > 1:
            values[1] = log_probs[0, tokens[0]]
    for frame in range(1, frames):
        values, before = before, values
        first = max(0, states - 2 * (frames - frame))  # from earlier states the end is out of reach
        for state in range(first, min(states, 2 * frame + 2)):
            best, move = before[state], 0
            if state > 0 and before[state - 1] > best:
                best, move = before[state - 1], 1
            token = state // 2
            if (
                state % 2 == 1
                and state > 1
                and tokens[token] != tokens[token - 1]
                and before[state - 2] > best
            ):
                best, move = before[state - 2], 2
            values[state] = best + log_probs[frame, tokens[token] if state % 2 == 1 else blank]
            moves[frame, state] = move
        for state in range(first):
            values[state] = -np.inf
    path = np.empty(frames, dtype=np.int64)
    state = states - 1
    if states > 1 and not values[states - 1] > values[states - 2]:
        state = states - 2
    for frame in range(frames - 1, -1, -1):
        path[frame] = tokens[state // 2] if state % 2 == 1 else blank
        state -= moves[frame, state]
    return path


# -- torch -----------------------------------------------------------------


def _by_torch(rows: list[Tensor], tokens: list[list[int]], blank: int) -> list[np.ndarray]:
    """(1) for all utterances at once, state by state in vectors: B x (2 U + 1) numbers a frame."""
    device = rows[0].device
    frames = Padded.stack([row.double() for row in rows])
    padded = Padded.stack([torch.tensor(row, dtype=torch.int64, device=device) for row in tokens], padding=blank)
    labels = torch.full((len(rows), 2 * padded.data.shape[1] + 1), blank, dtype=torch.int64, device=device)
    labels[:, 1::2] = padded.data
    may_skip = torch.zeros_like(labels, dtype=torch.bool)
    may_skip[:, 3::2] = padded.data[:, 1:] != padded.data[:, :-1]
    emitted = frames.data.gather(2, labels[:, None].expand(-1, frames.data.shape[1], -1))  # (B, S, 2 U + 1)
    values = torch.full_like(emitted[:, 0], -INF)
    values[:, :2] = emitted[:, 0, :2]
    moves = torch.zeros(emitted.shape, dtype=torch.int8, device=device)
    for frame in range(1, emitted.shape[1]):
        best, move = values, torch.zeros_like(moves[:, 0])
        for step in (1, 2):
            other = F.pad(values, (step, 0), value=-INF)[:, : values.shape[1]]
            better = other > best if step == 1 else (other > best) & may_skip
            best, move = torch.where(better, other, best), torch.where(better, step, move)
        going = (frame < frames.lengths)[:, None]
        values = torch.where(going, best + emitted[:, frame], values)
        moves[:, frame] = torch.where(going, move, 0)
    last = 2 * padded.lengths[:, None]
    token_end = values.gather(1, (last - 1).clamp(min=0))
    state = torch.where((last > 0) & ~(values.gather(1, last) > token_end), last - 1, last)
    states = torch.empty(emitted.shape[:2], dtype=torch.int64, device=device)
    for frame in range(emitted.shape[1] - 1, -1, -1):  # behind a row's end its moves are 0
        states[:, frame : frame + 1] = state
        state = state - moves[:, frame].gather(1, state)
    paths = labels.gather(1, states).cpu().numpy()
    return [path[:length] for path, length in zip(paths, frames.lengths.tolist(), strict=True)]


_KERNELS = {"torchaudio": _by_torchaudio, "numba": _by_numba, "torch": _by_torch}
