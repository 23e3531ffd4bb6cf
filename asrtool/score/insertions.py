"""Output without speech to support it: insertions per minute, and hallucinations by utterance.

There are three kinds of hallucination (symptoms that the summary of arXiv 2406.17272 names):

    silence     words where the reference has none
    length      more than twice as many words as the reference
    repetition  up to four words that occur three or more times in a row, while the reference has
                no such repetition
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asrtool.errors import UserError
from asrtool.score.align import ErrorCounts, count_pairs, total
from asrtool.score.bootstrap import Interval, draw_sums, interval, ratio
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.scoring import check_coverage, members_of

KINDS = ("silence", "length", "repetition")
RATIO = 2  # words of the hypothesis per word of the reference
LONGEST, TIMES = 4, 3  # maximum words of a repeated stretch, minimum number of repetitions


@dataclass(frozen=True, kw_only=True)
class Insertions:
    """The insertions and hallucinations of one set of utterances."""

    utterances: int
    minutes: float
    errors: ErrorCounts
    per_minute: float  # inserted words per minute of audio
    interval: Interval  # 95 %, utterances drawn
    hallucinations: Mapping[str, tuple[str, ...]]  # kind -> ids

    def json(self) -> dict:
        names = ("correct", "substitutions", "deletions", "insertions")
        return {
            "utterances": self.utterances,
            "minutes": round(self.minutes, 4),
            **{name: getattr(self.errors, name) for name in names},
            "reference": self.errors.reference,
            "insertions_per_minute": self.per_minute,
            "interval": self.interval,
            "hallucinations": {kind: list(ids) for kind, ids in self.hallucinations.items()},
        }


def measure(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    seconds: Mapping[str, float],
    *,
    metric: str = "wer",
    normalize: str = "none",
    missing: str = "error",
    labels: Mapping[str, str] | None = None,
) -> dict[str, Insertions]:
    """The insertions by value of a label; "all" is the whole set.

    labels: utterance id -> value, such as the noise level. `missing` as in `score`.
    """
    check_coverage(references, hypotheses, missing)
    # Written so that NaN counts as missing.
    unmeasured = [name for name in references if not seconds.get(name, 0) > 0]
    if unmeasured:
        needed = "insertions per minute need the duration of each utterance (utt2dur)"
        raise UserError(f"{needed}; '{unmeasured[0]}' has none")
    prepare, split = normalizer(normalize), splitter(metric)
    ids = list(references)
    pairs = [
        tuple(split(prepare(text)) for text in (references[name], hypotheses.get(name, "")))
        for name in ids
    ]
    counts = count_pairs(pairs)
    kinds = [kinds_of(*pair) for pair in pairs]
    groups = {"all": np.arange(len(ids))} | (
        members_of([labels[name] for name in ids]) if labels else {}
    )
    return {
        value: _of([ids[row] for row in rows], counts[rows], [kinds[row] for row in rows], seconds)
        for value, rows in groups.items()
    }


def _of(
    ids: Sequence[str], counts: np.ndarray, kinds: Sequence[set[str]], seconds: Mapping[str, float]
) -> Insertions:
    durations = np.array([seconds[name] for name in ids])
    minutes = float(durations.sum()) / 60
    milliseconds = (1000 * durations).round().astype(np.int64)
    sums = draw_sums(np.stack([counts[:, 3], milliseconds], axis=1))
    return Insertions(
        utterances=len(ids),
        minutes=minutes,
        errors=total(counts),
        per_minute=int(counts[:, 3].sum()) / minutes,
        interval=interval(ratio(sums[:, 0], sums[:, 1]) * 60000, len(ids)),
        hallucinations={
            kind: tuple(
                name for name, of_utterance in zip(ids, kinds, strict=True) if kind in of_utterance
            )
            for kind in KINDS
        },
    )


def kinds_of(reference: Sequence[str], hypothesis: Sequence[str]) -> set[str]:
    """The kinds of hallucination that a hypothesis shows."""
    names = set()
    if hypothesis and not reference:
        names.add("silence")
    if reference and len(hypothesis) > RATIO * len(reference):
        names.add("length")
    if any(
        times_in_row(hypothesis, n) >= TIMES > times_in_row(reference, n)
        for n in range(1, LONGEST + 1)
    ):
        names.add("repetition")
    return names


def times_in_row(words: Sequence[str], n: int) -> int:
    """The largest number of consecutive repetitions of any stretch of n words."""
    best = 0
    for start in range(len(words) - n + 1):
        stretch, times = words[start : start + n], 1
        while words[start + n * times : start + n * (times + 1)] == stretch:
            times += 1
        best = max(best, times)
    return best
