"""The columns of a data directory: a few large arrays instead of objects for every utterance.

Characters of all utterances are one array of bytes, and what many utterances share (speakers,
labels, folders, archives) is stored once. So an utterance takes about 150 bytes, arrays can be
mapped from a file (`cache`), and processes that were forked share them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from asrtool.data.kaldi import padding
from asrtool.data.kaldi.place import Place
from asrtool.types import Utterance

# Paths that came from the file system may hold bytes that are not UTF-8, as lone surrogates.
ERRORS = "surrogatepass"
ROWS = 1 << 16  # strings that are looked at together
SMALL = np.iinfo(np.uint32).max  # bounds up to this take 4 bytes
Arrays = dict[str, np.ndarray]


class Strings:
    """Strings in one buffer.

    buffer: (bytes,) uint8, UTF-8; bounds: (N + 1,) where each begins, and where the last ends.
    """

    def __init__(self, buffer: np.ndarray, bounds: np.ndarray) -> None:
        self.buffer = buffer
        self.bounds = bounds

    @classmethod
    def of(cls, values: Iterable[str]) -> Strings:
        return cls.of_bytes([value.encode(errors=ERRORS) for value in values])

    @classmethod
    def of_bytes(cls, values: Sequence[bytes]) -> Strings:
        sizes = np.fromiter(map(len, values), np.int64, len(values))
        return cls.cut([np.frombuffer(b"".join(values), np.uint8)], [sizes])

    @classmethod
    def cut(cls, buffers: Sequence[np.ndarray], sizes: Sequence[np.ndarray]) -> Strings:
        """buffers: pieces of the buffer; sizes: bytes of each string, also in pieces."""
        bounds = np.concatenate([np.zeros(1, np.int64), *sizes]).cumsum()
        small = bounds[-1] <= SMALL
        return cls(np.concatenate(buffers), bounds.astype(np.uint32) if small else bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self.bounds[index : index + 2].tolist()
        return self.buffer[start:end].tobytes().decode(errors=ERRORS)

    def __iter__(self) -> Iterator[str]:
        for _, points, sizes in self._parts():
            text = points.astype("<u4").tobytes().decode("utf-32-le", ERRORS)
            ends = np.cumsum(sizes).tolist()
            yield from (text[start:end] for start, end in zip([0, *ends], ends, strict=False))

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64, the bytes of each."""
        return np.diff(self.bounds.astype(np.int64, copy=False))

    @classmethod
    def joined(cls, groups: Sequence[Strings]) -> Strings:
        return cls.cut([group.buffer for group in groups], [group.sizes for group in groups])

    def take(self, rows: np.ndarray) -> Strings:
        """The strings with these indices (M,)."""
        buffers, sizes = [np.empty(0, np.uint8)], self.sizes[rows]
        for first in range(0, len(rows), ROWS):
            some = slice(first, first + ROWS)
            starts, own = self.bounds[rows[some]].astype(np.int64), sizes[some]
            # the place of every byte: its string's start, and how far it is from there
            places = np.repeat(starts - np.cumsum(own) + own, own) + np.arange(own.sum())
            buffers.append(self.buffer[places])
        return Strings.cut(buffers, [sizes])

    def keys(self) -> np.ndarray:
        """(N,) the strings as bytes of NumPy, which can be compared and searched."""
        rows = [np.empty(0, "S1")]
        for first in range(0, len(self), ROWS):
            bounds = self.bounds[first : first + ROWS + 1].astype(np.int64)
            part = np.concatenate(
                [self.buffer[bounds[0] : bounds[-1]], np.zeros(padding.WORD, np.uint8)]
            )
            rows.append(padding.padded(part, bounds[:-1] - bounds[0], bounds[1:] - bounds[0]))
        return np.concatenate(rows)

    @property
    def characters(self) -> np.ndarray:
        """(N,) int64, the number of characters of each."""
        return np.concatenate([np.empty(0, np.int64), *(sizes for _, _, sizes in self._parts())])

    def alphabet(self) -> set[str]:
        """The characters that occur."""
        seen = np.zeros(sys.maxunicode + 1, dtype=bool)
        for _, characters, _ in self._parts():
            seen[characters] = True
        return set(map(chr, np.flatnonzero(seen).tolist()))

    def find(self, wanted: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Every occurrence of some characters: the strings (M,) that have them, and which (M,)."""
        sought = np.zeros(sys.maxunicode + 1, dtype=bool)
        sought[[ord(character) for character in wanted]] = True
        rows, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for first, characters, sizes in self._parts():
            (places,) = np.nonzero(sought[characters])
            rows.append(first + np.searchsorted(np.cumsum(sizes), places, side="right"))
            found.append(characters[places].astype(np.int64))
        return np.concatenate(rows), np.concatenate(found)

    def _parts(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Parts of moderate size: index of the first string, code points of all, number of each."""
        for first in range(0, len(self), ROWS):
            bounds = self.bounds[first : first + ROWS + 1].astype(np.int64)
            part = self.buffer[bounds[0] : bounds[-1]]
            if (part < 0x80).all():
                yield first, part, np.diff(bounds)
                continue
            text = part.tobytes().decode(errors=ERRORS)
            # the first byte of each character, or the only one
            begun = np.concatenate([[0], np.cumsum((part & 0xC0) != 0x80)])
            points = np.frombuffer(text.encode("utf-32-le", ERRORS), "<u4")
            yield first, points, np.diff(begun[bounds - bounds[0]])

    def arrays(self) -> Arrays:
        return {"buffer": self.buffer, "bounds": self.bounds}

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Strings:
        return cls(arrays["buffer"], arrays["bounds"])


class Coded:
    """Strings that are equal or begin alike: `values[code]`, then `tails[row]` if there are any.

    codes: (N,) int32, -1 for None. The files of a folder have its path as their common value.
    """

    def __init__(self, codes: np.ndarray, values: Strings, tails: Strings | None = None) -> None:
        self.codes = codes
        self.values = values
        self.tails = tails

    @classmethod
    def of(cls, rows: Iterable[str | None], separator: str = "") -> Coded:
        """separator: strings are cut behind their last one; without it, they are shared whole."""
        known: dict[str, int] = {}
        codes, tails = [], []
        for row in rows:
            cut = (row or "").rfind(separator) + 1 if separator else len(row or "")
            codes.append(-1 if row is None else known.setdefault(row[:cut], len(known)))
            tails.append((row or "")[cut:])
        values = Strings.of(known)
        return cls(np.array(codes, np.int32), values, Strings.of(tails) if separator else None)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str | None:
        code = int(self.codes[index])
        if code < 0:
            return None
        return self.values[code] + ("" if self.tails is None else self.tails[index])

    def arrays(self) -> Arrays:
        parts = {"codes": self.codes} | _under("values", self.values.arrays())
        return parts if self.tails is None else parts | _under("tails", self.tails.arrays())

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Coded:
        tails = _below("tails", arrays)
        return cls(
            arrays["codes"],
            Strings.of_arrays(_below("values", arrays)),
            Strings.of_arrays(tails) if tails else None,
        )


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The values of `Utterance`s by kind. What all of them lack is None.

    place: turns the entries of audio and features into paths; None: they are paths already.
    """

    ids: Strings
    texts: Strings | None  # None: all are empty
    audio: Coded
    durations: np.ndarray  # (N,) float64
    speakers: Coded | None  # None: each utterance is its own
    recordings: Coded | None = None
    starts: np.ndarray | None = None  # (N,) float64; None: all are 0
    features: Coded | None = None
    num_frames: np.ndarray | None = None  # (N,) int64, -1 for None
    labels: Mapping[str, Coded] = field(default_factory=dict)
    place: Place | None = None

    @classmethod
    def of(cls, utterances: Iterable[Utterance]) -> Columns:
        """The columns of utterances, which `self[i]` gives back."""
        rows = list(utterances)
        names = dict.fromkeys(name for row in rows for name in row.labels)
        frames = [-1 if row.num_frames is None else row.num_frames for row in rows]
        return cls(
            ids=Strings.of(row.id for row in rows),
            texts=Strings.of(row.text for row in rows),
            audio=Coded.of((row.audio for row in rows), "/"),
            durations=np.array([row.duration for row in rows], np.float64),
            speakers=Coded.of(row.speaker for row in rows),
            recordings=Coded.of(row.recording for row in rows),
            starts=np.array([row.start for row in rows], np.float64),
            features=Coded.of((row.features for row in rows), ":"),
            num_frames=np.array(frames, np.int64),
            labels={name: Coded.of(row.labels.get(name) for row in rows) for name in names},
        )

    def __len__(self) -> int:
        return len(self.durations)

    def __getitem__(self, index: int) -> Utterance:
        key, place = self.ids[index], self.place
        features = None if self.features is None else self.features[index]
        frames = -1 if self.num_frames is None else int(self.num_frames[index])
        labels = {name: values[index] for name, values in self.labels.items()}
        return Utterance(
            id=key,
            audio=self.audio[index] if place is None else place.audio(self.audio[index]),
            duration=float(self.durations[index]),
            text="" if self.texts is None else self.texts[index],
            speaker=key if self.speakers is None else self.speakers[index],
            recording=None if self.recordings is None else self.recordings[index],
            start=0.0 if self.starts is None else float(self.starts[index]),
            labels={name: value for name, value in labels.items() if value is not None},
            features=features if place is None or features is None else place.archive(features),
            num_frames=None if frames < 0 else frames,
        )

    def arrays(self) -> Arrays:
        """All arrays by a name; `of_arrays` gives the columns back, without their place."""
        made: Arrays = {}
        columns = {one.name: getattr(self, one.name) for one in fields(self)}
        columns |= {f"labels.{name}": codes for name, codes in columns.pop("labels").items()}
        for name, column in columns.items():
            if isinstance(column, np.ndarray):
                made[name] = column
            elif isinstance(column, (Strings, Coded)):
                made |= _under(name, column.arrays())
        return made

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Columns:
        def column(kind: type[Strings | Coded], name: str) -> Strings | Coded | None:
            parts = _below(name, arrays)
            return kind.of_arrays(parts) if parts else None

        labels = dict.fromkeys(name.split(".")[0] for name in _below("labels", arrays))
        return cls(
            ids=column(Strings, "ids"),
            texts=column(Strings, "texts"),
            audio=column(Coded, "audio"),
            durations=arrays["durations"],
            speakers=column(Coded, "speakers"),
            recordings=column(Coded, "recordings"),
            starts=arrays.get("starts"),
            features=column(Coded, "features"),
            num_frames=arrays.get("num_frames"),
            labels={name: column(Coded, f"labels.{name}") for name in labels},
        )


def _under(name: str, arrays: Arrays) -> Arrays:
    return {f"{name}.{key}": value for key, value in arrays.items()}


def _below(name: str, arrays: Arrays) -> Arrays:
    start = f"{name}."
    return {
        key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)
    }
