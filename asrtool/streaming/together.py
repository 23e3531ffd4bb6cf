"""Many audios at once: those whose next chunk is complete are computed in one batch.

Rows come and go. What is heard of an audio is what a `Stream` of its own hears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asrtool.recognizer import Recognizer
from asrtool.streaming import EndConfig, FeatureStream, Progress, Result, Session
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
        self._chunk = recognizer.chunk * encoder.input_frames  # input frames of a chunk
        self._pending = 0  # input frames of a chunk that is not complete

    @property
    def missing(self) -> int:
        """How many samples must still come until the next chunk is complete."""
        return self.features.missing(self._chunk - self._pending)

    @property
    def seconds(self) -> float:
        """Of audio that came."""
        return self.samples / self._rate

    def hear(self, piece: Piece) -> Tensor:
        """The features (T, F) that a piece completes."""
        self.samples += len(piece.samples)
        features = self.features(piece.samples, piece.final)
        self._pending = (self._pending + len(features)) % self._chunk
        return features


@dataclass
class Group:
    """Rows that were computed together the last time, and their session."""

    session: Session
    rows: list[Row]

    def take(self, rows: Sequence[Row]) -> Group:
        """A group of these rows, which leave this one."""
        places = [self.rows.index(row) for row in rows]
        self.rows = [row for row in self.rows if row not in rows]
        return Group(self.session.take(places), list(rows))

    def join(self, other: Group) -> Group:
        self.session.join(other.session)
        self.rows += other.rows
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
            if row in group.rows:
                group.take([row])
        self._groups = [group for group in self._groups if group.rows]

    def __len__(self) -> int:
        """How many audios have not ended."""
        return len(self._new) + sum(len(group.rows) for group in self._groups)

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
        features = [row.hear(pieces[row]) for row in group.rows]
        final = torch.tensor([pieces[row].final for row in group.rows])
        spoken = group.session.accept(Padded.stack(features), final)
        heard = [] if spoken is None else spoken.unpad()
        for row, frames in zip(group.rows, heard, strict=False):
            row.progress.follow(frames)
        ended = [row for row in group.rows if pieces[row].final or row.progress.text_ends]
        results = self._finals(group, ended) if ended else {}
        moved = {row for row, frames in zip(group.rows, heard, strict=False) if len(frames)}
        going = [row for row in group.rows if row not in results]
        if moved & set(going):
            results |= self._partials(group, moved)
        gone = [row for row in group.rows if pieces[row].final]
        if gone:
            group.take(gone)
        if group.rows:
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
            if len(chosen) == len(group.rows):
                parts.append(group)
                continue
            if chosen:
                parts.append(group.take(chosen))
            rest.append(group)
        self._groups = rest
        while len(parts) > 1:  # in pairs of equal size: no row is copied more than log(rows) times
            joined = [one.join(other) for one, other in zip(parts[::2], parts[1::2], strict=False)]
            parts = joined + parts[2 * len(joined) :]
        return parts[0]

    def _finals(self, group: Group, ended: Sequence[Row]) -> dict[Row, Result]:
        """The final results of these rows; their next texts begin."""
        part = group.take(ended)
        nbests, classes = part.session.finish()
        best = [nbest[0] for nbest in nbests]
        words = part.session.words(best, [row.seconds for row in part.rows])
        results = {}
        for row, text, labels, spelt in zip(part.rows, best, classes, words, strict=True):
            span = row.progress.span(row.seconds)
            results[row] = Result(final=True, **span, hypothesis=text, classes=labels, words=spelt)
            row.progress.next_text()
        part.session.restart()
        group.join(part)
        return results

    def _partials(self, group: Group, moved: set[Row]) -> dict[Row, Result]:
        """Of the rows that heard more and whose text goes on."""
        return {
            row: Result(final=False, **row.progress.span(row.seconds), hypothesis=text)
            for row, text in zip(group.rows, group.session.partial(), strict=True)
            if row in moved and row.progress.frames > row.progress.start
        }
