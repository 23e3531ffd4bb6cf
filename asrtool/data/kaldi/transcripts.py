"""Characters in transcripts that are rarely intended: invisible ones, odd white space, marks."""

from __future__ import annotations

import re
import unicodedata

from asrtool.data.kaldi.form import about
from asrtool.data.kaldi.tables import Problem, Table, first
from asrtool.system import characters

# white space that Kaldi does not treat as a space: U+00A0, U+3000 ...
SPACE = re.compile(r"[^\S \t]")
# invisible characters, each of which would become a token
HIDDEN = characters.HIDDEN
LOST = re.compile("\ufffd")  # U+FFFD replaces bytes that could not be decoded
# words with a special meaning
MARK = re.compile(r"(?:^|\s)(?:</?s>|<eps>|#0|<blank>|<sos/eos>)(?:\s|$)")


def is_clean(text: str) -> bool:
    """Whether `check` finds no fault in the characters of a transcript."""
    return (text.isascii() and text.isprintable() and "<" not in text and "#0" not in text) or not (
        SPACE.search(text) or HIDDEN.search(text) or MARK.search(text) or LOST.search(text)
    )


def cleaned(text: str) -> str:
    """The transcript with plain spaces and without invisible characters."""
    return HIDDEN.sub("", SPACE.sub(" ", text)).strip()


class Accents:
    """Whether texts write accented letters as one character (NFC), as two (NFD), or both ways."""

    def __init__(self) -> None:
        self.composed = self.decomposed = False

    @property
    def mixed(self) -> bool:
        return self.composed and self.decomposed

    def add(self, text: str) -> bool:
        """Whether this text writes some of them as two."""
        if text.isascii():
            return False
        apart = len(unicodedata.normalize("NFC", text)) < len(text)
        self.decomposed |= apart
        self.composed = self.composed or len(unicodedata.normalize("NFD", text)) > len(text)
        return apart


def mixed_accents(table: Table) -> list[Problem]:
    """Lines that encode accented letters differently from the other lines of the file."""
    accents = Accents()
    apart = [row for row in table.rows if accents.add(row.value)]
    if not accents.mixed:
        return []
    what = "{n} with accents apart from their letters (NFD), others with both in one (NFC)"
    return about(table, apart, what, "{fix} writes all in NFC", "untidy", "line")


def odd_characters(table: Table) -> list[Problem]:
    rows = [row for row in table.rows if not is_clean(row.value)]
    which = first(characters.hidden("\n".join(row.value for row in rows)))
    kinds = (
        (
            SPACE,
            "{n} with white space other than a plain space",
            "{fix} replaces it by a space",
            "untidy",
        ),
        (
            HIDDEN,
            f"{{n}} with invisible characters ({', '.join(which)})",
            "{fix} removes them",
            "untidy",
        ),
        (
            MARK,
            "{n} with a reserved word such as <s>, #0 or <eps>",
            "remove it from the text",
            "untidy",
        ),
        (
            LOST,
            "{n} with U+FFFD, which stands for bytes that a conversion could not read",
            "convert the source again from its own encoding",
            "note",
        ),
    )
    return [
        problem
        for pattern, what, remedy, kind in kinds
        for problem in about(
            table, (row for row in rows if pattern.search(row.value)), what, remedy, kind, "line"
        )
    ]
