"""The one error of the miniature corpora."""

from __future__ import annotations


class CorpusError(Exception):
    """The corpus cannot be made; the message says why and what to do."""
