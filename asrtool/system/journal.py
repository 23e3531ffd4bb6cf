"""A journal of finished work, so that a command resumes where it stopped or was killed.

    <out>.part/stage.json                     what the work depends on; if that differs, the
                                              journal is deleted
               <group>.<run>.<rank>.jsonl     finished items, one per line

Items are grouped, so that only one group is read at a time. `run` counts the starts: files of
earlier runs never change, so all ranks see the same.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from asrtool.log import logger
from asrtool.system import atomic

ABOUT = "stage.json"
POLL = 0.05  # seconds between looks for other ranks' files


def _about(folder: Path) -> object:
    """What the journal in a folder depends on; None if that is missing or damaged."""
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


class Journal:
    """One rank's view of a journal; `lines` and `done` cover all ranks."""

    def __init__(self, folder: Path, run: int, rank: int = 0) -> None:
        self.folder, self.run, self.rank = folder, run, rank

    @staticmethod
    def begin(folder: Path, about: Mapping) -> int:
        """Create the folder, or continue a matching one; returns this run's number. Rank 0 only."""
        about = json.loads(json.dumps(about, default=str))
        if folder.exists() and _about(folder) != about:
            logger.info("%s was started with different inputs or options; starting again", folder)
            shutil.rmtree(folder)
        if not folder.exists():
            folder.mkdir(parents=True)
            atomic.write_text(folder / ABOUT, json.dumps(about, ensure_ascii=False) + "\n")
        runs = [int(path.name.split(".")[1]) for path in folder.glob("*.jsonl")]
        return max(runs, default=-1) + 1

    def write(self, group: int, lines: Iterable[Mapping]) -> None:
        """Append finished items; each has an `id`."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with open(
            self.folder / f"{group}.{self.run}.{self.rank}.jsonl", "a", encoding="utf-8"
        ) as stream:
            stream.write(text)

    def close(self) -> None:
        """Mark this rank as finished."""
        (self.folder / f"{self.run}.{self.rank}.end").touch()

    def wait(self, ranks: int) -> None:
        """Wait until all ranks are finished. A collective would time out on a slow rank."""
        while not all((self.folder / f"{self.run}.{rank}.end").exists() for rank in range(ranks)):
            time.sleep(POLL)

    def done(self, group: int) -> set[str]:
        """Ids that earlier runs finished; items with an `error` do not count."""
        return {name for name, line in self._read(group, self.run).items() if "error" not in line}

    def lines(self, group: int) -> list[dict]:
        """All items of a group, sorted by id."""
        return [line for _, line in sorted(self._read(group, self.run + 1).items())]

    def _read(self, group: int, before: int) -> dict[str, dict]:
        """id -> line, from runs before number `before`.

        The last line of an id counts, but a success counts more than an error.
        """
        files = [
            (int(path.name.split(".")[1]), path) for path in self.folder.glob(f"{group}.*.jsonl")
        ]
        items: dict[str, dict] = {}
        for run, path in sorted(files):
            if run >= before:
                continue
            # not splitlines, which also splits at U+2028 within a text
            for row in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    line = json.loads(row)
                except json.JSONDecodeError:  # cut off by a kill: the item is done again
                    continue
                if "error" not in line or "error" in items.get(line["id"], line):
                    items[line["id"]] = line
        return items
