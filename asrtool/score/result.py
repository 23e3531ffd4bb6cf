"""`result.txt` in the layout of NIST sclite (`-s -o all dtl`): speaker tables, alignments, detailed
report, word lists.

Padding follows the width of characters on a terminal, so that Han characters line up; case is kept
as it is scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

import numpy as np

from asrtool.score.align import align
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.report import ScoreReport
from asrtool.score.sclite_table import Speaker, pad, tenth, width, write_tables

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
        file, title, [Speaker(speaker, report.counts[members]) for speaker, members in rows.items()]
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
    """Which tokens were confused, inserted and deleted, counted while the alignments are
    written.
    """

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
    whole = Speaker("", counts)
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
    """One utterance: its counts, then reference, hypothesis and tags one under another, `*` for no
    token.
    """
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
