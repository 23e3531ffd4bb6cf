"""`result.txt` in the layout of NIST sclite (`-s -o all dtl`): speaker tables, alignments, detailed
report, word lists.

Padding follows the width of characters on a terminal, so that Han characters line up; case is kept
as scored.

Tools and people parse the tables, so they follow sclite column by column. Two differences are
intended: if a whole set has no reference token, the totals are counts marked `*` as in a speaker's
row (sclite prints 0.0), and columns grow for large numbers without being centred again.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from asrtool.score.align import align
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.scoring import ScoreReport

SYSTEM = " " * 21 + "SYSTEM SUMMARY PERCENTAGES by SPEAKER" + " " * 22
NOTES = """
* No Reference words for this/these speaker(s).  Word counts supplied
  rather than percents.
+ Speaker(s) with no reference data is ignored
"""


@dataclass(frozen=True)
class SpeakerCounts:
    """A speaker and the (utterances, 4) counts of C, S, D, I."""

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


def summary_lines(counts: np.ndarray) -> tuple[str, str]:
    """The header line and the `Sum/Avg` line of the percentages, as scripts grep them."""
    cells = [[_HEADER], [_percent_cells("Sum/Avg", SpeakerCounts("Sum/Avg", counts))]]
    header, row = _lines(cells, 6)
    return header, row


def write_tables(file: TextIO, title: str, speakers: Sequence[SpeakerCounts]) -> None:
    """The two speaker tables, percentages and counts."""
    everyone = np.concatenate([speaker.counts for speaker in speakers])
    percents = [_percent_cells(speaker.name, speaker) for speaker in speakers]
    total = _percent_cells("Sum/Avg", SpeakerCounts("", everyone))
    _write_table(file, title, percents, total, _percent_statistics(speakers), 6)
    if any(speaker.words == 0 for speaker in speakers):
        file.write(NOTES)
    counts = [_count_cells(speaker.name, speaker) for speaker in speakers]
    _write_table(
        file,
        title,
        counts,
        _count_cells("Sum", SpeakerCounts("", everyone)),
        _count_statistics(speakers),
        4,
    )


_HEADER = ("SPKR", "# Snt", "# Wrd ", "Corr ", "Sub ", "Del ", "Ins ", "Err ", "S.Err ")
Cells = Sequence[str]  # a string per column; numbers end in their mark: `*`, `+` or a space


def _percent_cells(name: str, speaker: SpeakerCounts) -> Cells:
    *cells, wrong = [f"{tenth(value)} " for value in speaker.percents]
    if speaker.words == 0:
        cells = [f"{number}*" for number in speaker.numbers[:-1]]
    return (name, f"{speaker.utterances} ", f"{speaker.words} ", *cells, wrong)


def _count_cells(name: str, speaker: SpeakerCounts) -> Cells:
    return (
        name,
        f"{speaker.utterances} ",
        f"{speaker.words} ",
        *(f"{number} " for number in speaker.numbers),
    )


def _percent_statistics(speakers: Sequence[SpeakerCounts]) -> list[Cells]:
    """Mean, standard deviation and median over speakers; for percentages of words, over speakers
    with reference words.
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


def _count_statistics(speakers: Sequence[SpeakerCounts]) -> list[Cells]:
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
    """One decimal, with halves rounded up as in sclite."""
    return f"{math.floor(value * 10 + 0.5) / 10:.1f}"


def _lines(groups: Sequence[Sequence[Cells]], least_name: int, centered: int = -1) -> list[str]:
    """Format rows as lines of equal width; the names of group `centered` are centred."""
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


Alignment = Sequence[tuple]  # (tag, reference token or None, hypothesis token or None)


def write_result(
    file: TextIO,
    report: ScoreReport,
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    speakers: Mapping[str, str],
    title: str,
) -> None:
    """Write all of `result.txt`, utterance by utterance; `references` and `hypotheses` are the
    texts that were scored.

    `speakers`: utterance id -> speaker; `title`: the name of the system, above the tables.
    """
    prepare, split = normalizer(report.normalizer), splitter(report.metric)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(report.ids):
        rows.setdefault(speakers[name], []).append(row)
    write_tables(
        file,
        title,
        [SpeakerCounts(speaker, report.counts[members]) for speaker, members in rows.items()],
    )
    file.write(
        f"\n\n\t\tDUMP OF SYSTEM ALIGNMENT STRUCTURE\n\nSystem name:   {title}\n\nSpeakers: \n"
    )
    file.writelines(f"{number:>5}:  {speaker}\n" for number, speaker in enumerate(rows))
    file.write("\n")
    lists = WordLists()
    for number, (speaker, members) in enumerate(rows.items()):
        file.write(f"Speaker sentences{number:>4}:  {speaker}   #utts: {len(members)}\n")
        for row in members:
            name = report.ids[row]
            tokens = [split(prepare(text)) for text in (references[name], hypotheses.get(name, ""))]
            alignment = align(*tokens, report.alignment)
            write_alignment(file, name, report.counts[row].tolist(), alignment)
            lists.add(alignment)
    file.write("\n")
    write_performance(file, title, report.counts)
    lists.write(file)


class WordLists:
    """Counts of confused, inserted and deleted tokens, summed over alignments."""

    def __init__(self) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.inserted: Counter[str] = Counter()
        self.deleted: Counter[str] = Counter()

    def add(self, alignment: Alignment) -> None:
        for tag, reference, hypothesis in alignment:
            if tag == "S":
                self.pairs[reference, hypothesis] += 1
            elif tag == "I":
                self.inserted[hypothesis] += 1
            elif tag == "D":
                self.deleted[reference] += 1

    def write(self, file: TextIO) -> None:
        missed: Counter[str] = Counter()
        wrong: Counter[str] = Counter()
        for (reference, hypothesis), number in self.pairs.items():
            missed[reference] += number
            wrong[hypothesis] += number
        pairs = Counter({" ==> ".join(pair): number for pair, number in self.pairs.items()})
        lists = {
            "CONFUSION PAIRS": (pairs, ""),
            "INSERTIONS": (self.inserted, ""),
            "DELETIONS": (self.deleted, ""),
            "SUBSTITUTIONS": (
                missed,
                "'Substitution' words are those reference words\n"
                "        for which the recognizer supplied an incorrect word.",
            ),
            "FALSELY RECOGNIZED": (
                wrong,
                "'Falsely Recognized' words are those hypothesis words\n"
                "        which the recognizer incorrectly substituted for a reference word.",
            ),
        }
        for name, (words, note) in lists.items():
            file.write(f"{name:<33}Total                 ({len(words)})\n")
            file.write(f"{'':<33}With >=  1 occurrences ({len(words)})\n\n")
            ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
            for rank, (word, number) in enumerate(ranked, start=1):
                file.write(f"{rank:>4}: {number:>4}  ->  {word}\n")
            file.write(
                f"     -------\n{words.total():>10}\n\n\n"
                + (f"* NOTE: The {note}\n\n\n" if note else "\n")
            )


def write_performance(file: TextIO, title: str, counts: np.ndarray) -> None:
    """The overall part of sclite's detailed report."""
    whole = SpeakerCounts("", counts)
    correct, substitutions, deletions, insertions, errors, wrong = whole.numbers
    sentences = [int((counts[:, column] > 0).sum()) for column in (1, 2, 3)]
    file.write(
        f"DETAILED OVERALL REPORT FOR THE SYSTEM: {title}\n\nSENTENCE RECOGNITION PERFORMANCE\n\n"
    )
    file.write(f" sentences                                        {whole.utterances:>4}\n")
    file.write(_share(" with errors", 38, wrong, whole.utterances) + "\n")
    for name, number in zip(("substitions", "deletions", "insertions"), sentences, strict=True):
        file.write(_share(f"   with {name}", 38, number, whole.utterances))
    file.write("\n\nWORD RECOGNITION PERFORMANCE\n\n")
    for name, number in (("Total Error", errors), ("Correct", correct)):
        file.write(_share(f"Percent {name:<18}=", 27, number, whole.words) + "\n")
    for name, number in (
        ("Substitution", substitutions),
        ("Deletions", deletions),
        ("Insertions", insertions),
    ):
        file.write(_share(f"Percent {name:<18}=", 27, number, whole.words))
    accuracy = tenth(100 * (whole.words - errors) / whole.words) if whole.words else "UNDEF"
    file.write(f"Percent Word Accuracy     =  {accuracy:>5}%\n\n\n")
    hypothesis = correct + substitutions + insertions
    for name, number in (
        ("Ref.", whole.words),
        ("Hyp.", hypothesis),
        ("Aligned", whole.words + insertions),
    ):
        file.write(f"{name + ' words':<26}={'':>11}({number:>4})\n")
    file.write("\n")


def _share(name: str, size: int, number: int, whole: int) -> str:
    percent = tenth(100 * number / whole) if whole else "UNDEF"
    return f"{name:<{size}}  {percent:>5}%   ({number:>4})\n"


def write_alignment(file: TextIO, name: str, counts: Iterable[int], alignment: Alignment) -> None:
    """Write one utterance: counts, reference, hypothesis and tags; `*` stands for no token."""
    file.write(f"id: ({name})\nScores: (#C #S #D #I) {' '.join(map(str, counts))}\n")
    if alignment:
        above, below, tags = [], [], []
        for tag, reference, hypothesis in alignment:
            if tag == "C":
                above.append(reference)
                below.append(reference)
                tags.append(" " * width(reference))
                continue
            size = max(width(reference or ""), width(hypothesis or ""))
            above.append("*" * size if reference is None else pad(reference, size))
            below.append("*" * size if hypothesis is None else pad(hypothesis, size))
            tags.append(f"{tag:<{size}}")
        file.write(f"REF:  {' '.join(above)} \nHYP:  {' '.join(below)} \nEval: {' '.join(tags)} \n")
    file.write("\n")
