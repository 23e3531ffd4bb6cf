"""The sentences of text files, as a model over words, characters or tokens sees them."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from asrtool.errors import UserError

SPACE = "<space>"


def lines(files: Sequence[Path], with_ids: bool) -> Iterator[str]:
    """The lines that hold words, of plain files or `.gz`; with_ids: without their first field.

    Raises `UserError` for a file that is no UTF-8.
    """
    for path in files:
        opener = gzip.open if path.suffix == ".gz" else open
        try:
            with opener(path, "rt", encoding="utf-8-sig") as stream:
                for line in stream:
                    text = (line.split(None, 1)[1:] or [""])[0] if with_ids else line
                    if text.strip():
                        yield text
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8; convert it first") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged or truncated ({error})") from None


def case_of(characters: set[str]) -> Callable[[str], str]:
    """How a text is written in the letters of a vocabulary: in capitals if it has no others, in
    small letters likewise, else as it is.
    """
    small = any(c != c.upper() for c in characters)
    capital = any(c != c.lower() for c in characters)
    return str.upper if capital and not small else str.lower if small and not capital else str


def characters(text: str) -> list[str]:
    """Single characters; spaces between words are `<space>`."""
    return [SPACE if c == " " else c for c in " ".join(text.split())]


class Speller:
    """Notes the words that hold a character outside the vocabulary."""

    def __init__(self, known: set[str]) -> None:
        self.known = known
        self.lacking: Counter[str] = Counter()
        self.words = 0
        self._checked: dict[str, bool] = {}

    def spells(self, words: Sequence[str]) -> bool:
        """Whether all of them are spelled by the vocabulary."""
        whole = True
        self.words += len(words)
        for word in words:
            if word not in self._checked:
                self._checked[word] = self.known.issuperset(word)
            if not self._checked[word]:
                self.lacking[word] += 1
                whole = False
        return whole
