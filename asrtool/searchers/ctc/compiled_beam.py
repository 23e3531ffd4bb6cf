"""The compiled prefix beam search of one utterance: its arrays, their growth, its results
(kernel.py).
"""

from __future__ import annotations

import numpy as np

from asrtool.searchers.ctc import kernel
from asrtool.searchers.ctc.settings import Result, Settings

SMALLEST = 1 << 10  # places of the first hash table
NODE_TYPES = (
    np.int32,
    np.int32,
    np.int32,
    np.float64,
    np.float64,
    np.int64,
    np.int64,
    np.float64,
    np.int32,
)
LINK_TYPES = (np.int32, np.int32, np.float64)


class CompiledPrefixBeam:
    """The search of one utterance: `advance` by frames, then `results`. Memory grows with frames
    times beam.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.weights = _weights(settings)
        self.nodes = kernel.Nodes(*(np.zeros(1, dtype) for dtype in NODE_TYPES))
        self.nodes.token[0] = -1
        self.nodes.state[0] = settings.tables.start
        self.nodes.biased[0] = settings.tables.biased_start
        self.links = kernel.Links(*(np.zeros(0, dtype) for dtype in LINK_TYPES))
        self.beam = _beam(settings.beam)
        self.beam.blank[0] = self.beam.total[0] = self.beam.best_blank[0] = 0.0
        floats, ranks = (
            (np.empty(settings.beam) for _ in range(4)),
            (np.empty(settings.beam, int) for _ in range(5)),
        )
        self.scratch = kernel.Scratch(
            before=_beam(settings.beam),
            blank=next(floats),
            label=next(floats),
            total=next(floats),
            score=next(floats),
            parent=next(ranks),
            first_child=next(ranks),
            next_child=next(ranks),
            source=next(ranks),
            token=next(ranks),
        )
        self.keys, self.values = np.zeros(0, np.int64), np.zeros(0, np.int32)
        self.counts = np.array([1, 0, 1, 0], dtype=np.int64)

    def advance(self, rows: np.ndarray) -> None:
        """rows (T, V) log-probabilities, float32 or float64."""
        if not len(rows):
            return
        self._make_room(len(rows) * self.settings.beam)
        complete = kernel.advance(
            rows,
            self.settings.blank,
            self.settings.skip,
            self.settings.width,
            self.nodes,
            self.keys,
            self.values,
            self.links,
            self.beam,
            self.counts,
            self.scratch,
            self.settings.tables,
            self.weights,
        )
        if not complete:
            raise ValueError("NaN")

    def _make_room(self, more: int) -> None:
        """For that many more nodes and links; sizes double, so that feeding in small pieces costs
        no more.
        """
        self.nodes = kernel.Nodes(*_grown(self.nodes, self.counts[0], more))
        self.links = kernel.Links(*_grown(self.links, self.counts[1], more))
        places = max(SMALLEST, 1 << (2 * len(self.nodes.parent) - 1).bit_length())
        if places > len(self.keys):
            self.keys, self.values = np.full(places, -1, np.int64), np.zeros(places, np.int32)
            kernel.rehash(
                self.nodes, self.counts[0], len(self.settings.skip), self.keys, self.values
            )

    def results(self, final: bool, most: int | None = None) -> list[Result]:
        """The best prefixes, best first; final: with what the end of the text adds."""
        size = int(self.counts[2])
        shares = np.empty((size, 3))
        kernel.shares(self.nodes, self.beam, size, self.settings.tables, final, shares)
        names = ("ctc", *self.settings.scores)
        places = [("ctc", "ngram", "hotwords").index(name) for name in names]
        room = tuple(
            np.empty(int(self.counts[3]), dtype) for dtype in (np.int64, np.int64, np.float64)
        )
        order = range(size)
        if self.settings.scores:  # the end may change the order
            nodes = self.beam.node[:size]
            change = shares[:, 1] - self.nodes.ngram[nodes], shares[:, 2] - self.nodes.bonus[nodes]
            score = self.weights.ctc * shares[:, 0] + self.nodes.extra[nodes]
            score += self.weights.ngram * change[0] + self.weights.hotwords * change[1]
            order = np.argsort(-score, kind="stable").tolist()
        return [
            self._result(rank, dict(zip(names, shares[rank, places].tolist(), strict=True)), room)
            for rank in order[:most]
        ]

    def _result(self, rank: int, parts: dict[str, float], room: tuple[np.ndarray, ...]) -> Result:
        beam = self.beam
        link = (
            beam.link_blank[rank]
            if beam.best_blank[rank] >= beam.best_label[rank]
            else beam.link_label[rank]
        )
        count = kernel.trace(self.nodes, self.links, int(beam.node[rank]), int(link), *room)
        tokens, frames, log_probs = (part[:count][::-1].tolist() for part in room)
        return Result(tuple(tokens), parts, frames, log_probs)


def _beam(size: int) -> kernel.Beam:
    floats, links = (
        (np.full(size, -np.inf) for _ in range(5)),
        (np.full(size, -1) for _ in range(2)),
    )
    return kernel.Beam(np.zeros(size, np.int64), *floats, *links)


def _grown(arrays: tuple[np.ndarray, ...], used: int, more: int) -> list[np.ndarray]:
    if used + more <= len(arrays[0]):
        return list(arrays)
    size = max(used + more, 2 * len(arrays[0]))
    grown = [np.empty(size, array.dtype) for array in arrays]
    for new, old in zip(grown, arrays, strict=True):
        new[:used] = old[:used]
    return grown


def _weights(settings: Settings) -> kernel.Weights:
    gain = max(settings.bonus, 0.0)
    if "hotwords" in settings.scores:
        gain += settings.weights["hotwords"] * settings.scores["hotwords"].most
    return kernel.Weights(
        ctc=float(settings.weights["ctc"]),
        ngram=float(settings.weights.get("ngram", 0.0)),
        hotwords=float(settings.weights.get("hotwords", 0.0)),
        bonus=float(settings.bonus),
        gain=float(gain),
        fused=int(bool(settings.scores)),
    )
