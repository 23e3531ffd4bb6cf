"""The searchers: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.searchers.base import SEARCHERS, Searcher

__all__ = ["SEARCHERS", "Searcher"]
