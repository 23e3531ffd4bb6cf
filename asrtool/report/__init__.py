"""A scored test set as one HTML file that needs no server and no network."""

from asrtool.report.page import render
from asrtool.report.sources import ScoredSet, read

__all__ = ["ScoredSet", "read", "render"]
