"""Many utterances without an object for each: an `Utterance` is made when it is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import overload

import numpy as np

from asrtool.data.kaldi.columns import Coded, Columns, Strings
from asrtool.types import Utterance


class Utterances(Sequence[Utterance]):
    """The utterances `rows` (N,) of some columns, counted through all of them; None: all.

    What concerns all utterances is a method here, and takes no object for each.
    """

    def __init__(self, parts: Sequence[Columns], rows: np.ndarray | None = None) -> None:
        self._parts = list(parts)
        self._begins = np.cumsum([0, *map(len, self._parts)])
        self._rows = rows

    @classmethod
    def of(cls, utterances: Iterable[Utterance]) -> Utterances:
        """Any utterances; `Utterances` are returned as they are."""
        return utterances if isinstance(utterances, cls) else cls([Columns.of(utterances)])

    @classmethod
    def joined(cls, groups: Iterable[Iterable[Utterance]]) -> Utterances:
        """Several groups, one after the other."""
        groups = [cls.of(group) for group in groups]
        parts = [part for group in groups for part in group._parts]
        begins = np.cumsum([0, *(group._begins[-1] for group in groups)])
        rows = [begin + group._all for begin, group in zip(begins, groups, strict=False)]
        return cls(parts, np.concatenate(rows))

    def __len__(self) -> int:
        return int(self._begins[-1]) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...

    @overload
    def __getitem__(self, index: slice) -> Utterances: ...

    def __getitem__(self, index: int | slice) -> Utterance | Utterances:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        part, row = self._find(index)
        return part[row]

    def __eq__(self, other: object) -> bool:
        """Whether these are the utterances of another sequence."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    def id(self, index: int) -> str:
        part, row = self._find(index)
        return part.ids[row]

    @property
    def ids(self) -> Strings:
        columns = [part.ids for part in self._parts]
        names = columns[0] if len(columns) == 1 else Strings.joined(columns)
        return names if self._rows is None else names.take(self._rows)

    def take(self, indices: np.ndarray) -> Utterances:
        """The utterances with these indices (N,), or those where a mask (N,) is True."""
        return Utterances(self._parts, self._all[indices])

    # -- all utterances at once --------------------------------------------

    @cached_property
    def durations(self) -> np.ndarray:
        """(N,) seconds; NaN where they are not measured."""
        return self._of_all(lambda part: part.durations)

    def with_durations(self, durations: np.ndarray) -> Utterances:
        """The same utterances with other durations (N,)."""
        of_parts = np.concatenate([part.durations for part in self._parts])
        of_parts[self._all] = durations
        pieces = np.split(of_parts, self._begins[1:-1])
        parts = [
            replace(part, durations=piece) for part, piece in zip(self._parts, pieces, strict=True)
        ]
        return Utterances(parts, self._rows)

    @property
    def has_text(self) -> np.ndarray:
        """(N,) whether the transcript is not empty."""
        return self._of_all(lambda part: _texts(part).sizes) > 0

    @property
    def characters(self) -> np.ndarray:
        """(N,) the number of characters of each transcript."""
        return self._of_all(lambda part: _texts(part).characters)

    def alphabet(self) -> set[str]:
        """The characters of the transcripts, and perhaps of others in the same data directories."""
        return set().union(*(_texts(part).alphabet() for part in self._parts))

    def occurrences(self, wanted: Iterable[str]) -> tuple[Counter[str], int]:
        """How often the transcripts have each of these characters, and how many have any."""
        mine = np.zeros(self._begins[-1], dtype=bool)
        mine[self._all] = True
        counts, texts = Counter(), 0
        for part, begin in zip(self._parts, self._begins, strict=False):
            rows, found = _texts(part).find(wanted)
            chosen = mine[begin + rows]
            counts.update(map(chr, found[chosen].tolist()))
            texts += len(np.unique(rows[chosen]))
        return counts, texts

    def label(self, name: str, values: Sequence[str]) -> np.ndarray:
        """(N,) the index of a label's value in `values`; -1 where it is another one or none."""
        index = {value: number for number, value in enumerate(values)}

        def codes(part: Columns) -> np.ndarray:
            if name not in part.labels:
                return np.full(len(part), -1)
            label = part.labels[name]
            # the last one is for a code of -1
            return np.array([*(index.get(value, -1) for value in label.values), -1])[label.codes]

        return self._of_all(codes)

    def with_label(self, name: str, value: str) -> Utterances:
        """The same utterances with the same value of a label."""
        parts = []
        for part in self._parts:
            codes = np.broadcast_to(np.int32(0), len(part))  # which takes no memory
            label = Coded(codes, Strings.of([value]))
            parts.append(replace(part, labels={**part.labels, name: label}))
        return Utterances(parts, self._rows)

    def shared_id(self, other: Utterances) -> str | None:
        """The first id that another set has, too. Both are sorted by id, as by `datadir.read`."""
        keys, others = self.ids.keys(), other.ids.keys()
        found = np.minimum(np.searchsorted(others, keys), len(others) - 1)
        (both,) = np.nonzero(others[found] == keys)
        return self.id(both[0]) if len(both) else None

    # -- rows ----------------------------------------------------------------

    @property
    def _all(self) -> np.ndarray:
        return np.arange(len(self)) if self._rows is None else self._rows

    def _find(self, index: int) -> tuple[Columns, int]:
        """The part and the row in it of an utterance."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = int(index) % len(self)
        row = row if self._rows is None else int(self._rows[row])
        part = int(np.searchsorted(self._begins, row, side="right")) - 1
        return self._parts[part], row - int(self._begins[part])

    def _of_all(self, column: Callable[[Columns], np.ndarray]) -> np.ndarray:
        """(N,) a value of each utterance; column: of each row of a part."""
        columns = [column(part) for part in self._parts]
        values = columns[0] if len(columns) == 1 else np.concatenate(columns)
        return values if self._rows is None else values[self._rows]


def _texts(part: Columns) -> Strings:
    if part.texts is not None:
        return part.texts
    return Strings(np.empty(0, np.uint8), np.broadcast_to(np.uint32(0), len(part) + 1))
