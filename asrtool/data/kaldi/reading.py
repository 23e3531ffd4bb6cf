"""Read a valid data directory into `Columns`, file by file and by array operations."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from asrtool.data.kaldi import form, spans
from asrtool.data.kaldi.columns import Coded, Columns, Strings
from asrtool.data.kaldi.gathering import (
    Checked,
    Column,
    Ids,
    Numbers,
    Paths,
    Segments,
    Texts,
    Values,
)
from asrtool.data.kaldi.tables import Irregular

SLASH, COLON = ord("/"), ord(":")


def columns(folder: Path) -> Columns:
    """The columns of a data directory, with paths and references as its files have them.

    Raises `Irregular` or `OSError` if anything is not sorted, complete and well formed.
    """
    names = form.names(folder)
    segmented = "segments" in names
    of_speakers = {}
    for name in names:
        if form.is_label(name) and name.startswith("spk2"):
            of_speakers[name[4:]] = dict(form.lines(folder / name))
        elif name.startswith(form.NOT_OF_UTTERANCES):
            deque(form.lines(folder / name), maxlen=0)  # only checked
    source = Segments(*_recordings(folder)) if segmented else Paths(SLASH)
    ids, size = Ids(), 0
    for block in spans.blocks(folder / ("segments" if segmented else "wav.scp")):
        rows = np.arange(size, size + len(block))
        ids.add(block, rows)
        source.add(block, rows)
        size += len(block)
    keys = ids.keys()
    read = {
        name: _aligned(folder / name, _column(name), keys)
        for name in form.of_utterances(names, segmented)
        if name not in ("segments", "wav.scp")
    }
    found = {
        "ids": ids.column(size),
        "texts": read.get("text"),
        "durations": read.get("utt2dur", np.full(size, np.nan)),
        "speakers": read.get("utt2spk"),
        "features": read.get("feats.scp"),
        "num_frames": read.get("utt2num_frames"),
    }
    found |= source.columns() if segmented else {"audio": source.column(size)}
    labels = {name[4:]: values for name, values in read.items() if form.is_label(name)}
    for name, values in of_speakers.items():
        labels[name] = _of_speakers(values, found["ids"], found["speakers"], labels.get(name))
    return Columns(**found, labels=labels)


def _recordings(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Ids and paths of the recordings that segments cut."""
    ids, paths = Ids(), []
    for block in spans.blocks(folder / "wav.scp"):
        ids.add(block, np.arange(len(block)))
        paths += block.values().tolist()
    if not all(paths):
        raise Irregular(f"{folder / 'wav.scp'}: a recording without a path")
    return ids.keys().tolist(), paths


def _column(name: str) -> Column:
    """The column of a file with a line for each utterance, or for some."""
    if name == "text":
        return Texts()
    if name in form.SECONDS or name in form.COUNTS:
        return Numbers(float if name in form.SECONDS else int)
    if name == "feats.scp":
        return Paths(COLON)
    if name == "utt2spk" or form.is_label(name):
        return Values(words=name == "utt2spk")
    return Checked(partial(form.is_right, name))


def _aligned(path: Path, column: Column, keys: np.ndarray) -> Strings | Coded | np.ndarray | None:
    """A file's column in the order of the utterances, whose ids are `keys` (N,)."""
    done, last = 0, -1
    for block in spans.blocks(path):
        own = block.keys()
        rows = np.arange(done, done + len(own))
        if not np.array_equal(keys[done : done + len(own)], own):
            if path.name in form.REQUIRED:
                raise Irregular(f"{path}: not the ids of the other files")
            # some utterances have no line, but every line has an utterance
            rows = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
            if (keys[rows] != own).any() or (np.diff(rows, prepend=last) <= 0).any():
                raise Irregular(f"{path}: not sorted, or an id that is not in the other files")
        column.add(block, rows)
        done, last = done + len(own), rows[-1]
    if path.name in form.REQUIRED and done < len(keys):
        raise Irregular(f"{path}: lacks utterances")
    return column.column(len(keys))


def _of_speakers(
    values: Mapping[str, str], ids: Strings, speakers: Coded | None, own: Coded | None
) -> Coded:
    """The label of each utterance: its own, or else that of its speaker."""
    known = list(dict.fromkeys(values.values()))
    code = {value: number for number, value in enumerate(known)}
    # without utt2spk, each utterance is a speaker
    names = ids if speakers is None else speakers.values
    by_speaker = np.fromiter(
        (code.get(values.get(name), -1) for name in names), np.int32, len(names)
    )
    codes = by_speaker if speakers is None else by_speaker[speakers.codes]
    if own is not None:
        codes = np.where(own.codes < 0, codes, own.codes + len(known))
        known += own.values
    return Coded(codes.astype(np.int32), Strings.of(known))
