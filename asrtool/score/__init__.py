"""Scoring: error counts, alignments, normalisers, reports."""

from asrtool.score.align import ALIGNMENTS, ErrorCounts, align, count_errors
from asrtool.score.normalize import METRICS, NORMALIZERS
from asrtool.score.report import GroupScore, ScoreReport
from asrtool.score.result import write_result
from asrtool.score.scoring import score
from asrtool.score.transcripts import TranscriptError, read_transcripts

__all__ = [
    "ALIGNMENTS",
    "METRICS",
    "NORMALIZERS",
    "ErrorCounts",
    "GroupScore",
    "ScoreReport",
    "TranscriptError",
    "align",
    "count_errors",
    "read_transcripts",
    "score",
    "write_result",
]
