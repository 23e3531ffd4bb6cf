"""Write the utterances of a data directory into a few large tar archives (shards).

An utterance is three members: `<id>.txt`, its transcript; `<id>.json`, its id, speaker, duration
in seconds and labels; `<id>.<format>`, the original audio file (FLAC for commands, segments and
formats that others do not read) or a matrix of features in Kaldi's format. This is the layout of
WebDataset and of WeNet's shards. They end a key at the first and at the last full stop of a name,
so those of the id are encoded, like the characters that `file_names` encodes. wav.scp or feats.scp
of the new data directory refer to the last member as `<archive>.tar:<offset>`, which asrtool reads
anywhere (Kaldi and kaldiio read such features too); `utt2shard` adds size and checksum. The same
input and seed give the same bytes.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
from tqdm import tqdm

from asrtool.data import audio, features
from asrtool.data.config import DataConfig
from asrtool.data.kaldi import datadir, form, ops, tables
from asrtool.data.shards.index import FILE, Member
from asrtool.errors import UserError
from asrtool.system import file_names
from asrtool.types import Utterance

THREADS = 8  # threads that read ahead; a network disk has a high latency
AHEAD = 64  # utterances read ahead
NAMES = ("flac", "mp3", "ogg", "wav")  # formats that the readers of other toolkits know by name
SAME = {"wavex": "wav", "rf64": "wav"}  # wav files with another header
SHALLOW = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")  # sample formats that fit in 16 bits
Item, Made = TypeVar("Item"), TypeVar("Made")


@dataclass
class Packed:
    """The result of writing shards.

    members, seconds: by utterance id; archives: their number; kinds: formats of the members;
    skipped: id -> error.
    """

    members: dict[str, Member] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    archives: int = 0
    kinds: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)


def pack_audio(data: Path, folder: Path, *, final: Path, megabytes: float, seed: int) -> Packed:
    """Write the audio of `data`, with a data directory, to `folder`, which will become `final`.

    Unreadable utterances are left out and listed in `Packed.skipped`. Segments become utterances of
    their own.
    """
    utterances = datadir.read(data, measure=False)
    packed = write(
        shuffled(list(utterances), seed), audio_content, folder, final=final, megabytes=megabytes
    )
    if not packed.members:
        key, reason = next(iter(packed.skipped.items()))
        raise UserError(
            f"{data}: none of {len(utterances)} utterances can be read; first {key}: {reason}"
        )
    source = ops.Source(data)
    ops.transfer(source, [(ops.Target(folder), packed.members.keys())])
    replace_audio(folder, packed)
    return packed


def pack_set(source: Path, folder: Path, final: Path, config: DataConfig) -> None:
    """Put the output of stage 1 in `folder` into shards: stored features or frames, or else audio.

    Audio that is in shards already stays where it is.
    """
    size, seed = config.shards.size_mb, config.shards.seed
    rows = list(datadir.read(folder, measure=False))
    if features.are_stored(config):
        # An older `final` may still exist, with archives of the same names.
        rows = [replace(row, features=str(folder / os.path.basename(row.features))) for row in rows]
        packed = write(shuffled(rows, seed), feature_content, folder, final=final, megabytes=size)
        refuse(packed, folder)
        replace_features(folder, packed)
        for archive in folder.glob("feats.*.ark"):
            archive.unlink()
    elif (source / FILE).exists():
        kept = tables.read(folder / "wav.scp").values()
        members = tables.read(source / FILE).values()
        tables.write(folder / FILE, {key: members[key] for key in kept})
    else:
        packed = write(shuffled(rows, seed), audio_content, folder, final=final, megabytes=size)
        refuse(packed, source)
        replace_audio(folder, packed)


def replace_audio(folder: Path, packed: Packed) -> None:
    """Make the data directory `folder` refer to the shards; utterances become recordings."""
    for path in [folder / "segments", *folder.glob("reco2*")]:
        path.unlink(missing_ok=True)
    tables.write(folder / "wav.scp", references(packed))
    tables.write(
        folder / "utt2dur",
        {key: form.seconds(value) for key, value in packed.seconds.items()},
    )
    tables.write(folder / FILE, {key: str(member) for key, member in packed.members.items()})


def pack_features(data: Path, folder: Path, *, final: Path, megabytes: float, seed: int) -> Packed:
    """The same for stored features, all of which must be readable."""
    rows = list(datadir.read(data, measure=False))
    without = [row.id for row in rows if row.features is None]
    if without:
        raise UserError(
            f"{data}: {len(without)} utterances have no stored features; first {without[0]}; run"
            " stage 1"
        )
    packed = write(shuffled(rows, seed), feature_content, folder, final=final, megabytes=megabytes)
    refuse(packed, data)
    ops.transfer(ops.Source(data), [(ops.Target(folder), None)])
    replace_features(folder, packed)
    return packed


def refuse(packed: Packed, data: Path) -> None:
    """Raise `UserError` if any utterance could not be read, though it was readable before."""
    for key, reason in packed.skipped.items():
        raise UserError(
            f"{data}: {len(packed.skipped)} utterances cannot be read; first {key}: {reason}"
        )


def replace_features(folder: Path, packed: Packed) -> None:
    tables.write(folder / "feats.scp", references(packed))
    tables.write(folder / FILE, {key: str(member) for key, member in packed.members.items()})


def references(packed: Packed) -> dict[str, str]:
    return {key: f"{member.archive}:{member.offset}" for key, member in packed.members.items()}


def shuffled(utterances: Sequence[Utterance], seed: int) -> list[Utterance]:
    """Shuffle by `seed`; segments of a recording stay together, so that it is read only once."""
    groups: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        groups.setdefault(utterance.recording or utterance.id, []).append(utterance)
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    return [utterance for name in names for utterance in groups[name]]


# -- contents --------------------------------------------------------------

Content = tuple[bytes, str, float]  # bytes, name of the format, seconds


def audio_content(utterance: Utterance) -> Content:
    """The audio of an utterance as a file. Raises `AudioError` if it cannot be used."""
    path = utterance.audio
    if utterance.recording is None and not audio.is_pipe(path):
        return file_content(audio.contents(path), path)
    return flac(*audio.load(path, *utterance.stretch))


def file_content(data: bytes, name: str) -> Content:
    """The bytes of an audio file, unchanged if others read its format, otherwise as FLAC."""
    samples, rate = audio.decode(data, name)
    try:
        known = soundfile.info(io.BytesIO(data))
    except soundfile.LibsndfileError:
        # PyAV or ffmpeg decoded it, which the readers of the shard may lack
        return flac(samples, rate)
    kind = known.format.lower()
    if (kind := SAME.get(kind, kind)) in NAMES:
        return data, kind, len(samples) / rate
    return flac(samples, rate, 16 if known.subtype in SHALLOW else 24)


def flac(samples: np.ndarray, rate: int, bits: int = 16) -> Content:
    """(T,) in [-1, 1] as a FLAC file."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="FLAC", subtype=f"PCM_{bits}")
    return stream.getvalue(), "flac", len(samples) / rate


def feature_content(utterance: Utterance) -> Content:
    return features.encode(features.read_stored(utterance.features)), "mat", utterance.duration


def companions(row: Utterance, labels: Sequence[str], seconds: float) -> dict[str, bytes]:
    """Extension -> content of the members beside the audio or the features of an utterance.

    Every .json of a set has the same keys, and strings as labels (empty where an utterance has
    none): `datasets` derives the types of its columns from the first ones. A label with the name of
    another key is called as its file, `utt2<label>`.
    """
    known = None if math.isnan(seconds) else seconds
    facts = {"id": row.id, "speaker": row.speaker, "duration": known}
    facts |= {f"utt2{name}" if name in facts else name: row.labels.get(name, "") for name in labels}
    return {
        ".txt": row.text.encode(),
        ".json": json.dumps(facts, ensure_ascii=False).encode(),
    }


# -- archives --------------------------------------------------------------


def write(
    rows: Sequence[Utterance],
    content: Callable[[Utterance], Content],
    folder: Path,
    *,
    final: Path,
    megabytes: float,
) -> Packed:
    """Write archives of at most `megabytes` (or one member), with their paths in `final`."""

    def attempt(utterance: Utterance) -> tuple[Utterance, Content | Exception]:
        try:
            return utterance, content(utterance)
        except (UserError, OSError) as error:
            return utterance, error

    packed = Packed()
    labels = sorted({name for row in rows for name in row.labels})
    archive: _Archive | None = None
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(rows), unit="utt", desc=final.name, disable=None) as bar,
    ):
        try:
            # Files are read in parallel but packed in order, so that archives do not depend on
            # timing.
            for utterance, content_or_error in in_order(pool, attempt, rows):
                bar.update()
                if isinstance(content_or_error, Exception):
                    packed.skipped[utterance.id] = str(content_or_error)
                    continue
                data, kind, seconds = content_or_error
                beside = companions(utterance, labels, seconds)
                more = len(data) + sum(map(len, beside.values()))
                if archive is not None and archive.size + more > megabytes * 1e6:
                    archive.close()
                    archive = None
                if archive is None:
                    archive = _Archive(folder, final, packed.archives)
                    packed.archives += 1
                name = file_names.of(utterance.id, more=".")
                for extension, small in beside.items():
                    archive.add(name + extension, small)
                # the last one: an archive that ends too early is noticed by its index
                packed.members[utterance.id] = archive.add(f"{name}.{kind}", data)
                packed.seconds[utterance.id] = seconds
                packed.kinds.add(kind)
        finally:
            if archive is not None:
                archive.close()
    return packed


def in_order(
    pool: ThreadPoolExecutor, make: Callable[[Item], Made], items: Iterable[Item]
) -> Iterator[Made]:
    """`make(item)` for each item in order, computed ahead in threads."""
    items = iter(items)
    waiting = deque(pool.submit(make, item) for item in islice(items, AHEAD))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(make, item) for item in islice(items, 1))


class _Archive:
    """A tar file written member by member, without times and owners."""

    def __init__(self, folder: Path, final: Path, number: int) -> None:
        name = f"shard-{number:05}.tar"
        self._final = str(final / name)
        self._file = open(folder / name, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by `close`
        self.size = 0

    def add(self, name: str, data: bytes) -> Member:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        # without times and owners, so that the same input gives the same bytes
        header = info.tobuf(tarfile.PAX_FORMAT)
        padding = -len(data) % tarfile.BLOCKSIZE
        offset = self.size + len(header)
        self._file.write(header + data + bytes(padding))
        self.size = offset + len(data) + padding
        return Member(self._final, offset, len(data), zlib.crc32(data))

    def close(self) -> None:
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._file.write(bytes(end - self.size + -end % tarfile.RECORDSIZE))
        self._file.close()
