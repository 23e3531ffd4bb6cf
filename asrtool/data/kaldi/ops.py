"""Copy, combine, subset, split and speed-perturb data directories, with all their files.

Each operation reads one file at a time, so memory holds the ids and a single file. It first writes
temporary files, then moves all files of the new data directory into place. Files of an earlier data
directory that the new one lacks are removed; other files in the folder stay. Files that are not
tables are not copied; a warning names them. All operations are deterministic.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from asrtool.data import audio
from asrtool.data.kaldi import checks, form, tables
from asrtool.data.kaldi.form import Segment, seconds
from asrtool.data.shards import index as shard_index
from asrtool.errors import UserError
from asrtool.log import logger, plural
from asrtool.system import atomic, stamp

# files of Kaldi and ESPnet that hold one value for the whole set
WHOLE = ("frame_shift", "feats_type", "audio_format")
# files computed from the audio, which do not hold for audio at another speed
OF_AUDIO = ("feats.scp", "vad.scp", "cmvn.scp", "utt2num_frames", "utt2num_samples", "utt2shard")
DURATIONS = ("utt2dur", "reco2dur")
CMVN = "cmvn.json"  # stage 1's statistics of a training set, not valid for a part of it
Renamed = Callable[[str], str]


def same(name: str) -> str:
    return name


class Source:
    """A data directory, read file by file. Raises `UserError` if a file cannot be read."""

    def __init__(self, folder: Path, extra: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        if not (self.folder / "wav.scp").is_file() and not (self.folder / "utt2spk").is_file():
            raise UserError(
                f"{folder}: expected a data directory, which has at least wav.scp or utt2spk"
            )
        self.names = form.names(self.folder)
        self.names += [
            name for name in extra if name not in self.names and (self.folder / name).is_file()
        ]
        self.segmented = "segments" in self.names
        self._ids: dict[str, str] | None = None
        self._archives: dict[str, str] = {}

    def values(self, name: str) -> dict[str, str]:
        """Id -> value of one file."""
        table = tables.read(self.folder / name)
        errors = [problem for problem in table.problems if problem.kind == "error"]
        wrong = checks.wrong_values(name, table)
        if errors or wrong:
            raise UserError(str((errors + wrong)[0]))
        values = table.values()
        if (
            name == "feats.scp"
            or name == "wav.scp"
            and any(audio.member(value) for value in values.values())
        ):
            values = {key: self._located(value, ":") for key, value in values.items()}
        elif name == shard_index.FILE:
            values = {key: self._located(value, " ") for key, value in values.items()}
        return values

    def _located(self, reference: str, separator: str) -> str:
        """The reference with the archive's current path: beside the tables if the folder moved."""
        archive, separated, rest = (
            reference.partition(separator) if separator == " " else reference.rpartition(separator)
        )
        if not separated or audio.is_pipe(reference):
            return reference
        if archive not in self._archives:
            self._archives[archive] = shard_index.located(self.folder, archive)
        return f"{self._archives[archive]}{separator}{rest}"

    def speakers(self) -> dict[str, str]:
        """Utterance -> speaker, sorted by id; without utt2spk each utterance is a speaker."""
        if self._ids is None:
            source = (
                "utt2spk"
                if "utt2spk" in self.names
                else "segments"
                if self.segmented
                else "wav.scp"
            )
            values = self.values(source)
            self._ids = {key: values[key] if source == "utt2spk" else key for key in sorted(values)}
        return self._ids

    def kind(self, name: str) -> str:
        """The kind of a file's ids: utterance, speaker or recording."""
        return kind(name, self.segmented)

    def durations(self) -> dict[str, float]:
        """Seconds of each utterance, from segments, utt2dur or the headers of the audio."""
        if self.segmented:
            segments = {key: Segment.parse(value) for key, value in self.values("segments").items()}
            lengths = self._measured(
                {segment.recording for segment in segments.values() if segment.end is None}
            )
            return {key: segment.duration(lengths) for key, segment in segments.items()}
        if "utt2dur" in self.names:
            return {key: float(value) for key, value in self.values("utt2dur").items()}
        return self._measured(self.values("wav.scp").keys())

    def _measured(self, recordings: Collection[str]) -> dict[str, float]:
        """Seconds of recordings, as their audio has them."""
        paths = (
            {key: path for key, path in self.values("wav.scp").items() if key in recordings}
            if recordings
            else {}
        )
        measured = dict(zip(paths, audio.durations(paths.values()), strict=True))
        for key, value in measured.items():
            if isinstance(value, audio.AudioError):
                raise UserError(
                    f"{self.folder}: no file gives the length of {key}, and it cannot be "
                    f"measured: {value}"
                )
        return measured


def kind(name: str, segmented: bool) -> str:
    if name.startswith("reco2") or (name == "wav.scp" and segmented):
        return "recording"
    return "speaker" if name.startswith("spk2") or name == "cmvn.scp" else "utterance"


class Target:
    """Receives the files of a new data directory one by one; see `writing`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, values: dict[str, str]) -> None:
        """A file without a line is not written."""
        if values:
            tables.write(self.folder / name, values)

    def write_speakers(self, speakers: dict[str, str]) -> None:
        """spk2utt from utterance -> speaker."""
        members: dict[str, list[str]] = {}
        for key in sorted(speakers):
            members.setdefault(speakers[key], []).append(key)
        self.write("spk2utt", {speaker: " ".join(keys) for speaker, keys in members.items()})


@contextmanager
def writing(folder: Path, sources: Sequence[Source]) -> Iterator[Target]:
    """Yield the target to write to; at the end all files move to `folder`, replacing its tables."""
    folder = Path(folder)
    for source in sources:
        if folder.exists() and source.folder.exists() and os.path.samefile(folder, source.folder):
            raise UserError(
                f"{folder}: source and destination are the same folder; choose another destination"
            )
    new = folder / ".new"
    with stamp.locked(folder):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            yield Target(new)
            atomic.sync_folder(new)
            written = {path.name for path in new.iterdir()}
            for name in {*form.names(folder), *WHOLE, CMVN, stamp.NAME} - written:
                (folder / name).unlink(missing_ok=True)
            for name in sorted(written):
                atomic.put(new / name, folder / name)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def say(folder: Path, speakers: dict[str, str], action: str) -> None:
    count = plural(len(speakers), "utterance")
    logger.info(
        "%s: %s of %s, %s",
        folder,
        count,
        plural(len(set(speakers.values())), "speaker"),
        action,
    )


def left_behind(source: Source, taken: Collection[str]) -> None:
    """Warn about files of a source that are not copied."""
    others = [
        path.name
        for path in sorted(source.folder.iterdir())
        if path.is_file() and path.name not in taken and not path.name.startswith(".")
    ]
    if others:
        logger.info(
            "%s: not copied, because they are not tables of a data directory: %s",
            source.folder,
            ", ".join(others),
        )


# -- copies and parts ------------------------------------------------------


def copy(source: Path, target: Path, utterance: Renamed = same, speaker: Renamed = same) -> None:
    """Copy `source`, renaming utterances and speakers; recordings of segments keep their names.

    If utterance ids change, utt2uniq holds the former ones.
    """
    directory = Source(source)
    with writing(target, [directory]) as out:
        (renamed,) = transfer(directory, [(out, None)], utterance, speaker)
        if (directory.folder / CMVN).exists():
            shutil.copy2(directory.folder / CMVN, out.folder / CMVN)
        left_behind(directory, {*directory.names, *WHOLE, CMVN})
    say(target, renamed, f"copied from {source}")


def select(source: Path, target: Path, ids: Collection[str]) -> None:
    """The utterances `ids` of `source`, with their speakers and recordings.

    Raises UserError for an unknown id.
    """
    directory = Source(source)
    unknown = sorted(set(ids) - directory.speakers().keys())
    if unknown:
        count = plural(len(unknown), "utterance")
        raise UserError(f"{source}: {count} not in this data directory; first {unknown[0]}")
    if not ids:
        raise UserError(f"{target}: no utterance of {source} was selected; nothing was written")
    with writing(target, [directory]) as out:
        (kept,) = transfer(directory, [(out, set(ids))])
        left_behind(directory, {*directory.names, *WHOLE})
    say(target, kept, f"out of {len(directory.speakers())} of {source}")


def transfer(
    source: Source,
    parts: Sequence[tuple[Target, Collection[str] | None]],
    utterance: Renamed = same,
    speaker: Renamed = same,
) -> list[dict[str, str]]:
    """Write to each part its utterances of all files (None: all), renamed; each file is read once.

    Returns the new utterance -> speaker of each part.
    """
    segments = source.values("segments") if source.segmented else {}
    rename = {
        "utterance": utterance,
        "speaker": speaker,
        "recording": same if source.segmented else utterance,
    }
    keep: list[dict[str, Collection[str]]] = []
    renamed = []
    for _, ids in parts:
        speakers = {
            key: value for key, value in source.speakers().items() if ids is None or key in ids
        }
        # Without segments every utterance is a recording of its own.
        recordings = (
            {tables.fields(segments[key])[0] for key in speakers if key in segments}
            if segments
            else speakers
        )
        keep.append(
            {"utterance": speakers, "speaker": set(speakers.values()), "recording": recordings}
        )
        renamed.append(
            unique("utt2spk", ((utterance(key), speaker(value)) for key, value in speakers.items()))
        )
    # Large: a file of the whole set need not stay in memory while the others are read.
    del segments
    for name in source.names:
        if name in ("spk2utt", "utt2spk"):
            continue
        kind = source.kind(name)
        values = source.values(name)
        for (out, _), kept in zip(parts, keep, strict=True):
            rows = (
                (rename[kind](key), value) for key, value in values.items() if key in kept[kind]
            )
            out.write(name, unique(name, rows))
    # utt2uniq names the original of a copy, also for copies of copies.
    former = source.values("utt2uniq") if "utt2uniq" in source.names else {}
    for (out, _), kept, speakers in zip(parts, keep, renamed, strict=True):
        if "utt2spk" in source.names or speaker is not same:
            out.write("utt2spk", speakers)
            out.write_speakers(speakers)
        if utterance is not same:
            out.write(
                "utt2uniq", {utterance(key): former.get(key, key) for key in kept["utterance"]}
            )
        for name in WHOLE:
            if (source.folder / name).exists():
                shutil.copy2(source.folder / name, out.folder / name)
    return renamed


def unique(name: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    made: dict[str, str] = {}
    for key, value in pairs:
        if key in made:
            raise UserError(f"{name}: two ids would both become '{key}'; expected unique names")
        made[key] = value
    return made


# -- several sources -------------------------------------------------------


def combine(target: Path, sources: Sequence[Path], extra: Sequence[str] = ()) -> None:
    """Combine data directories with unique utterance ids; speakers and recordings may be shared.

    A file that one source lacks gets its default values: empty transcripts, each utterance a
    speaker, measured durations, whole recordings as segments. Features and their lengths must be in
    all sources; otherwise they are left out with a warning.
    """
    directories = [Source(folder, extra) for folder in sources]
    names = sorted({name for source in directories for name in source.names} | {"utt2spk"})
    seen: dict[str, Source] = {}
    for source in directories:
        for key in source.speakers():
            if key in seen:
                raise UserError(
                    f"utterance '{key}' is in both {seen[key].folder} and {source.folder}; "
                    "rename those of one with `asrtool data copy --utt-prefix <prefix> <data> "
                    "<new>`"
                )
            seen[key] = source
    with writing(target, directories) as out:
        for name in names:
            lacking = [source for source in directories if name not in source.names]
            # There is no default for these; with some rows missing the directory would be invalid.
            if lacking and name in (*OF_AUDIO, "reco2dur"):
                logger.warning("%s: no %s, because %s has none", target, name, lacking[0].folder)
                continue
            if name != "spk2utt":
                out.write(name, merged(name, directories))
        speakers = {
            key: speaker for source in directories for key, speaker in source.speakers().items()
        }
        out.write_speakers(speakers)
        for name in WHOLE:
            contents = {
                (s.folder / name).read_text() if (s.folder / name).exists() else ""
                for s in directories
            }
            if len(contents) == 1 and contents != {""}:
                shutil.copy2(directories[0].folder / name, out.folder / name)
            elif len(contents) > 1:
                logger.warning("%s: no %s, because it differs between the sources", target, name)
        for source in directories:
            left_behind(source, {*source.names, *WHOLE})
    say(target, speakers, f"combined from {', '.join(map(str, sources))}")


def merged(name: str, sources: Sequence[Source]) -> dict[str, str]:
    """Merge one file of several sources; speakers and recordings may be shared if they agree."""
    made: dict[str, str] = {}
    origin: dict[str, Source] = {}
    for source in sources:
        values = source.values(name) if name in source.names else made_up(name, source)
        for key, value in values.items():
            if made.setdefault(key, value) != value:
                both = f"'{made[key]}' in {origin[key].folder}, '{value}' in {source.folder}"
                raise UserError(f"{name}: '{key}' has two values: {both}; rename one of them")
            origin.setdefault(key, source)
    return made


def made_up(name: str, source: Source) -> dict[str, str]:
    """The default values of a missing file."""
    if name == "text":
        return dict.fromkeys(source.speakers(), "")
    if name == "utt2spk":
        return dict(source.speakers())
    if name == "segments":
        return {key: f"{key} 0 {seconds(value)}" for key, value in source.durations().items()}
    if name == "utt2dur":
        return {key: seconds(value) for key, value in source.durations().items()}
    if name == "utt2uniq":
        return {key: key for key in source.speakers()}
    return {}


# -- speed -----------------------------------------------------------------


def perturb_speed(source: Path, target: Path, factor: float) -> None:
    """A copy played `factor` times as fast, named as in Kaldi: `sp0.9-<id>` of `sp0.9-<speaker>`.

    wav.scp gets sox commands (asrtool computes them itself and does not need sox). Features are
    left out with a warning.
    """
    directory = Source(source)

    def rename(key: str) -> str:
        return f"sp{factor:g}-{key}"

    gone = [name for name in directory.names if name in OF_AUDIO]
    if gone:
        logger.info(
            "%s: %s left out, because they do not hold at another speed", target, ", ".join(gone)
        )
    speakers = {rename(key): rename(speaker) for key, speaker in directory.speakers().items()}
    with writing(target, [directory]) as out:
        for name in directory.names:
            if name in OF_AUDIO or name in ("utt2spk", "spk2utt", "utt2uniq"):
                continue
            values = directory.values(name)
            if name in DURATIONS:
                values = {key: seconds(float(value) / factor) for key, value in values.items()}
            elif name == "wav.scp":
                values = {key: audio.speed_command(value, factor) for key, value in values.items()}
            elif name == "segments":
                segments = {key: Segment.parse(value) for key, value in values.items()}
                values = {
                    key: f"{rename(recording)} {seconds(start / factor)} "
                    f"{seconds(end / factor) if end else '-1'}"
                    for key, (recording, start, end) in segments.items()
                }
            out.write(name, {rename(key): value for key, value in values.items()})
        # Copies of copies still name the first original.
        former = directory.values("utt2uniq") if "utt2uniq" in directory.names else {}
        out.write("utt2spk", speakers)
        out.write_speakers(speakers)
        out.write("utt2uniq", {rename(key): former.get(key, key) for key in directory.speakers()})
        left_behind(directory, directory.names)
    say(target, speakers, f"{source} at {factor:g} times the speed")


# -- subsets and splits ----------------------------------------------------


SEED = 0  # seed of the order in which `speakers` takes them


def choose(source: Source, number: int, way: str) -> list[str]:
    """`number` utterance ids, or all if there are fewer.

    spread: evenly over the sorted ids, like Kaldi's subset_scp.pl; per-spk: likewise, so many of
    each speaker; speakers: whole speakers in a fixed random order, until there are enough
    utterances.
    """
    if number < 1:
        raise UserError(
            f"{source.folder}: cannot take a subset of {number} utterances; expected at least 1"
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
    """`number` of the ids, evenly spaced."""
    number = min(number, len(ids))
    return [ids[i * len(ids) // number] for i in range(number)]


def by_speaker(speakers: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, speaker in speakers.items():
        groups.setdefault(speaker, []).append(key)
    return groups


def listed(source: Source, path: Path, of_speakers: bool = False) -> list[str]:
    """The utterances, or those of the speakers, that a file lists (first word of each line)."""
    names = [row.id for row in tables.read(path).rows]
    speakers = source.speakers()
    known = set(speakers.values()) if of_speakers else speakers.keys()
    unknown = [name for name in names if name not in known]
    if unknown:
        kind = "speaker" if of_speakers else "utterance"
        raise UserError(
            f"{path}: {plural(len(unknown), kind)} not in {source.folder}; first {unknown[0]}"
        )
    wanted = set(names)
    return [key for key, speaker in speakers.items() if (speaker if of_speakers else key) in wanted]


def split(folder: Path, number: int, by: str = "speaker") -> list[Path]:
    """Split into `number` data directories `<folder>/split<number>/1`, 2 ...

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
        have = plural(len(speakers), "utterance")
        advice = (
            ""
            if by == "utterance"
            else (f" whose {by}s are not split; split by utterance, or into fewer parts")
        )
        raise UserError(f"{folder}: cannot be split into {number} parts, it has {have}{advice}")
    with stamp.locked(out), atomic.replacing_folder(out) as new:
        targets = [new / str(part) for part in range(1, number + 1)]
        for target in targets:
            target.mkdir()
        members = [(Target(target), set(ids)) for target, ids in zip(targets, parts, strict=True)]
        # One pass over each file, however many parts there are.
        written = transfer(source, members)
    for target, kept in zip(targets, written, strict=True):
        say(out / target.name, kept, f"out of {len(speakers)} of {folder}")
    return [out / target.name for target in targets]


def even_parts(groups: Sequence[list[str]], number: int) -> list[list[str]] | None:
    """The groups in order, as `number` parts of similar size; None if there are fewer groups."""
    if not 1 <= number <= len(groups):
        return None
    total = sum(map(len, groups))
    parts: list[list[str]] = [[]]
    count = 0
    for index, group in enumerate(groups):
        left = len(groups) - index
        # a group goes to the part in which its middle lies; every later part needs a group too
        full = count + len(group) / 2 > total * len(parts) / number
        if parts[-1] and len(parts) < number and (full or left == number - len(parts)):
            parts.append([])
        parts[-1] += group
        count += len(group)
    return parts
