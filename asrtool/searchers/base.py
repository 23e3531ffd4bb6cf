"""What a searcher, a scorer and a constraint are, and the registry of searchers.

Search sees a model only through `SearchModel`; a test may search over a table of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from asrtool.registry import Registry
from asrtool.types import EncoderOutput, Hypothesis, Padded


class Scorer(Protocol):
    """Rates the extensions of prefixes by log-probabilities, never above 0.

    Rows are utterance-major: row b * beam + k is beam k of utterance b; N = B * beam.
    """

    partial: bool  # True: rates pre-pruned candidates (N, K) instead of the whole vocabulary

    def start(self, encoded: EncoderOutput, beam: int) -> Any:
        """State of N empty prefixes."""

    def score(self, prefixes: Tensor, state: Any, candidates: Tensor | None) -> tuple[Tensor, Any]:
        """prefixes (N, U) incl. sos at 0, candidates (N, K) or None -> log-probabilities (N, V) or (N, K), state.

        The state returned holds what is needed to `select` and go on; it is not yet extended by a chosen token: the
        next call sees the longer prefixes.
        """

    def select(self, state: Any, rows: Tensor) -> Any:
        """State with row i taken from row rows[i], rows (N',).

        Whole utterances may be missing, for a search drops those that are done; the others keep their order, and a beam
        never leaves its utterance: utterance i of the new state is utterance rows[i * beam] // beam of the old one.
        """


class SearchModel(Protocol):
    """The part of a model that search uses."""

    blank: int
    eos: int
    frame_shift: float  # seconds per position
    streams: frozenset[str]  # names that training knew; `log_probs` has those that are frame-synchronous

    def log_probs(self, encoded: EncoderOutput, stream: str = "ctc") -> Padded: ...

    def scorers(self) -> Mapping[str, Scorer]: ...


class Constraint(Protocol):
    """Forbids or limits extensions."""

    def apply(self, scores: Tensor, prefixes: Tensor) -> Tensor:
        """scores (N, V), prefixes (N, U) incl. sos -> scores with forbidden extensions at -inf; nothing in place."""

    def select(self, rows: Tensor) -> Constraint:
        """The constraint for rows (N',), as `Scorer.select`; itself if rows are all alike to it."""


class Searcher:
    """Built by `SEARCHERS.build(config, model=a SearchModel)`. Results never depend on the batch an utterance is in."""

    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        """An n-best list per utterance, best first; tokens without sos/eos."""
        raise NotImplementedError


SEARCHERS: Registry[Searcher] = Registry("searcher")


def require_stream(model: SearchModel, name: str, searcher: str) -> None:
    """Raise before any audio is read if no loss trained the stream that a searcher needs."""
    if name not in model.streams:
        has = ", ".join(sorted(model.streams)) or "none"
        raise LookupError(f"{searcher}: the model has no stream '{name}' (it has: {has})")
