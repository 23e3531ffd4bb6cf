"""The compiled prefix beam search of one utterance: the arrays of kernel.py, their growth, and the
results.
"""

from __future__ import annotations

import numpy as np

from asrtool.searchers.ctc import kernel
from asrtool.searchers.ctc.settings import ScoredPrefix, Settings

SMALLEST = 1 << 10  # slots of the first hash table; a power of two
# dtypes of the fields of `kernel.Nodes` and `kernel.Links`, in their order
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
    np.int32,
    np.int32,
)
LINK_TYPES = (np.int32, np.int32, np.float64)
PARTS = ("ctc", "ngram", "hotwords")  # columns of `kernel.shares`


class CompiledPrefixBeam:
    """The search of one utterance: `advance` by frames, then `results`.

    Memory grows with the number of frames times the beam.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.options = kernel.Options(
            blank=settings.blank,
            width=settings.width,
            skip=settings.skip,
            tables=settings.tables,
            weights=_weights(settings),
        )
        nodes = kernel.Nodes(*(np.zeros(1, dtype) for dtype in NODE_TYPES))
        nodes.token[kernel.ROOT] = kernel.NONE
        nodes.state[kernel.ROOT] = settings.tables.start
        nodes.biased[kernel.ROOT] = settings.tables.biased_start
        counts = np.zeros(4, dtype=np.int64)
        counts[[kernel.NUM_NODES, kernel.BEAM_SIZE]] = 1  # the empty prefix
        self.tree = kernel.Tree(
            nodes=nodes,
            table=kernel.Table(np.zeros(0, np.int64), np.zeros(0, np.int32)),
            links=kernel.Links(*(np.zeros(0, dtype) for dtype in LINK_TYPES)),
            counts=counts,
        )
        self.beam = _beam(settings.beam)
        # b_0(empty) = 1: before the first frame, the empty prefix counts as ending in blank
        self.beam.blank[0] = self.beam.total[0] = self.beam.best_blank[0] = 0.0
        self.scratch = _scratch(settings.beam)

    def advance(self, rows: np.ndarray) -> None:
        """Read frames: rows (T, V) log-probabilities, float32 or float64.

        Raises `ValueError` if they contain NaN.
        """
        if not len(rows):
            return
        self._make_room(len(rows) * self.settings.beam)
        if not kernel.advance(rows, self.tree, self.beam, self.scratch, self.options):
            raise ValueError("NaN")

    def _make_room(self, more: int) -> None:
        """Make room for `more` nodes and links.

        Sizes double, so that many small pieces cost no more than a few large ones.
        """
        tree, counts = self.tree, self.tree.counts
        nodes = kernel.Nodes(*_grown(tree.nodes, counts[kernel.NUM_NODES], more))
        links = kernel.Links(*_grown(tree.links, counts[kernel.NUM_LINKS], more))
        table = tree.table
        # a power of two of at least twice the nodes, so that a slot is found after a few steps
        size = max(SMALLEST, 1 << (2 * len(nodes.parent) - 1).bit_length())
        if size > len(table.keys):
            table = kernel.Table(np.full(size, kernel.NONE, np.int64), np.zeros(size, np.int32))
            kernel.rehash(nodes, counts[kernel.NUM_NODES], len(self.settings.skip), table)
        self.tree = tree._replace(nodes=nodes, links=links, table=table)

    def results(self, final: bool, most: int | None = None) -> list[ScoredPrefix]:
        """Up to `most` prefixes, best first; final: scores include the end of the text."""
        nodes, weights = self.tree.nodes, self.options.weights
        size = int(self.tree.counts[kernel.BEAM_SIZE])
        length = int(self.tree.counts[kernel.NUM_FRAMES])  # a prefix has at most a token per frame
        # columns: CTC, n-gram model, hotwords, number of words (NaN: the lexicon does not let the
        # text end here)
        shares = np.empty((size, len(PARTS) + 1))
        kernel.shares(nodes, self.beam, size, self.settings.tables, final, shares)
        names = ("ctc", *self.settings.scores)
        columns = [PARTS.index(name) for name in names]
        room = tuple(np.empty(length, dtype) for dtype in (np.int64, np.int64, np.float64))
        words = shares[:, -1]
        possible = ~np.isnan(words)
        # no prefix of the beam ends in a whole word of the lexicon: keep the incomplete words
        if not possible.any():
            words, possible = nodes.words[self.beam.node[:size]].astype(float), ~possible
        order = range(size)
        # Scores of n-gram model, hotwords and words at the end may change the order: exchange the
        # running values in `extra` for the final ones.
        if self.options.weights.fused:
            entered = self.beam.node[:size]
            change = shares[:, 1] - nodes.ngram[entered], shares[:, 2] - nodes.bonus[entered]
            score = weights.ctc * shares[:, 0] + nodes.extra[entered]
            score += weights.ngram * change[0] + weights.hotwords * change[1]
            score += weights.word * (words - nodes.words[entered])
            order = [rank for rank in np.argsort(-score, kind="stable").tolist() if possible[rank]]
        return [
            self._scored(
                rank,
                dict(zip(names, shares[rank, columns].tolist(), strict=True)),
                int(words[rank]),
                room,
            )
            for rank in order[:most]
        ]

    def _scored(
        self, rank: int, parts: dict[str, float], words: int, room: tuple[np.ndarray, ...]
    ) -> ScoredPrefix:
        beam = self.beam
        # the best path of a prefix ends in blank or in its last token
        link = (
            beam.link_blank[rank]
            if beam.best_blank[rank] >= beam.best_label[rank]
            else beam.link_label[rank]
        )
        node = int(beam.node[rank])
        count = kernel.trace(self.tree.nodes, self.tree.links, node, int(link), *room)
        tokens, frames, log_probs = (part[:count][::-1].tolist() for part in room)
        return ScoredPrefix(tuple(tokens), parts, frames, log_probs, words)


def _beam(size: int) -> kernel.Beam:
    floats, links = (
        (np.full(size, -np.inf) for _ in range(5)),
        (np.full(size, -1) for _ in range(2)),
    )
    return kernel.Beam(np.zeros(size, np.int64), *floats, *links)


def _scratch(size: int) -> kernel.Scratch:
    floats = ("blank", "label", "total", "score")
    ranks = ("parent", "first_child", "next_child", "source", "token")
    return kernel.Scratch(
        before=_beam(size),
        **{name: np.empty(size) for name in floats},
        **{name: np.empty(size, int) for name in ranks},
    )


def _grown(arrays: tuple[np.ndarray, ...], used: int, more: int) -> list[np.ndarray]:
    if used + more <= len(arrays[0]):
        return list(arrays)
    size = max(used + more, 2 * len(arrays[0]))
    grown = [np.empty(size, array.dtype) for array in arrays]
    for new, old in zip(grown, arrays, strict=True):
        new[:used] = old[:used]
    return grown


def _weights(settings: Settings) -> kernel.Weights:
    # `gain` bounds what one token can add beside CTC: it prunes extensions that cannot enter the
    # beam. An n-gram model only ever subtracts.
    gain = max(settings.bonus, 0.0)
    if "hotwords" in settings.scores:
        gain += settings.weights["hotwords"] * settings.scores["hotwords"].most
    if settings.lexicon is not None:
        gain += max(settings.word_score, 0.0) * settings.lexicon.most
    return kernel.Weights(
        ctc=float(settings.weights["ctc"]),
        ngram=float(settings.weights.get("ngram", 0.0)),
        hotwords=float(settings.weights.get("hotwords", 0.0)),
        bonus=float(settings.bonus),
        word=float(settings.word_score),
        gain=float(gain),
        fused=int(bool(settings.scores) or settings.lexicon is not None),
    )
