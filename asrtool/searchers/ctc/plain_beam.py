"""The prefix beam search of prefix_beam.py in plain Python, for one utterance.

Its results equal those of the compiled search, up to rounding, at a fraction of the speed. It is
used if numba cannot be imported, or a language model has no compiled form (KenLM's binary files).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import nlargest
from math import exp, inf, log1p
from typing import Any

import numpy as np

from asrtool.searchers.ctc.settings import ScoredPrefix, Settings
from asrtool.searchers.lexicon import FORBIDDEN, OUTSIDE

# a token on a best path: link of the preceding token or None, frame, log-probability
Link = tuple[Any, int, float]


@dataclass
class Entry:
    """A prefix in the beam."""

    tokens: tuple[int, ...] = ()
    blank: float = -inf  # log b
    label: float = -inf  # log n
    best_blank: float = -inf  # of the best path alone
    best_label: float = -inf
    link_blank: Link | None = None  # its last token
    link_label: Link | None = None
    extra: float = 0.0  # weighted scores and bonuses other than CTC's
    shares: tuple[float, ...] = ()  # unweighted scores other than CTC's
    states: tuple[Any, ...] = ()
    words: int = 0  # that are complete
    spelled: int = OUTSIDE  # state of the lexicon
    total: float = field(default=-inf)

    def arrival(self, token: int) -> tuple[float, float, Link | None]:
        """log phi (1) of a following token, and score and last link of the best path before it."""
        if self.tokens[-1:] == (token,):
            return self.blank, self.best_blank, self.link_blank
        return self.total, *self.best()

    def best(self) -> tuple[float, Link | None]:
        """Score and last link of the best path, whether it ends in blank or in the last token."""
        if self.best_blank >= self.best_label:
            return self.best_blank, self.link_blank
        return self.best_label, self.link_label


def log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == -inf else a + log1p(exp(b - a))


class PlainPrefixBeam:
    """The search of one utterance: `advance` by frames, then `entries`, best first."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.scores = tuple(settings.scores.values())
        self.weights = tuple(settings.weights[name] for name in settings.scores)
        self.usable = [token for token, skipped in enumerate(settings.skip) if not skipped]
        self.frame = 0
        self.entries = [
            Entry(
                blank=0.0,
                best_blank=0.0,
                total=0.0,
                shares=(0.0,) * len(self.scores),
                states=tuple(score.start() for score in self.scores),
            )
        ]

    def advance(self, rows: np.ndarray) -> None:
        """rows (T, V) log-probabilities."""
        for row in rows.tolist():
            self._step(row)
            self.frame += 1

    def _step(self, row: list[float]) -> None:
        tokens = nlargest(self.settings.width, self.usable, key=row.__getitem__)
        # an extension that is in the beam already is merged in `_stay` instead of grown twice
        kept = {entry.tokens: entry for entry in self.entries}
        following = [self._stay(entry, kept.get(entry.tokens[:-1]), row) for entry in self.entries]
        for entry in self.entries:
            for token in tokens:
                if row[token] > -inf and (*entry.tokens, token) not in kept:
                    following.append(self._grow(entry, token, row[token]))
        following = [entry for entry in following if entry.total > -inf]
        self.entries = sorted(following, key=self.rank, reverse=True)[: self.settings.beam]

    def rank(self, entry: Entry) -> float:
        return self.settings.weights["ctc"] * entry.total + entry.extra

    def _stay(self, entry: Entry, parent: Entry | None, row: list[float]) -> Entry:
        """(2), (3) for a prefix that does not grow.

        parent: the entry without the last token, if it is in the beam.
        """
        best, link = entry.best()
        after = Entry(
            tokens=entry.tokens,
            extra=entry.extra,
            shares=entry.shares,
            states=entry.states,
            words=entry.words,
            spelled=entry.spelled,
            blank=entry.total + row[self.settings.blank],
            best_blank=best + row[self.settings.blank],
            link_blank=link,
        )
        if entry.tokens:
            token = entry.tokens[-1]
            label, best, link = entry.label, entry.best_label, entry.link_label
            if parent is not None and entry is not parent:
                arrival, other, before = parent.arrival(token)
                label = log_add(label, arrival)
                if other > best:
                    best, link = other, (before, self.frame, row[token])
            # the run of the last token goes on, and peaks in this frame
            if link is not None and link is entry.link_label and row[token] > link[2]:
                link = (link[0], self.frame, row[token])
            after.label, after.best_label, after.link_label = (
                label + row[token],
                best + row[token],
                link,
            )
        after.total = log_add(after.blank, after.label)
        return after

    def _grow(self, entry: Entry, token: int, log_prob: float) -> Entry:
        """(2) for a prefix that grows by a token; an entry with total -inf if it may not."""
        arrival, best, before = entry.arrival(token)
        if arrival == -inf:
            return Entry()
        # Before the scores: a forbidden word needs no look-up in the language model.
        words, spelled = 0, OUTSIDE
        if self.settings.lexicon is not None:
            words, spelled = self.settings.lexicon.extend(entry.spelled, token)
            if spelled == FORBIDDEN:
                return Entry()
        gains, states = [], []
        for score, state in zip(self.scores, entry.states, strict=True):
            gain, state = score.extend(state, token)
            gains.append(gain)
            states.append(state)
        return Entry(
            tokens=(*entry.tokens, token),
            label=arrival + log_prob,
            best_label=best + log_prob,
            link_label=(before, self.frame, log_prob),
            total=arrival + log_prob,
            states=tuple(states),
            words=entry.words + words,
            spelled=spelled,
            extra=entry.extra
            + self.settings.bonus
            + self.settings.word_score * words
            + sum(w * gain for w, gain in zip(self.weights, gains, strict=True)),
            shares=tuple(share + gain for share, gain in zip(entry.shares, gains, strict=True)),
        )

    def results(self, final: bool, most: int | None = None) -> list[ScoredPrefix]:
        """Up to `most` prefixes, best first; final: scores include the end of the text."""
        entries = self.entries
        if final and self.settings.lexicon is not None:
            end = self.settings.lexicon.end
            # if no entry ends in a whole word, incomplete words are kept
            entries = [e for e in entries if end(e.spelled) != FORBIDDEN] or entries
        prefixes = [self._scored(entry, final) for entry in entries]
        return sorted(prefixes, key=self.settings.score, reverse=True)[:most]

    def _scored(self, entry: Entry, final: bool) -> ScoredPrefix:
        shares = entry.shares
        if final:
            ends = (
                score.end(state) for score, state in zip(self.scores, entry.states, strict=True)
            )
            shares = tuple(share + end for share, end in zip(shares, ends, strict=True))
        frames, log_probs = [], []
        link = entry.best()[1]
        while link is not None:
            link, frame, value = link
            frames.append(frame)
            log_probs.append(value)
        parts = dict(zip(("ctc", *self.settings.scores), (entry.total, *shares), strict=True))
        words = entry.words
        if final and self.settings.lexicon is not None:
            words += max(self.settings.lexicon.end(entry.spelled), 0)
        return ScoredPrefix(entry.tokens, parts, frames[::-1], log_probs[::-1], words)
