"""Read all files of a data directory side by side, a line at a time: as fast as can be, where
nothing is wrong.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from asrtool.data import tables
from asrtool.data.datadir_form import DataDirError, is_right

# each has every utterance, or is absent
REQUIRED = {"text", "utt2spk", "utt2dur", "feats.scp", "utt2num_frames"}
NOT_OF_UTTERANCES = ("spk2", "reco2", "cmvn.scp")  # beginnings of names


class Irregular(DataDirError):
    """A file is not sorted, or lacks an utterance, or holds something it should not: `tables` finds
    out what.
    """


def of_utterances(names: Iterable[str], segmented: bool) -> list[str]:
    """The files that have a line for an utterance."""
    others = (*NOT_OF_UTTERANCES, "wav.scp") if segmented else NOT_OF_UTTERANCES
    return [name for name in names if not name.startswith(others)]


def walk(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each utterance and what the files `names` say of it. Raises Irregular where they disagree or
    are malformed.
    """
    names = list(names)
    segmented = "segments" in names
    source = "segments" if segmented else "wav.scp"
    others = {
        name: lines(folder / name) for name in of_utterances(names, segmented) if name != source
    }
    ahead = {name: next(rows, None) for name, rows in others.items()}
    for key, value in lines(folder / source):
        values = {source: value}
        for name, line in ahead.items():
            if line is not None and line[0] == key:
                values[name] = line[1]
                ahead[name] = next(others[name], None)
            elif name in REQUIRED:
                raise Irregular(f"{folder / name}: no line for {key}")
        yield key, values
    for name, line in ahead.items():
        if line is not None:
            raise Irregular(f"{folder / name}: no audio for {line[0]}")


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Id and value of each line of a faultless file."""
    before, name = "", path.name
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                key, value = tables.split(raw)
            except UnicodeDecodeError:
                raise Irregular(f"{path}:{number}: not UTF-8") from None
            torn = raw.startswith(codecs.BOM_UTF8) or raw.endswith(b"\r\n")
            if torn or key <= before or not key.isprintable() or not is_right(name, value):
                raise Irregular(f"{path}:{number}: not as expected")
            before = key
            yield key, value
    if not before:
        raise Irregular(f"{path}: empty")
