"""The check of a data directory in which nothing is wrong: all files side by side, in little
memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from asrtool.data import audio, shard_index
from asrtool.data.datadir_content import has_archive, is_clean, notes
from asrtool.data.datadir_form import Segment, names
from asrtool.data.datadir_stream import NOT_OF_UTTERANCES, Irregular, lines, walk
from asrtool.data.listing import Listing
from asrtool.data.tables import Problem, fields


def faultless(folder: Path, base: Path | None = None) -> list[Problem] | None:
    """The notes about a data directory that has no fault; None where it has one, which
    `datadir_check` then names.
    """
    try:
        return _Scan(folder, base).run()
    except (Irregular, OSError):
        return None


class _Scan:
    """Raises Irregular at the first fault."""

    def __init__(self, folder: Path, base: Path | None) -> None:
        self.folder, self.base = folder, base
        self.names = names(folder)
        self.listing = Listing(base)
        self.recordings: dict[str, str] | None = None  # where there are segments
        self.lengths: dict[str, float] = {}
        self.used: set[str] = set()  # recordings
        self.archives: dict[str, bool] = {}  # of features: whether they exist
        self.ends: dict[str, int] = {}  # of shards

    def run(self) -> list[Problem]:
        self._check_files()
        if "segments" in self.names:
            self._read_recordings()
        empty: list[str] = []
        ordered, last = True, ""
        # speaker -> number of utterances, sum of the hashes of their ids
        members: dict[str, tuple[int, int]] = {}
        audio_seen: set[int] = set()
        rows = 0
        for key, values in walk(self.folder, self.names):
            rows += 1
            text = values.get("text")
            if text is not None and not text:
                empty.append(key)
            elif text is not None and not is_clean(text):
                raise Irregular(key)
            speaker = values.get("utt2spk")
            if speaker is not None:
                ordered, last = ordered and speaker >= last, speaker
                count, total = members.get(speaker, (0, 0))
                members[speaker] = count + 1, total + hash(key)
            if self.recordings is None:
                path = values["wav.scp"]
                self._expect_audio(path)
                audio_seen.add(hash(path))
            else:
                self._check_segment(values["segments"], values.get("utt2dur"))
            if "feats.scp" in values and not has_archive(
                self.folder, values["feats.scp"], self.archives
            ):
                raise Irregular(key)
            if shard_index.FILE in values:
                self._note_shard(values[shard_index.FILE])
        if "spk2utt" in self.names:
            self._check_speakers(members)
        for archive, end in self.ends.items():
            if shard_index.incomplete(shard_index.located(self.folder, archive), end) is not None:
                raise Irregular(archive)
        repeated = rows - len(audio_seen)
        if self.recordings is not None:
            repeated = len(self.recordings) - len(set(self.recordings.values()))
        unused = sorted(self.recordings.keys() - self.used) if self.recordings is not None else []
        has_text, has_speakers = "text" in self.names, "utt2spk" in self.names
        return notes(
            self.folder, empty if has_text else None, has_speakers, ordered, repeated, unused
        )

    def _check_files(self) -> None:
        if "wav.scp" not in self.names or ("spk2utt" in self.names and "utt2spk" not in self.names):
            raise Irregular("a file is missing")
        for name in self.names:
            with open(self.folder / name, "rb") as stream:
                stream.seek(-1, os.SEEK_END)  # an empty file: OSError
                if stream.read(1) != b"\n":
                    raise Irregular(name)
            if name.startswith(NOT_OF_UTTERANCES) and name != "spk2utt":
                _exhaust(lines(self.folder / name))

    def _read_recordings(self) -> None:
        self.recordings = dict(lines(self.folder / "wav.scp"))
        for path in self.recordings.values():
            self._expect_audio(path)
        if "reco2dur" in self.names:
            self.lengths = {key: float(value) for key, value in lines(self.folder / "reco2dur")}
        else:
            self.lengths = audio.lengths(self.recordings, self.base)

    def _expect_audio(self, path: str) -> None:
        if not audio.is_pipe(path) and path not in self.listing:
            raise Irregular(path)

    def _check_segment(self, value: str, seconds: str | None) -> None:
        segment = Segment.parse(value)
        if segment.recording not in self.recordings or segment.is_beyond(self.lengths):
            raise Irregular(value)
        if seconds is not None and segment.is_unlike(seconds, self.lengths):
            raise Irregular(value)
        self.used.add(segment.recording)

    def _note_shard(self, value: str) -> None:
        member = shard_index.Member.parse(value)
        self.ends[member.archive] = max(
            self.ends.get(member.archive, 0), member.offset + member.size
        )

    def _check_speakers(self, members: dict[str, tuple[int, int]]) -> None:
        """That spk2utt is the inverse of utt2spk; sums of hashes tell sets apart without keeping
        them.
        """
        for speaker, value in lines(self.folder / "spk2utt"):
            ids = fields(value)
            if members.pop(speaker, None) != (len(ids), sum(map(hash, ids))):
                raise Irregular(speaker)
        if members:
            raise Irregular("spk2utt lacks a speaker")


def _exhaust(items: Iterable[object]) -> None:
    for _ in items:
        pass
