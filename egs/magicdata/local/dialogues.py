"""Dialogues of MagicData-RAMC: from `[start,end] speaker gender,accent text` a line to segments of
recordings.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path, PureWindowsPath

from asrtool.data import audio as audio_files
from asrtool.data import corpus, tree
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.score.normalize import normalizer
from asrtool.types import Utterance

OFFICIAL = {"train": (289, 556), "dev": (19, 38), "test": (43, 86)}  # dialogues and speakers
NOBODY = "G00000000"  # speaker of noises
LINE = re.compile(r"\[([\d.]+),([\d.]+)\]\s+(\w+)\s+(\S+)(?:\s+(.*))?")
UNCLEAR = "[*]"
GENDERS = {"男": "m", "女": "f"}


def recordings(partition: Path) -> list[str]:
    """The ids of DataPartition/<set>.tsv: a folder in the first line, then `<id>.wav<TAB>size`."""
    names = [PureWindowsPath(line.split("\t")[0].strip()).name for _, line in tree.lines(partition)]
    ids = [name.removesuffix(".wav") for name in names if name.endswith(".wav")]
    if not ids or len(ids) < len(names) - 1:
        raise UserError(
            f"{partition}: expected a folder in the first line, then '<file>.wav <size>' a line"
        )
    twice = sorted({key for key in ids if ids.count(key) > 1})
    if twice:
        raise UserError(f"{partition}: {twice[0]} occurs twice; remove one")
    return ids


def check_apart(sets: dict[str, list[str]], texts: Path) -> None:
    """A recording belongs to one set, and has a transcript."""
    seen: dict[str, str] = {}
    for name, ids in sets.items():
        for key in ids:
            tree.need(texts / f"{key}.txt")
            if key in seen:
                raise UserError(
                    f"DataPartition/{name}.tsv: {key} is in {seen[key]}.tsv too; remove one"
                )
            seen[key] = name


def build(
    name: str, ids: list[str], *, audio: Path, texts: Path, speakers: Path, official: bool
) -> corpus.CorpusSet:
    """The segments of some recordings, those of nobody, unclear ones and empty ones not among
    them.
    """
    paths = tree.audio_by_id(audio)
    lost = {key: f"{key}: there is no {audio / key}.wav" for key in ids if key not in paths}
    measured = {}
    for key in ids:
        try:
            measured |= {key: measure(paths[key])} if key in paths else {}
        except audio_files.AudioError as error:
            lost[key] = f"{key}: {error}"
    left_out = list(lost.values())
    if tree.too_many(len(lost), len(ids)):
        raise UserError(
            f"{len(lost)} of {len(ids)} recordings of {name} cannot be used, first {left_out[0]}; "
            "is the archive "
            "unpacked in full?"
        )
    labels = speaker_labels(speakers)
    rows, nobody = {}, 0
    for key, (path, seconds) in measured.items():
        for where, match in parse(texts / f"{key}.txt"):
            start, end, speaker, person, text = match.groups(default="")
            if speaker == NOBODY:
                nobody += 1
                continue
            row = segment(key, path, float(start), float(end), speaker, person, text)
            if UNCLEAR in text:
                left_out.append(f"{row.id}: {where}: {UNCLEAR} says that it cannot be understood")
            elif not row.text:
                left_out.append(f"{row.id}: {where}: '{text}' holds no words")
            elif row.duration <= 0 or float(end) > seconds + audio_files.SLACK:
                left_out.append(
                    f"{row.id}: {where}: is outside the recording, which is {seconds:.3f} s long"
                )
            elif row.id in rows:
                raise UserError(f"{where}: {row.id} has a text already; remove one")
            else:
                row.labels.update(labels.get(speaker, {}))
                rows[row.id] = row
    found = len({row.speaker for row in rows.values()})
    if official and (len(ids), found) != OFFICIAL[name]:
        logger.warning(
            "%s: %d dialogues, %d speakers, officially %d and %d",
            name,
            len(ids),
            found,
            *OFFICIAL[name],
        )
    if nobody:
        logger.info("%s: %d lines of %s (noises) are no utterances", name, nobody, NOBODY)
    return corpus.CorpusSet(list(rows.values()), left_out)


def measure(path: str) -> tuple[str, float]:
    """What goes into wav.scp, and its seconds; two channels, a microphone each, become their
    mean.
    """
    (seconds,) = audio_files.durations([path])
    if isinstance(seconds, audio_files.AudioError):
        raise seconds
    channels = audio_files.info(path)[1]
    return path if channels == 1 else f"sox {shlex.quote(path)} -t wav - remix - |", seconds


def parse(path: Path) -> list[tuple[str, re.Match]]:
    found = []
    for number, line in tree.lines(path):
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{path}:{number}: expected '[start,end] speaker gender,accent text', got '{line}'"
            )
        found.append((f"{path}:{number}", match))
    if not found:
        raise UserError(
            f"{path}: no line in it; expected '[start,end] speaker gender,accent text' a line"
        )
    return found


def segment(
    recording: str, path: str, start: float, end: float, speaker: str, person: str, text: str
) -> Utterance:
    """Kaldi's order: ids begin with the speaker; times in milliseconds."""
    gender, _, accent = (part.strip() for part in person.partition(","))
    labels = {"gender": GENDERS.get(gender, gender), "accent": accent}
    return Utterance(
        id=f"{speaker}-{recording}-{round(1000 * start):07d}-{round(1000 * end):07d}",
        audio=path,
        recording=recording,
        start=start,
        duration=end - start,
        text=normalizer("zh-magicdata")(text).upper(),
        speaker=speaker,
        labels={name: value for name, value in labels.items() if value},
    )


def speaker_labels(info: Path) -> dict[str, dict[str, str]]:
    """Speaker -> region and city from SPKINFO.txt, whose column `REGION,CITY` has one or both."""
    found = {}
    for row in tree.rows(info):
        region, _, city = (part.strip() for part in row.get("REGION,CITY", "").partition(","))
        labels = {"region": region, "city": city}
        found[row.get("SPEAKER_ID", "")] = {name: value for name, value in labels.items() if value}
    return found
