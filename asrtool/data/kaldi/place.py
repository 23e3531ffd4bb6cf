"""Where the audio and the archives of a data directory are."""

from __future__ import annotations

import os
from pathlib import Path

from asrtool.data import audio


class Place:
    """Turns the entries of a data directory into paths.

    base: the folder where relative paths of audio start; None: the current one.
    """

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        self.folder = folder
        self.base = base
        self._archives: dict[str, str] = {}

    def audio(self, entry: str) -> str:
        """The path of an entry of wav.scp."""
        if self.base is not None and not audio.is_pipe(entry):
            entry = str(Path(self.base) / entry)
        return self.archive(entry) if audio.member(entry) else entry

    def archive(self, reference: str) -> str:
        """<archive>:<offset>: as stored or, in a moved folder, beside feats.scp or wav.scp."""
        archive, colon, offset = reference.rpartition(":")
        if not colon or "|" in archive:
            return reference
        if archive not in self._archives:
            moved = self.folder / os.path.basename(archive)
            self._archives[archive] = (
                str(moved) if not os.path.exists(archive) and moved.exists() else archive
            )
        return f"{self._archives[archive]}:{offset}"
