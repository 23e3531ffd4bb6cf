"""Which utterances make up a part of a data directory, and its split into several. Nothing here
depends on chance.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from asrtool.data import datadir_ops, tables
from asrtool.data.datadir_check import DataDirError
from asrtool.data.datadir_ops import Source, Target
from asrtool.system import atomic, stamp

SEED = 0  # of the order in which `speakers` takes them


def choose(source: Source, number: int, way: str) -> list[str]:
    """`number` utterance ids, or all where there are fewer.

    spread: evenly over the sorted ids, as Kaldi's subset_scp.pl; per-spk: so many of each speaker,
    likewise; speakers: whole speakers in a shuffled, but always the same order, until there are
    enough utterances.
    """
    if number < 1:
        raise DataDirError(
            f"{source.folder}: {number} utterances are no subset; expected at least 1"
        )
    speakers = source.speakers()
    ids = list(speakers)
    if way == "first":
        return ids[:number]
    if way == "last":
        return ids[-number:]
    if way == "shortest":
        durations = source.durations()
        return sorted(ids, key=lambda key: (durations[key], key))[:number]
    if way == "per-spk":
        return [key for members in by_speaker(speakers).values() for key in spread(members, number)]
    if way == "speakers":
        groups = by_speaker(speakers)
        order = sorted(groups)
        random.Random(SEED).shuffle(order)
        chosen: list[str] = []
        while order and len(chosen) < number:
            chosen += groups[order.pop(0)]
        return chosen
    return spread(ids, number)


def spread(ids: Sequence[str], number: int) -> list[str]:
    """`number` of them at even distances."""
    number = min(number, len(ids))
    return [ids[i * len(ids) // number] for i in range(number)]


def by_speaker(speakers: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, speaker in speakers.items():
        groups.setdefault(speaker, []).append(key)
    return groups


def listed(source: Source, path: Path, of_speakers: bool = False) -> list[str]:
    """The utterances that the first words of a file's lines name, or those of the speakers that it
    names.
    """
    names = [row.id for row in tables.read(path).rows]
    speakers = source.speakers()
    known = set(speakers.values()) if of_speakers else speakers.keys()
    unknown = [name for name in names if name not in known]
    if unknown:
        what = "speaker" if of_speakers else "utterance"
        raise DataDirError(
            f"{path}: {tables.plural(len(unknown), what)} that {source.folder} does not have, "
            f"first {unknown[0]}"
        )
    wanted = set(names)
    return [key for key, speaker in speakers.items() if (speaker if of_speakers else key) in wanted]


def split(folder: Path, number: int, by: str = "speaker") -> list[Path]:
    """Cut into `number` data directories `<folder>/split<number>/1`, 2 ...; together they are the
    whole.

    by: `speaker` keeps every speaker in one part (parts have about as many utterances), `utterance`
    cuts the sorted ids evenly (`split<number>utt`), `recording` keeps recordings together
    (`split<number>reco`).
    """
    source = Source(folder)
    suffix = {"speaker": "", "utterance": "utt", "recording": "reco"}[by]
    out = source.folder / f"split{number}{suffix}"
    speakers = source.speakers()
    if by == "utterance":
        groups: Iterable[list[str]] = ([key] for key in speakers)
    elif by == "speaker":
        groups = by_speaker(speakers).values()
    else:
        segments = source.values("segments") if source.segmented else {key: key for key in speakers}
        groups = by_speaker({key: tables.fields(segments[key])[0] for key in speakers}).values()
    parts = even_parts(list(groups), number)
    if parts is None:
        have = tables.plural(len(speakers), "utterance")
        advice = (
            ""
            if by == "utterance"
            else (f" whose {by}s stay whole; split by utterance, or into fewer parts")
        )
        raise DataDirError(f"{folder}: cannot be split into {number} parts, it has {have}{advice}")
    with stamp.locked(out):
        new = out.with_name(out.name + ".tmp")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            targets = [new / str(place) for place in range(1, number + 1)]
            for target in targets:
                target.mkdir()
            members = [
                (Target(target), set(ids)) for target, ids in zip(targets, parts, strict=True)
            ]
            written = datadir_ops.transfer(source, members)
            atomic.replace_folder(new, out)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    for target, kept in zip(targets, written, strict=True):
        datadir_ops.say(out / target.name, kept, f"out of {len(speakers)} of {folder}")
    return [out / target.name for target in targets]


def even_parts(groups: Sequence[list[str]], number: int) -> list[list[str]] | None:
    """The groups in their order as `number` parts of about as many utterances; None where there are
    fewer groups.
    """
    if not 1 <= number <= len(groups):
        return None
    total = sum(map(len, groups))
    parts: list[list[str]] = [[]]
    taken = 0
    for place, group in enumerate(groups):
        left = len(groups) - place
        full = taken + len(group) / 2 > total * len(parts) / number
        if parts[-1] and len(parts) < number and (full or left == number - len(parts)):
            parts.append([])
        parts[-1] += group
        taken += len(group)
    return parts
