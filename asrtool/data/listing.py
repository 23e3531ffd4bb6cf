"""Which of a million files exist: folders are listed once, as a network disk answers each question
slowly.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path

from asrtool.data import audio

# questions about a folder before it is listed: one with a million other files is not worth it for a
# few
ASKED = 8
REMEMBERED = 256  # folders


class Listing:
    """`path in listing`: whether a path of wav.scp leads to a file; relative ones start at
    `base`.
    """

    def __init__(self, base: Path | None = None) -> None:
        self._base = "" if base is None else str(base)
        self._asked: Counter[str] = Counter()
        self._files = lru_cache(maxsize=REMEMBERED)(_files)

    def __contains__(self, path: str) -> bool:
        path = audio.file_of(path)
        folder, name = os.path.split(os.path.join(self._base, path) if self._base else path)
        self._asked[folder] += 1
        if self._asked[folder] <= ASKED:
            return os.path.isfile(os.path.join(folder, name))
        return name in self._files(folder)


def _files(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()
