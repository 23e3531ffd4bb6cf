"""Scoring: error counts, alignments, normalisers, reports."""

from asrtool.score.align import ALIGNMENTS, ErrorCounts, align, count_errors
from asrtool.score.normalize import METRICS, NORMALIZERS
from asrtool.score.sclite import write_result
from asrtool.score.scoring import GroupScore, ScoreReport, score
from asrtool.score.transcripts import read_transcripts

__all__ = [
    "ALIGNMENTS",
    "METRICS",
    "NORMALIZERS",
    "ErrorCounts",
    "GroupScore",
    "ScoreReport",
    "align",
    "count_errors",
    "read_transcripts",
    "score",
    "write_result",
]
