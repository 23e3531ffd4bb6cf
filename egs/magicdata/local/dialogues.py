"""Dialogues of MagicData-RAMC -> segments of their recordings.

Each line of a transcript is `[start,end] speaker gender,accent text`.
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

OFFICIAL = {"train": (289, 556), "dev": (19, 38), "test": (43, 86)}  # dialogues, speakers
NOBODY = "G00000000"  # the speaker of noises
LINE = re.compile(r"\[([\d.]+),([\d.]+)\]\s+(\w+)\s+(\S+)(?:\s+(.*))?")
UNCLEAR = "[*]"
GENDERS = {"男": "m", "女": "f"}


def recordings(partition: Path) -> list[str]:
    """The recording ids of DataPartition/<set>.tsv.

    The file has a folder in the first line, then lines `<id>.wav<TAB><size>`.
    """
    names = [PureWindowsPath(line.split("\t")[0].strip()).name for _, line in tree.lines(partition)]
    ids = [name.removesuffix(".wav") for name in names if name.endswith(".wav")]
    if not ids or len(ids) < len(names) - 1:
        raise UserError(
            f"{partition}: expected a folder in the first line, then lines '<file>.wav <size>'"
        )
    repeated = sorted({key for key in ids if ids.count(key) > 1})
    if repeated:
        raise UserError(f"{partition}: {repeated[0]} occurs twice; remove one")
    return ids


def check_disjoint(sets: dict[str, list[str]], texts: Path) -> None:
    """Raise UserError if a recording is in two sets or has no transcript."""
    seen: dict[str, str] = {}
    for name, ids in sets.items():
        for key in ids:
            tree.need(texts / f"{key}.txt")
            if key in seen:
                raise UserError(
                    f"DataPartition/{name}.tsv: {key} is also in {seen[key]}.tsv; remove one"
                )
            seen[key] = name


def build(
    name: str, ids: list[str], *, audio: Path, texts: Path, speakers: Path, official: bool
) -> corpus.CorpusSet:
    """The segments of the recordings `ids`, without noises.

    Segments that are unclear, empty or outside the recording are left out with a sentence each.
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
            f"{len(lost)} of {len(ids)} recordings of {name} cannot be used; first {left_out[0]}; "
            "is the archive unpacked completely?"
        )
    labels = speaker_labels(speakers)
    rows, noises = {}, 0
    for key, (path, seconds) in measured.items():
        for where, match in parse(texts / f"{key}.txt"):
            start, end, speaker, person, text = match.groups(default="")
            if speaker == NOBODY:
                noises += 1
                continue
            row = segment(key, path, float(start), float(end), speaker, person, text)
            if UNCLEAR in text:
                left_out.append(f"{row.id}: {where}: marked as unintelligible ({UNCLEAR})")
            elif not row.text:
                left_out.append(f"{row.id}: {where}: '{text}' contains no words")
            elif row.duration <= 0 or float(end) > seconds + audio_files.SLACK:
                left_out.append(
                    f"{row.id}: {where}: is outside the recording, which is {seconds:.3f} s long"
                )
            elif row.id in rows:
                raise UserError(f"{where}: {row.id} already has a text; remove one")
            else:
                row.labels.update(labels.get(speaker, {}))
                rows[row.id] = row
    num_speakers = len({row.speaker for row in rows.values()})
    if official and (len(ids), num_speakers) != OFFICIAL[name]:
        logger.warning(
            "%s: %d dialogues, %d speakers, officially %d and %d",
            name,
            len(ids),
            num_speakers,
            *OFFICIAL[name],
        )
    if noises:
        logger.info("%s: %d lines of %s (noises) are not utterances", name, noises, NOBODY)
    return corpus.CorpusSet(list(rows.values()), left_out)


def measure(path: str) -> tuple[str, float]:
    """The entry of a recording in wav.scp, and its duration in seconds.

    Two channels are two microphones: the entry is a command that averages them.
    """
    (seconds,) = audio_files.durations([path])
    if isinstance(seconds, audio_files.AudioError):
        raise seconds
    channels = audio_files.info(path)[1]
    return path if channels == 1 else f"sox {shlex.quote(path)} -t wav - remix - |", seconds


def parse(path: Path) -> list[tuple[str, re.Match]]:
    """`<file>:<line>` and the match of LINE, for each line of a transcript."""
    matches = []
    for number, line in tree.lines(path):
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{path}:{number}: expected '[start,end] speaker gender,accent text', got '{line}'"
            )
        matches.append((f"{path}:{number}", match))
    if not matches:
        raise UserError(
            f"{path}: the file is empty; expected lines '[start,end] speaker gender,accent text'"
        )
    return matches


def segment(
    recording: str, path: str, start: float, end: float, speaker: str, person: str, text: str
) -> Utterance:
    """A segment as an utterance; as Kaldi expects, its id begins with the speaker.

    start, end: in seconds; the id has them in milliseconds.
    """
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
    """Speaker -> region and city, from the column `REGION,CITY` of SPKINFO.txt (one or both)."""
    by_speaker = {}
    for row in tree.rows(info):
        region, _, city = (part.strip() for part in row.get("REGION,CITY", "").partition(","))
        labels = {"region": region, "city": city}
        labels = {name: value for name, value in labels.items() if value}
        by_speaker[row.get("SPEAKER_ID", "")] = labels
    return by_speaker
