"""Alignments and error counts of token sequences.

Two alignments, both exact:

* `levenshtein`: the minimum of substitutions + deletions + insertions, by RapidFuzz, the library
  behind jiwer. Several alignments may reach it; their total is the same, and the library decides
  the split into S, D and I.
* `sclite`: NIST sclite's weights (substitution 4, deletion 3, insertion 3) and its preference among
  equal costs: from the end, a match or substitution, then an insertion, then a deletion. Its total
  may exceed the minimum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from asrtool.compiled import compiled

ALIGNMENTS = ("levenshtein", "sclite")
TAGS = "CSDI"  # correct, substitution, deletion, insertion: the columns of every count array
CORRECT, SUBSTITUTION, DELETION, INSERTION = range(4)  # indices of TAGS
SUBSTITUTION_COST, GAP_COST = 4, 3  # sclite's weights; a gap is an insertion or a deletion


@dataclass(frozen=True)
class ErrorCounts:
    """Counts of correct, substituted, deleted and inserted tokens."""

    correct: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.correct + other.correct,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference(self) -> int:
        """Number of reference tokens."""
        return self.correct + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per reference token, as a fraction; without reference tokens, 0 if there is no
        error, else infinity.
        """
        if self.reference == 0:
            return math.inf if self.errors else 0.0
        return self.errors / self.reference


def count_errors(references: Sequence[Sequence], hypotheses: Sequence[Sequence]) -> ErrorCounts:
    """Count the errors of paired token sequences: lists of ids or words, or strings."""
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references but {len(hypotheses)} hypotheses; expected the same "
            "number"
        )
    return total(count_pairs(zip(references, hypotheses, strict=True)))


def count_pairs(
    pairs: Iterable[tuple[Sequence, Sequence]], alignment: str = "levenshtein"
) -> np.ndarray:
    """Count C, S, D, I of each (reference, hypothesis): (utterances, 4) int64."""
    count = _levenshtein_counts if _checked(alignment) == "levenshtein" else _sclite_counts
    rows = np.fromiter((number for pair in pairs for number in count(*pair)), dtype=np.int64)
    return rows.reshape(-1, 4)


def total(counts: np.ndarray) -> ErrorCounts:
    """The sum of (utterances, 4) counts."""
    return ErrorCounts(*counts.sum(axis=0).tolist())


def align(reference: Sequence, hypothesis: Sequence, alignment: str = "levenshtein") -> list[tuple]:
    """Align two sequences: (tag, reference token or None, hypothesis token or None) per step."""
    tags = _levenshtein_tags if _checked(alignment) == "levenshtein" else _sclite_tags
    left, right = iter(reference), iter(hypothesis)
    return [
        (tag, None if tag == "I" else next(left), None if tag == "D" else next(right))
        for tag in tags(reference, hypothesis)
    ]


def _checked(alignment: str) -> str:
    if alignment not in ALIGNMENTS:
        raise ValueError(f"unknown alignment '{alignment}' (valid: {', '.join(ALIGNMENTS)})")
    return alignment


def _levenshtein_counts(reference: Sequence, hypothesis: Sequence) -> tuple[int, int, int, int]:
    tags = [edit.tag for edit in Levenshtein.editops(reference, hypothesis)]
    substitutions, deletions = tags.count("replace"), tags.count("delete")
    return (
        len(reference) - substitutions - deletions,
        substitutions,
        deletions,
        len(tags) - substitutions - deletions,
    )


def _levenshtein_tags(reference: Sequence, hypothesis: Sequence) -> str:
    letters = {"equal": "C", "replace": "S", "delete": "D", "insert": "I"}
    blocks = Levenshtein.opcodes(reference, hypothesis)
    return "".join(
        letters[block.tag] * max(block.src_end - block.src_start, block.dest_end - block.dest_start)
        for block in blocks
    )


def _sclite_counts(reference: Sequence, hypothesis: Sequence) -> list[int]:
    return np.bincount(_sclite_moves(reference, hypothesis), minlength=4).tolist()


def _sclite_tags(reference: Sequence, hypothesis: Sequence) -> str:
    return "".join(TAGS[move] for move in _sclite_moves(reference, hypothesis))


def _sclite_moves(reference: Sequence, hypothesis: Sequence) -> np.ndarray:
    numbers: dict = {}
    left = np.array(
        [numbers.setdefault(token, len(numbers)) for token in reference], dtype=np.int64
    )
    right = np.array(
        [numbers.setdefault(token, len(numbers)) for token in hypothesis], dtype=np.int64
    )
    return sclite_moves(left, right)


@compiled
def sclite_moves(reference: np.ndarray, hypothesis: np.ndarray) -> np.ndarray:
    """Return the moves of sclite's path, left to right, as indices of `TAGS`."""
    rows, columns = len(reference), len(hypothesis)
    # One row of costs, overwritten from left to right; the moves of all cells, for backtracking.
    moves = np.empty((rows + 1, columns + 1), dtype=np.uint8)
    costs = GAP_COST * np.arange(columns + 1)
    moves[0, :] = INSERTION
    for i in range(1, rows + 1):
        diagonal = costs[0]  # cost of (i - 1, j - 1), which the row has overwritten already
        costs[0] = GAP_COST * i
        moves[i, 0] = DELETION
        for j in range(1, columns + 1):
            same = reference[i - 1] == hypothesis[j - 1]
            best, move = (
                (diagonal, CORRECT) if same else (diagonal + SUBSTITUTION_COST, SUBSTITUTION)
            )
            # strictly less: among equal costs the diagonal wins, then the insertion
            if costs[j - 1] + GAP_COST < best:
                best, move = costs[j - 1] + GAP_COST, INSERTION
            if costs[j] + GAP_COST < best:
                best, move = costs[j] + GAP_COST, DELETION
            diagonal = costs[j]
            costs[j] = best
            moves[i, j] = move
    path = np.empty(rows + columns, dtype=np.uint8)
    i, j, start = rows, columns, rows + columns
    while i > 0 or j > 0:
        start -= 1
        move = moves[i, j]
        path[start] = move
        if move != INSERTION:
            i -= 1
        if move != DELETION:
            j -= 1
    return path[start:]
