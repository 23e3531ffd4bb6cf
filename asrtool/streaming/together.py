"""Many audios at once: those whose next chunk is complete are computed in one batch.

Rows come and go. What is heard of an audio is what a `Stream` of its own hears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asrtool.recognizer import Recognizer
from asrtool.streaming import (
    EndConfig,
    FeatureStream,
    Progress,
    Result,
    Session,
    features_of,
)
from asrtool.types import Padded


class Piece(NamedTuple):
    """The next samples (T,) of an audio, float32 in [-1, 1] at the model's rate; final: the last
    ones.
    """

    samples: np.ndarray
    final: bool = False


class Row:
    """One audio of `Streams`, from `enter` to its final piece or to `leave`."""

    def __init__(self, recognizer: Recognizer, ends: EndConfig) -> None:
        encoder = recognizer.model.encoder
        self.progress = Progress(ends, encoder.seconds_per_frame)
        self.features = FeatureStream(recognizer)
        self.samples = 0
        self._rate = recognizer.rate
        # samples that must still come until the next chunk is complete
        self.missing = self.features.missing_of_chunk

    @property
    def seconds(self) -> float:
        """Of audio that came."""
        return self.samples / self._rate

    def heard(self, samples: int) -> None:
        """Count the samples of a piece, of which the features were computed."""
        self.samples += samples
        self.missing = self.features.missing_of_chunk


def hear(rows: Sequence[Row], pieces: Sequence[Piece]) -> list[Tensor]:
    """The features (T, F) that the next piece of each row completes."""
    samples, finals = zip(*pieces, strict=True)
    features = features_of([row.features for row in rows], samples, finals)
    for row, heard in zip(rows, samples, strict=True):
        row.heard(len(heard))
    return features


class Group:
    """Rows that were computed together the last time, and their session.

    The state of rows that left is kept until there is more of it than of those that stayed: so a
    row is copied when it is computed beside others than before, and seldom else.
    """

    def __init__(self, session: Session, rows: Sequence[Row]) -> None:
        self.session = session
        self._places = {row: place for place, row in enumerate(rows)}

    @property
    def rows(self) -> list[Row]:
        return list(self._places)

    @property
    def whole(self) -> bool:
        """Whether no row has left."""
        return len(self._places) == self.session.batch

    def place(self, row: Row) -> int:
        """The row of the session."""
        return self._places[row]

    def __contains__(self, row: Row) -> bool:
        return row in self._places

    def __len__(self) -> int:
        return len(self._places)

    def take(self, rows: Sequence[Row]) -> Group:
        """A group of these rows, which leave this one."""
        taken = Group(self.session.pick([self._places[row] for row in rows]), rows)
        self.leave(rows)
        return taken

    def leave(self, rows: Sequence[Row]) -> None:
        """Forget these rows."""
        for row in rows:
            del self._places[row]
        if 0 < 2 * len(self) < self.session.batch:
            self.session = self.session.pick(list(self._places.values()))
            self._places = {row: place for place, row in enumerate(self._places)}

    def join(self, other: Group) -> Group:
        """The rows of this group, then those of the other one; both are whole."""
        self._places |= {row: len(self) + place for row, place in other._places.items()}
        self.session.join(other.session)
        return self


class Streams:
    """Any number of audios, side by side.

    The state of rows that wait is not touched: a batch costs as much as the rows in it. Rows that
    come at the same times stay one group, which needs neither be taken apart nor joined.
    """

    def __init__(self, recognizer: Recognizer, ends: EndConfig | None = None) -> None:
        self.recognizer = recognizer
        self.ends = ends or EndConfig()
        self._groups: list[Group] = []
        self._new: set[Row] = set()  # nothing was heard of them yet
        Session(recognizer, 0)  # raises where the model or its search cannot stream

    def enter(self) -> Row:
        """Another audio; it costs nothing until its first piece."""
        row = Row(self.recognizer, self.ends)
        self._new.add(row)
        return row

    def leave(self, row: Row) -> None:
        """Forget an audio before its end; one that is not there is none."""
        self._new.discard(row)
        for group in self._groups:
            if row in group:
                group.leave([row])
        self._groups = [group for group in self._groups if len(group)]

    def __len__(self) -> int:
        """How many audios have not ended."""
        return len(self._new) + sum(map(len, self._groups))

    @torch.inference_mode()
    def accept(self, pieces: Mapping[Row, Piece]) -> dict[Row, Result]:
        """The next piece of some rows; the results of those that complete a chunk, or end.

        A row leaves with its final piece. Where the computation fails, these rows are lost, and no
        others. Raises `ValueError` for a row that is not there.
        """
        if not pieces:
            return {}
        if not pieces.keys() <= self._new.union(*(group.rows for group in self._groups)):
            raise ValueError("a piece of a row that has ended, left, or never entered")
        group = self._gather(list(pieces))
        rows = group.rows
        features = hear(rows, [pieces[row] for row in rows])
        final = torch.tensor([pieces[row].final for row in rows])
        spoken = group.session.accept(Padded.stack(features), final)
        heard = [] if spoken is None else spoken.unpad()
        for row, frames in zip(rows, heard, strict=False):
            row.progress.follow(frames)
        ended = [row for row in rows if pieces[row].final or row.progress.text_ends]
        results = self._finals(group, ended) if ended else {}
        moved = {row for row, frames in zip(rows, heard, strict=False) if len(frames)}
        if moved - results.keys():
            results |= self._partials(group, moved - results.keys())
        group.leave([row for row in rows if pieces[row].final])
        if len(group):
            self._groups.append(group)
        return results

    def _gather(self, rows: list[Row]) -> Group:
        """One group of these rows, in any order; it is none of `_groups` until it was computed."""
        wanted = set(rows)
        new = [row for row in rows if row in self._new]
        parts = [Group(Session(self.recognizer, len(new)), new)] if new else []
        self._new -= wanted
        rest: list[Group] = []
        for group in self._groups:
            chosen = [row for row in group.rows if row in wanted]
            if group.whole and len(chosen) == len(group):
                parts.append(group)
                continue
            if chosen:
                parts.append(group.take(chosen))
            if len(group):
                rest.append(group)
        self._groups = rest
        while len(parts) > 1:  # in pairs of equal size: no row is copied more than log(rows) times
            joined = [one.join(other) for one, other in zip(parts[::2], parts[1::2], strict=False)]
            parts = joined + parts[2 * len(joined) :]
        return parts[0]

    def _finals(self, group: Group, ended: Sequence[Row]) -> dict[Row, Result]:
        """The final results of these rows; their next texts begin."""
        places = [group.place(row) for row in ended]
        texts = group.session.ended(places)
        nbests, classes = texts.finish()
        best = [nbest[0] for nbest in nbests]
        words = texts.words(best, [row.seconds for row in ended])
        results = {}
        for row, text, labels, spelt in zip(ended, best, classes, words, strict=True):
            span = row.progress.span(row.seconds)
            results[row] = Result(final=True, **span, hypothesis=text, classes=labels, words=spelt)
            row.progress.next_text()
        group.session.restart(places)
        return results

    def _partials(self, group: Group, moved: set[Row]) -> dict[Row, Result]:
        """Of the rows that heard more and whose text goes on."""
        return {
            row: Result(final=False, **row.progress.span(row.seconds), hypothesis=text)
            for row, text in zip(group.rows, group.session.partial(), strict=True)
            if row in moved and row.progress.frames > row.progress.start
        }
