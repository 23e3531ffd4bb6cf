"""The two speaker tables of NIST sclite's report, percentages and counts, column for column.

Tools and people parse them. Differences, on purpose: where a whole set has no reference token, the
totals are counts marked `*` as in a speaker's row (sclite prints 0.0); columns grow for large
numbers without being centred anew.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np

SYSTEM = " " * 21 + "SYSTEM SUMMARY PERCENTAGES by SPEAKER" + " " * 22
NOTES = """
* No Reference words for this/these speaker(s).  Word counts supplied
  rather than percents.
+ Speaker(s) with no reference data is ignored
"""


@dataclass(frozen=True)
class Speaker:
    """A name and the (utterances, 4) counts behind it: correct, substitutions, deletions,
    insertions.
    """

    name: str
    counts: np.ndarray

    @property
    def utterances(self) -> int:
        return len(self.counts)

    @property
    def words(self) -> int:
        return int(self.counts[:, :3].sum())

    @property
    def numbers(self) -> list[int]:
        """Correct, substituted, deleted, inserted, all errors; then the utterances with errors."""
        parts = self.counts.sum(axis=0).tolist()
        return [*parts, sum(parts[1:]), int((self.counts[:, 1:].sum(axis=1) > 0).sum())]

    @property
    def percents(self) -> list[float]:
        *words, wrong = self.numbers
        return [100 * number / max(self.words, 1) for number in words] + [
            100 * wrong / max(self.utterances, 1)
        ]


def summary(counts: np.ndarray) -> tuple[str, str]:
    """The header line and the `Sum/Avg` line of the percentages, as scripts grep them."""
    cells = [[_HEADER], [_percent_cells("Sum/Avg", Speaker("Sum/Avg", counts))]]
    header, row = _lines(cells, 6)
    return header, row


def write_tables(file: TextIO, title: str, speakers: Sequence[Speaker]) -> None:
    """The two speaker tables, percentages and counts."""
    everyone = np.concatenate([speaker.counts for speaker in speakers])
    percents = [_percent_cells(speaker.name, speaker) for speaker in speakers]
    total = _percent_cells("Sum/Avg", Speaker("", everyone))
    _write_table(file, title, percents, total, _percent_statistics(speakers), 6)
    if any(speaker.words == 0 for speaker in speakers):
        file.write(NOTES)
    counts = [_count_cells(speaker.name, speaker) for speaker in speakers]
    _write_table(
        file,
        title,
        counts,
        _count_cells("Sum", Speaker("", everyone)),
        _count_statistics(speakers),
        4,
    )


_HEADER = ("SPKR", "# Snt", "# Wrd ", "Corr ", "Sub ", "Del ", "Ins ", "Err ", "S.Err ")
Cells = Sequence[str]  # one string a column; numbers end in their mark: `*`, `+` or a space


def _percent_cells(name: str, speaker: Speaker) -> Cells:
    *cells, wrong = [f"{tenth(value)} " for value in speaker.percents]
    if speaker.words == 0:
        cells = [f"{number}*" for number in speaker.numbers[:-1]]
    return (name, f"{speaker.utterances} ", f"{speaker.words} ", *cells, wrong)


def _count_cells(name: str, speaker: Speaker) -> Cells:
    return (
        name,
        f"{speaker.utterances} ",
        f"{speaker.words} ",
        *(f"{number} " for number in speaker.numbers),
    )


def _percent_statistics(speakers: Sequence[Speaker]) -> list[Cells]:
    """Mean, standard deviation and median over speakers; percentages of words over those who have a
    reference word.
    """
    sizes = np.array([[speaker.utterances, speaker.words] for speaker in speakers], dtype=float)
    percents = np.array([speaker.percents for speaker in speakers])
    spoken = percents[sizes[:, 1] > 0, :-1]
    mark = " " if len(spoken) == len(speakers) else "+"
    return [
        (
            name,
            *(f"{tenth(statistic(column))} " for column in sizes.T),
            *(f"{tenth(statistic(column) if len(column) else 0.0)}{mark}" for column in spoken.T),
            f"{tenth(statistic(percents[:, -1]))} ",
        )
        for name, statistic in _STATISTICS
    ]


def _count_statistics(speakers: Sequence[Speaker]) -> list[Cells]:
    table = np.array(
        [[speaker.utterances, speaker.words, *speaker.numbers] for speaker in speakers], dtype=float
    )
    return [
        (name, *(f"{tenth(statistic(column))} " for column in table.T))
        for name, statistic in _STATISTICS
    ]


def _deviation(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


_STATISTICS: tuple[tuple[str, Callable[[np.ndarray], float]], ...] = (
    ("Mean", np.mean),
    ("S.D.", _deviation),
    ("Median", np.median),
)


def tenth(value: float) -> str:
    """One decimal, halves up as sclite rounds them."""
    return f"{math.floor(value * 10 + 0.5) / 10:.1f}"


def _lines(groups: Sequence[Sequence[Cells]], least_name: int, centered: int = -1) -> list[str]:
    """Lines of equal width; names stand left, those of group number `centered` in the middle of
    their column.
    """
    rows = [row for group in groups for row in group]
    name = max(least_name + 2, *(2 + width(row[0]) for row in rows if row[0] not in _OVERHANG))
    least = (6, 7, 6, 7, 7, 7, 7, 7)
    widths = [
        max(floor, *(len(row[k]) + (floor == 7) for row in rows))
        for k, floor in enumerate(least, start=1)
    ]
    lines = []
    for number, group in enumerate(groups):
        for row in group:
            first = center(row[0], name) if number == centered else pad(" " + row[0], name)
            cells = [f"{cell:>{size}}" for cell, size in zip(row[1:], widths, strict=True)]
            lines.append(f"|{first}|{''.join(cells[:2])}|{''.join(cells[2:])}|")
    return lines


_OVERHANG = ("Sum/Avg", "Median")  # may touch the bar of their column


def _write_table(
    file: TextIO,
    title: str,
    rows: list[Cells],
    total: Cells,
    statistics: list[Cells],
    least_name: int,
) -> None:
    header, *body = _lines([[_HEADER], rows, [total], statistics], least_name, centered=3)
    size = len(header) - 2
    thin = "|" + "+".join("-" * len(part) for part in header[1:-1].split("|")) + "|"
    thick = "|" + "=" * size + "|"
    spoken = [line for row in body[: len(rows)] for line in (thin, row)]
    lines = [
        "," + "-" * size + ".",
        "|" + center(title, size) + "|",
        "|" + "-" * size + "|",
        header,
        *spoken,
        thick,
        body[len(rows)],
        thick,
        *body[len(rows) + 1 :],
        "`" + "-" * size + "'",
    ]
    margin = " " * max(0, (80 - size - 2) // 2)
    file.write(f"\n\n\n{SYSTEM}\n\n" + "".join(f"{margin}{line}\n" for line in lines))


def width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def pad(text: str, size: int) -> str:
    return text + " " * (size - width(text))


def center(text: str, size: int) -> str:
    return pad(" " * max(0, (size - width(text)) // 2) + text, size)
