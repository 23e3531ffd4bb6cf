"""Input and output of the compiled and the plain prefix beam search, for one utterance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from asrtool.searchers import fusion
from asrtool.searchers.fusion import PrefixScore, Tables
from asrtool.searchers.lexicon import Lexicon


@dataclass(frozen=True)
class Settings:
    """Settings of a search. `tables`: None if a score has no compiled form."""

    beam: int
    blank: int
    skip: np.ndarray  # (V,) bool, True for tokens that no hypothesis may hold, blank among them
    width: int  # how many tokens of a frame, the most probable ones, may extend a prefix
    scores: Mapping[str, PrefixScore]  # other than CTC
    weights: Mapping[str, float]  # of `ctc` and of each score
    bonus: float  # per token
    word_score: float  # per word
    lexicon: Lexicon | None = field(repr=False)  # None: words neither count nor are limited
    tables: Tables | None = field(repr=False)

    @classmethod
    def make(
        cls,
        num_tokens: int,
        *,
        beam: int,
        blank: int = 0,
        excluded: tuple[int, ...] = (),
        candidates: int | None = None,
        scores: Mapping[str, PrefixScore] | None = None,
        weights: Mapping[str, float] | None = None,
        bonus: float = 0.0,
        word_score: float = 0.0,
        lexicon: Lexicon | None = None,
    ) -> Settings:
        """Raises `ValueError` for settings out of range or without effect.

        Without scores other than CTC, beam + 1 tokens of a frame suffice: if a prefix is extended
        by a less probable token, its extensions by `beam` more probable ones (one of the beam + 1
        may repeat the last token) rank higher and fill the beam.
        """
        scores = dict(scores or {})
        weights = {"ctc": 1.0, **dict.fromkeys(scores, 1.0), **(weights or {})}
        if beam < 1 or (candidates is not None and candidates < 1):
            raise ValueError(f"beam ({beam}) and candidates ({candidates}) must be at least 1")
        if weights["ctc"] <= 0 or set(weights) != {"ctc", *scores} or min(weights.values()) < 0:
            raise ValueError(
                f"weights must be those of ctc (above 0), {', '.join(scores)}; got {weights}"
            )
        outside = [token for token in (blank, *excluded) if not 0 <= token < num_tokens]
        if outside:
            raise ValueError(f"token {outside[0]} is outside the vocabulary of {num_tokens}")
        # A mask rather than a set: the kernel tests it for every token of every frame.
        skip = np.zeros(num_tokens, dtype=np.bool_)
        skip[[blank, *excluded]] = True
        width = num_tokens if candidates is None else min(candidates, num_tokens)
        if word_score and lexicon is None:
            raise ValueError("word_score needs a lexicon, which counts words")
        # Any other score may prefer a less probable token, so that the bound holds for CTC alone.
        if not scores and lexicon is None:
            width = min(width, beam + 1)
        if lexicon is not None and len(lexicon.codes) != num_tokens:
            raise ValueError(f"the lexicon has {len(lexicon.codes)} tokens, the model {num_tokens}")
        tables = fusion.tables(scores, num_tokens, lexicon)
        return cls(beam, blank, skip, width, scores, weights, bonus, word_score, lexicon, tables)

    def score(self, prefix: ScoredPrefix) -> float:
        """(4) of prefix_beam.py."""
        weighted = sum(self.weights[name] * value for name, value in prefix.parts.items())
        return weighted + self.bonus * len(prefix.tokens) + self.word_score * prefix.words


class ScoredPrefix(NamedTuple):
    """A prefix with unweighted parts; frames and log_probs are those of its best path."""

    tokens: tuple[int, ...]
    parts: dict[str, float]
    frames: list[int]
    log_probs: list[float]
    words: int = 0  # that count for word_score
