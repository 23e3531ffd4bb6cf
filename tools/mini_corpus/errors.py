"""The error of the miniature corpora."""

from __future__ import annotations


class CorpusError(Exception):
    """The corpus cannot be made; the message gives the reason and the remedy."""
