"""lhotse's manifests: cuts, recordings with supervisions, and Shar folders.

    cuts.jsonl.gz                                   one cut a line, each with its recording
    <..>_recordings_<..>.jsonl.gz, <..>_supervisions_<..>.jsonl.gz
    <folder>/cuts.000000.jsonl.gz, recording.000000.tar ...    Shar: audio in archives

An utterance is a supervision: its stretch of the recording, its text, speaker and custom fields.
Recordings at another speed are commands of Kaldi's form, which asrtool computes. What has no
counterpart is left out by name: mixed and padded cuts, cuts of several channels, other
transformations, audio that is no file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from asrtool.data import audio, tree
from asrtool.data.toolkits import entries, manifests, tars
from asrtool.data.toolkits.entries import Entry, Item, LeftOut, Notes, Source
from asrtool.errors import UserError

TOLERANCE = 0.025  # seconds by which lhotse lets audio differ from its manifest
NARROW = 16000  # Hz; a lower rate that lhotse resamples to removes what recognisers hear
CUT = {"id", "start", "duration", "channel", "supervisions", "recording", "type"}
SUPERVISION = {"id", "recording_id", "start", "duration", "channel", "text", "speaker", "custom"}


def open_lhotse(source: str) -> Source:
    """A file of cuts, a file of recordings or supervisions beside the other, or a folder of a pair
    or of Shar.
    """
    path = tree.need(Path(source))
    if path.is_dir():
        cuts = sorted(path.glob("cuts.*jsonl*"))
        if cuts:
            return _shar(path, cuts)
        found = [name for name in sorted(path.glob("*jsonl*")) if "recordings" in name.name]
        if len(found) != 1:
            raise UserError(
                f"{path}: expected cuts.000000.jsonl.gz ... of Shar, or one file of recordings and "
                f"one of supervisions, found {len(found)} of recordings; name one of the files"
            )
        path = found[0]
    if ".jsonl" not in path.name:
        raise UserError(
            f"{path}: expected JSON lines, as .jsonl or .jsonl.gz; `lhotse convert` writes them"
        )
    if "recordings" in path.name or "supervisions" in path.name:
        pair = [
            tree.need(path.with_name(path.name.replace(other, kind)))
            for kind, other in (("recordings", "supervisions"), ("supervisions", "recordings"))
        ]
        return Source(lambda notes: _of_supervisions(*pair, notes), pair)
    folders = [Path(), path.parent]
    return Source(lambda notes: _of_cuts(path, _in_files(folders), notes), [path])


# -- the three forms --------------------------------------------------------

# where, id and recording of a cut, the channel -> the audio, and the channel of it
Finder = Callable[[str, dict, object], tuple[str, int | None]]


def _of_cuts(path: Path, find: Finder, notes: Notes) -> Iterator[Item]:
    for where, cut in manifests.rows(path):
        key = entries.word(entries.need(cut, "id", where))
        kind = cut.get("type", "MonoCut")
        supervisions = cut.get("supervisions") or []
        if kind != "MonoCut":
            yield LeftOut(where, key, f"it is a {kind}, expected a MonoCut")
        elif not supervisions:
            yield LeftOut(where, key, "the cut has no supervision, so no transcript")
        else:
            for name in ("start", "duration"):
                entries.number(entries.need(cut, name, where), name, where)
            cut.setdefault("channel", 0)
            for supervision in supervisions:
                yield _of_supervision(where, cut, supervision, find, notes)


def _of_supervisions(recordings: Path, supervisions: Path, notes: Notes) -> Iterator[Item]:
    known = {entries.need(row, "id", where): row for where, row in manifests.rows(recordings)}
    find = _in_files([Path(), recordings.parent])
    used = set()
    for where, row in manifests.rows(supervisions):
        name = entries.need(row, "recording_id", where)
        if name not in known:
            key = entries.word(entries.need(row, "id", where))
            yield LeftOut(where, key, f"{recordings} has no recording '{name}'")
            continue
        used.add(name)
        cut = {"start": 0, "duration": math.inf, "recording": known[name]}  # the whole recording
        cut["channel"] = row.get("channel", 0)
        yield _of_supervision(where, cut, row, find, notes)
    if len(known) > len(used):
        notes["recordings without a supervision are not imported"] += len(known) - len(used)


def _shar(folder: Path, cuts: Sequence[Path]) -> Source:
    pairs = []
    for path in cuts:
        number = path.name.split(".")[1]
        archive = folder / f"recording.{number}.tar"
        other = next(iter(sorted(folder.glob(f"recording.{number}.jsonl*"))), None)
        if not archive.exists() and other is not None:
            raise UserError(
                f"{other}: a list of recordings, expected {archive.name} with the audio"
            )
        pairs.append((path, tree.need(archive)))
    fields = {path.name.split(".")[0] for path in folder.iterdir() if path.is_file()}

    def items(notes: Notes) -> Iterator[Item]:
        for name in sorted(fields - {"cuts", "recording"}):
            notes[f"the field '{name}' of Shar is not imported"] += 1
        for path, archive in pairs:
            yield from _of_cuts(path, _in_archive(archive), notes)

    return Source(items, list(cuts), [archive for _, archive in pairs])


# -- an utterance -----------------------------------------------------------


def _of_supervision(
    where: str, cut: Mapping, supervision: Mapping, find: Finder, notes: Notes
) -> Item:
    key = entries.word(entries.need(supervision, "id", where))
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        return LeftOut(where, key, "the cut has no recording, only features")
    name = entries.word(entries.need(recording, "id", where))
    begin, end = _stretch(where, supervision)
    if begin < -audio.SLACK or end > cut["duration"] + audio.SLACK:
        return LeftOut(
            where, key, f"the supervision, from {begin:g} to {end:g} s, is not within its cut"
        )
    if "custom" in recording:
        notes["custom fields of recordings are not imported"] += 1
    if supervision.get("text") is None:
        return LeftOut(where, key, "the supervision has no text")
    if supervision.get("channel", cut["channel"]) != cut["channel"]:
        return LeftOut(where, key, "the supervision is of another channel than its cut")
    try:
        path, channel = find(where, recording, cut)
    except UserError as error:
        return LeftOut(where, key, str(error))
    first = float(cut["start"]) + max(begin, 0.0)
    length = recording.get("duration")
    return Entry(
        where=where,
        id=key,
        audio=path,
        text=entries.transcript(supervision["text"], where, notes),
        speaker=entries.speaker(supervision.get("speaker")),
        labels=_labels(cut, supervision, notes),
        recording=name,
        start=first,
        duration=end - max(begin, 0.0),
        length=None if length is None else float(length),
        tolerance=TOLERANCE,
        channel=channel,
    )


def _stretch(where: str, supervision: Mapping) -> tuple[float, float]:
    """Start and end of a supervision in its cut, in seconds."""
    begin = entries.need(supervision, "start", where)
    if not isinstance(begin, int | float):
        raise UserError(f"{where}: 'start' of {supervision['id']} is {begin!r}, expected seconds")
    duration = entries.need(supervision, "duration", where)
    return begin, begin + entries.number(duration, "duration", where)


def _labels(cut: Mapping, supervision: Mapping, notes: Notes) -> dict[str, str]:
    rest = {name: value for name, value in supervision.items() if name not in SUPERVISION}
    rest |= supervision.get("custom") or {}
    rest |= {name: value for name, value in cut.items() if name not in CUT | {"custom"}}
    return entries.labels(rest | (cut.get("custom") or {}), notes)


# -- audio ------------------------------------------------------------------


def _in_files(folders: Sequence[Path]) -> Finder:
    def find(where: str, recording: dict, cut: Mapping) -> tuple[str, int | None]:
        source, channel = _source(recording, cut["channel"])
        if source.get("type") != "file":
            raise UserError(
                f"the audio is of type '{source.get('type')}', expected a file; let lhotse write "
                "it by `cuts.save_audios` or `cuts.to_shar`"
            )
        path = entries.located(str(source.get("source", "")), folders)
        factor = _speed(recording)
        if factor != 1 and channel is not None:
            raise UserError("one channel of several at another speed is not supported")
        return (path if factor == 1 else audio.speed_command(path, factor)), channel

    return find


def _in_archive(archive: Path) -> Finder:
    """The members of a Shar archive, `<cut id>.<format>`, which hold the audio of the cut alone."""
    places: dict[str, tars.Member] = {}

    def find(where: str, recording: dict, cut: Mapping) -> tuple[str, int | None]:
        if not places:
            places.update(
                (os.path.splitext(member.name)[0], member)
                for member in tars.members(archive)
                if not member.name.endswith((".json", ".nometa"))
            )
        member = places.get(str(cut["id"]))
        if member is None or member.name.endswith(".nodata"):
            raise UserError(f"{archive} has no audio of the cut '{cut['id']}'")
        return member.reference, _source(recording, cut["channel"])[1]

    return find


def _source(recording: Mapping, channel: object) -> tuple[Mapping, int | None]:
    """The source of a channel, and its place among those of the file; None: it is the only one."""
    if not isinstance(channel, int):
        raise UserError(f"it is of the channels {channel}, expected one")
    for source in recording.get("sources") or []:
        channels = source.get("channels") or [0]
        if channel in channels:
            return source, None if len(channels) == 1 else channels.index(channel)
    raise UserError(f"the recording '{recording['id']}' has no channel {channel}")


def _speed(recording: Mapping) -> float:
    """The factor of a recording's speed. Raises `UserError` for other transformations."""
    factor = 1.0
    for transform in recording.get("transforms") or []:
        name, options = transform.get("name"), transform.get("kwargs") or {}
        if name == "Speed" and factor == 1:
            factor = float(options.get("factor", 1))
        elif name == "Resample" and _keeps_speech(options):
            pass  # asrtool resamples the original to data.fbank.rate
        else:
            raise UserError(
                f"lhotse transforms the audio by {name}; let it write the result by "
                "`cuts.save_audios`, or augment in training"
            )
    return factor


def _keeps_speech(options: Mapping) -> bool:
    source, target = (options.get(f"{name}_sampling_rate", 0) for name in ("source", "target"))
    return target >= min(source, NARROW)
