"""The compiled prefix beam search: the recurrences of prefix_beam.py for one utterance.

Prefixes are nodes of a tree. A prefix that leaves the beam and returns has the same node again: a
hash table finds the node of (parent, token). The beam is a set of parallel arrays, best first.
Times come from the best path of each prefix, whose tokens are a linked list of (frame,
log-probability).
"""

from __future__ import annotations

from math import exp, inf, log1p
from typing import NamedTuple

import numpy as np

from asrtool.compiled import compiled
from asrtool.searchers import hotwords, lexicon
from asrtool.searchers.fusion import NOTHING, Tables, end_ngram, extend_ngram

NEGLIGIBLE = -40.0  # logarithm of a share that is lost in a float64 sum
ROUNDING = 1e-12  # relative, far above the rounding of a float64 sum
SORTED = 256  # with more candidates than this, the whole frame is sorted
LANES = 64  # minimum number of groups; a power of two


class Nodes(NamedTuple):
    """All prefixes that have been in the beam; node 0 is the empty one."""

    parent: np.ndarray  # int32
    token: np.ndarray  # int32, -1 for node 0
    rank: np.ndarray  # int32: rank in the beam, -1 for those that are not in it
    extra: np.ndarray  # float64: weighted scores and bonuses other than CTC's
    ngram: np.ndarray  # float64, unweighted
    state: np.ndarray  # int64
    pending: np.ndarray  # int64: hash of the incomplete last word
    bonus: np.ndarray  # float64: hotwords, unweighted
    biased: np.ndarray  # int32: state of the hotwords
    words: np.ndarray  # int32: how many are complete
    spelled: np.ndarray  # int32: state of the lexicon


class Links(NamedTuple):
    """Tokens on best paths: the link before (-1: none), the most probable frame, its logarithm."""

    before: np.ndarray  # int32
    frame: np.ndarray  # int32
    log_prob: np.ndarray  # float64


class Beam(NamedTuple):
    """The best prefixes, best first. `best_*`: score of the best path alone, `link_*`: its last
    token.
    """

    node: np.ndarray  # int32
    blank: np.ndarray  # float64, log b
    label: np.ndarray  # float64, log n
    total: np.ndarray  # float64, log (n + b)
    best_blank: np.ndarray
    best_label: np.ndarray
    link_blank: np.ndarray  # int32
    link_label: np.ndarray


class Scratch(NamedTuple):
    """Buffers of one frame: the beam before it, the scores of its prefixes after it, and the list
    of the best prefixes after it.
    """

    before: Beam
    # float64, log b, log n and log (n + b) after the frame, for prefixes that do not grow
    blank: np.ndarray
    label: np.ndarray
    total: np.ndarray
    parent: np.ndarray  # int64 rank of the parent before the frame, -1: not in the beam
    first_child: np.ndarray  # int64 ranks of the children before the frame, a linked list
    next_child: np.ndarray
    score: np.ndarray  # float64, of the best prefixes after the frame, best first
    source: np.ndarray  # int64 rank of the prefix that stays or grows
    token: np.ndarray  # int64 what it grows by, -1: it stays


class Weights(NamedTuple):
    """Weights of the parts of a score (4)."""

    ctc: float
    ngram: float
    hotwords: float
    bonus: float  # per token
    word: float  # per word
    gain: float  # upper bound on what one token adds beside CTC
    fused: int  # 1: n-gram model, hotwords or lexicon


class Table(NamedTuple):
    """An open-addressing hash table, parent * V + token -> node; its size is a power of two."""

    keys: np.ndarray  # int64, -1: free
    nodes: np.ndarray  # int32


class Tree(NamedTuple):
    """All prefixes and best paths of one utterance so far. Arrays have spare room; `counts` says
    how much is used.
    """

    nodes: Nodes
    table: Table
    links: Links
    counts: np.ndarray  # (4,) int64, by the constants below


class Options(NamedTuple):
    """Settings that are the same for all frames."""

    blank: int
    width: int  # the most probable tokens of a frame that may extend a prefix
    skip: np.ndarray  # (V,) bool, True for tokens that no hypothesis may hold
    tables: Tables
    weights: Weights


NUM_NODES, NUM_LINKS, BEAM_SIZE, NUM_FRAMES = 0, 1, 2, 3  # what `Tree.counts` counts
ROOT, NONE = 0, -1  # the node of the empty prefix; absence of a node, link, rank or token


@compiled
def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    # the two tests save exp and log1p for most calls, and keep -inf - -inf from being NaN
    return a if b - a < NEGLIGIBLE or b == -inf else a + log1p(exp(b - a))


# -- the most probable tokens of a frame: only groups with a high maximum are searched -----------


@compiled
def num_lanes(num_tokens: int) -> int:
    """The number of groups of tokens whose maxima are compared first."""
    # about 2 sqrt(V): finding the maxima's groups, and searching a group, then cost about the same
    lanes = LANES
    while lanes * lanes < 4 * num_tokens:
        lanes *= 2
    return lanes


@compiled
def group(row: np.ndarray, maxima: np.ndarray) -> bool:
    """Write to maxima (lanes,) the maximum of each group: group i holds the tokens i, lanes + i,
    2 lanes + i, ... False if the row contains NaN.
    """
    # Interleaved groups, so that the inner loop is a vector maximum over contiguous numbers. The
    # test for NaN is a loop of its own, without a branch, for the same reason.
    lanes, bad = len(maxima), np.int32(0)
    for i in range(len(row)):
        bad |= np.int32(row[i] != row[i])
    maxima[:] = -inf
    for begin in range(0, len(row), lanes):
        part = row[begin : min(begin + lanes, len(row))]
        for lane in range(len(part)):
            maxima[lane] = max(maxima[lane], part[lane])
    return bad == 0


@compiled
def top(
    row: np.ndarray,
    maxima: np.ndarray,
    least: float,
    skip: np.ndarray,
    tokens: np.ndarray,
    values: np.ndarray,
) -> int:
    """Write the most probable usable tokens above `least` to `tokens` and `values`, best first, the
    smaller id first among equals; returns their number. maxima: from `group`.
    """
    width, count, lanes = len(tokens), 0, len(maxima)
    if width > SORTED:
        for token in np.argsort(-row, kind="mergesort"):
            if count < width and not skip[token] and row[token] > least:
                tokens[count], values[count] = token, row[token]
                count += 1
        return count
    for lane in range(min(lanes, len(row))):
        # no token of the group can enter the list
        if not maxima[lane] > least or (count == width and maxima[lane] < values[width - 1]):
            continue
        for token in range(lane, len(row), lanes):
            value = row[token]
            if not value > least or skip[token]:
                continue
            if count == width and not precedes(value, token, values[width - 1], tokens[width - 1]):
                continue
            count = min(count + 1, width)
            # insertion into a short sorted list; a heap would not keep the order among equals
            index = count - 1
            while index > 0 and precedes(value, token, values[index - 1], tokens[index - 1]):
                values[index], tokens[index] = values[index - 1], tokens[index - 1]
                index -= 1
            values[index], tokens[index] = value, token
    return count


@compiled
def precedes(value: float, token: int, other: float, another: int) -> bool:
    return value > other or (value == other and token < another)


# -- the tree of prefixes ---------------------------------------------------------------------


@compiled
def find_slot(keys: np.ndarray, key: int) -> int:
    """The slot of a key in the hash table, or the free slot where it belongs."""
    mask = len(keys) - 1
    slot = ((key * 0x9E3779B97F4A7C1) ^ (key >> 17)) & mask  # Fibonacci hashing
    while keys[slot] != NONE and keys[slot] != key:
        slot = (slot + 1) & mask  # ends, as at least half of the slots are free
    return slot


@compiled
def rehash(nodes: Nodes, count: int, num_tokens: int, table: Table) -> None:
    """Insert the first `count` nodes into an empty table."""
    for node in range(1, count):
        key = np.int64(nodes.parent[node]) * num_tokens + nodes.token[node]
        slot = find_slot(table.keys, key)
        table.keys[slot], table.nodes[slot] = key, node


@compiled
def add_node(
    nodes: Nodes, count: int, parent: int, token: int, tables: Tables, weights: Weights
) -> None:
    """Fill in node `count`: the prefix of `parent` followed by `token`."""
    nodes.parent[count], nodes.token[count], nodes.rank[count] = parent, token, -1
    # What the token adds is computed once per node, however long the prefix survives.
    nodes.extra[count] = nodes.extra[parent] + weights.bonus
    nodes.ngram[count], nodes.state[count], nodes.pending[count] = nodes.ngram[parent], 0, 0
    nodes.bonus[count], nodes.biased[count] = nodes.bonus[parent], 0
    nodes.words[count], nodes.spelled[count] = nodes.words[parent], 0
    if not weights.fused:
        return
    if tables.unit != NOTHING:
        value, state, pending = extend_ngram(
            tables, nodes.state[parent], nodes.pending[parent], token
        )
        nodes.ngram[count] += value
        nodes.state[count], nodes.pending[count] = state, pending
        nodes.extra[count] += weights.ngram * value
    if tables.biased:
        text = tables.text[tables.begin[token] : tables.begin[token + 1]]
        value, state = hotwords.follow(tables.automaton, nodes.biased[parent], text)
        nodes.bonus[count] += value
        nodes.biased[count] = state
        nodes.extra[count] += weights.hotwords * value
    if tables.spelling.used:
        text = tables.text[tables.begin[token] : tables.begin[token + 1]]
        words, state = lexicon.follow(tables.spelling, nodes.spelled[parent], text)
        nodes.words[count] += words
        nodes.spelled[count] = state
        nodes.extra[count] += weights.word * words


@compiled
def added(nodes: Nodes, parent: int, token: int, tables: Tables, weights: Weights) -> float:
    """The difference between the `extra` of a new node and its parent's; -inf: the lexicon forbids
    the token.
    """
    # the lexicon comes first: a forbidden token needs no other score
    value = weights.bonus
    if tables.spelling.used:
        text = tables.text[tables.begin[token] : tables.begin[token + 1]]
        words, state = lexicon.follow(tables.spelling, nodes.spelled[parent], text)
        if state == lexicon.FORBIDDEN:
            return -inf
        value += weights.word * words
    if tables.unit != NOTHING:
        value += (
            weights.ngram
            * extend_ngram(tables, nodes.state[parent], nodes.pending[parent], token)[0]
        )
    if tables.biased:
        text = tables.text[tables.begin[token] : tables.begin[token + 1]]
        value += weights.hotwords * hotwords.follow(tables.automaton, nodes.biased[parent], text)[0]
    return value


@compiled
def shares(
    nodes: Nodes, beam: Beam, size: int, tables: Tables, final: bool, sums: np.ndarray
) -> None:
    """Write to sums (size, 4) the log-probabilities by CTC and by the n-gram model, the bonus of
    hotwords, and the number of words. final: the end of the text included, with NaN words if the
    text may not end there.
    """
    for rank in range(size):
        node = beam.node[rank]
        sums[rank, 0] = beam.total[rank]
        sums[rank, 1] = nodes.ngram[node]
        sums[rank, 2] = nodes.bonus[node]
        if final and tables.unit != NOTHING:
            sums[rank, 1] += end_ngram(tables, nodes.state[node], nodes.pending[node])
        if final and tables.biased:
            sums[rank, 2] += hotwords.settle(tables.automaton, nodes.biased[node])
        sums[rank, 3] = nodes.words[node]
        if final and tables.spelling.used:
            last = lexicon.settle(tables.spelling, nodes.spelled[node])
            sums[rank, 3] = np.nan if last == lexicon.FORBIDDEN else nodes.words[node] + last


@compiled
def trace(
    nodes: Nodes,
    links: Links,
    node: int,
    link: int,
    tokens: np.ndarray,
    frames: np.ndarray,
    values: np.ndarray,
):
    """Write the tokens of a prefix, their frames and log-probabilities, from the last to the first;
    returns their number.
    """
    count = 0
    while node != 0:
        tokens[count], frames[count], values[count] = (
            nodes.token[node],
            links.frame[link],
            links.log_prob[link],
        )
        node, link = nodes.parent[node], links.before[link]
        count += 1
    return count


# -- one frame --------------------------------------------------------------------------------


@compiled
def insert(
    scores: np.ndarray,
    sources: np.ndarray,
    tokens: np.ndarray,
    count: int,
    score: float,
    source: int,
    token: int,
) -> int:
    """Insert a prefix into the sorted list of the best; among equals, the earlier one stays first.

    count: the length of the list. Returns its new length; a full list drops its worst entry. The
    arguments are three arrays instead of `Scratch`, because an array is passed as seven machine
    words, and this is the function called most often.
    """
    index = count
    if count == len(scores):
        if not score > scores[count - 1]:
            return count
        index = count - 1
    while index > 0 and scores[index - 1] < score:
        scores[index], sources[index], tokens[index] = (
            scores[index - 1],
            sources[index - 1],
            tokens[index - 1],
        )
        index -= 1
    scores[index], sources[index], tokens[index] = score, source, token
    return min(count + 1, len(scores))


@compiled
def stay(
    row: np.ndarray, blank: int, nodes: Nodes, size: int, scratch: Scratch, weights: Weights
) -> int:
    """(2), (3) for the prefixes that do not grow; returns how many of them are possible."""
    before, num_best = scratch.before, 0
    for i in range(size):
        node = before.node[i]
        scratch.blank[i], scratch.label[i], scratch.parent[i] = (
            before.total[i] + row[blank],
            -inf,
            -1,
        )
        if node != 0:
            # (2): the last token goes on for another frame, or, if the prefix without it is in the
            # beam too, that one grows by it now: the two sums merge here
            parent = nodes.rank[nodes.parent[node]]
            value = before.label[i]
            if parent >= 0:
                repeats = nodes.token[node] == nodes.token[nodes.parent[node]]
                value = log_add(value, before.blank[parent] if repeats else before.total[parent])
                scratch.parent[i] = parent
                # push i to the list of its parent's children, which `grow` must not create again
                scratch.next_child[i], scratch.first_child[parent] = scratch.first_child[parent], i
            scratch.label[i] = value + row[nodes.token[node]]
        value = scratch.total[i] = log_add(scratch.blank[i], scratch.label[i])
        if value > -inf:
            score = weights.ctc * value + nodes.extra[node]
            num_best = insert(scratch.score, scratch.source, scratch.token, num_best, score, i, -1)
    return num_best


@compiled
def least_useful(
    nodes: Nodes, size: int, num_best: int, scratch: Scratch, weights: Weights
) -> float:
    """A lower bound for useful tokens: no prefix that grows by a token of this log-probability or
    less enters the beam that `stay` left.
    """
    before, most = scratch.before, len(scratch.score)
    if num_best < most:
        return -inf
    best = -inf
    for i in range(size):
        best = max(best, weights.ctc * before.total[i] + nodes.extra[before.node[i]])
    # A prefix of score s that grows by log-probability p scores at most s + w_ctc p + gain. That
    # must exceed the worst entry even for the best prefix; the slack absorbs rounding.
    worst = scratch.score[most - 1]
    return (worst - best - weights.gain - ROUNDING * (abs(worst) + abs(best))) / weights.ctc


@compiled
def grow(
    tokens: np.ndarray,
    log_probs: np.ndarray,
    nodes: Nodes,
    size: int,
    num_best: int,
    present: np.ndarray,
    scratch: Scratch,
    tables: Tables,
    weights: Weights,
) -> int:
    """(2) for extensions that are not in the beam yet.

    tokens, log_probs: the candidates of this frame, best first. num_best: the length of the list
    that `stay` left; returns its new length. present (V,): the rank of the last prefix whose
    extension by this token is in the beam; NONE everywhere before and after the call.
    """
    before, most = scratch.before, len(scratch.score)
    for i in range(size):
        node, total = before.node[i], before.total[i]
        child = scratch.first_child[i]
        # Mark the extensions of prefix i that are in the beam: `stay` has merged them already. The
        # mark is i itself, so that nothing needs to be cleared for the next prefix.
        while child >= 0:
            present[nodes.token[before.node[child]]] = i
            child = scratch.next_child[child]
        for k in range(len(tokens)):
            token = tokens[k]
            # candidates are sorted, so none of the following ones can enter the list either
            bound = weights.ctc * (total + log_probs[k]) + nodes.extra[node] + weights.gain
            if num_best == most and bound <= scratch.score[most - 1]:
                break
            arrival = before.blank[i] if token == nodes.token[node] else total
            if present[token] == i or arrival == -inf:
                continue
            score = weights.ctc * (arrival + log_probs[k]) + nodes.extra[node]
            if weights.fused:
                score += added(nodes, node, token, tables, weights)
                if score == -inf:
                    continue
            else:
                score += weights.bonus
            num_best = insert(
                scratch.score, scratch.source, scratch.token, num_best, score, i, token
            )
    # only tokens that end a prefix of the beam were marked
    for i in range(size):
        present[max(nodes.token[before.node[i]], 0)] = NONE
    return num_best


@compiled
def add_link(links: Links, count: int, before: int, frame: int, log_prob: float) -> int:
    """Fill in link `count`; returns the new number of links."""
    links.before[count], links.frame[count], links.log_prob[count] = before, frame, log_prob
    return count + 1


@compiled
def arrive(before: Beam, i: int, repeats: bool) -> tuple[float, int]:
    """Score and last link of the best path of prefix i that a further token may follow: one that
    ends in blank if the token repeats the last one.
    """
    if repeats or before.best_blank[i] >= before.best_label[i]:
        return before.best_blank[i], before.link_blank[i]
    return before.best_label[i], before.link_label[i]


@compiled
def advance(rows: np.ndarray, tree: Tree, beam: Beam, scratch: Scratch, options: Options) -> bool:
    """Read frames: rows (T, V) log-probabilities.

    The arrays must have room for T * beam more nodes and links. Returns False if a frame contains
    NaN; neither that frame nor later ones are read. Invariant between frames:
    nodes.rank[beam.node[i]] == i for the prefixes of the beam, and NONE for all others.
    """
    # The loop body is not split into functions: a call counts references of every array that it is
    # given, and for the 30 arrays of a frame that adds a fifth to the time of everything else.
    num_tokens, counts, width = rows.shape[1], tree.counts, options.width
    nodes, links, before = tree.nodes, tree.links, scratch.before
    keys, key_nodes, blank, skip = tree.table.keys, tree.table.nodes, options.blank, options.skip
    tables, weights = options.tables, options.weights
    num_nodes, num_links = counts[NUM_NODES], counts[NUM_LINKS]
    size, frame = counts[BEAM_SIZE], counts[NUM_FRAMES]
    tokens, log_probs = np.empty(width, dtype=np.int64), np.empty(width)
    maxima = np.empty(num_lanes(num_tokens), dtype=rows.dtype)
    present = np.full(num_tokens, NONE, dtype=np.int64)
    # indexing, because numba does not know that the rows of an iteration are contiguous
    for t in range(len(rows)):
        row = rows[t]
        if not group(row, maxima):
            break
        # The new beam overwrites the old one in place, so the old one is copied first.
        for i in range(size):
            before.node[i], before.blank[i], before.label[i] = (
                beam.node[i],
                beam.blank[i],
                beam.label[i],
            )
            before.total[i], scratch.first_child[i] = beam.total[i], NONE
            before.best_blank[i], before.best_label[i] = beam.best_blank[i], beam.best_label[i]
            before.link_blank[i], before.link_label[i] = beam.link_blank[i], beam.link_label[i]
        # Rank the prefixes. Those that stay come first: their scores bound which tokens and
        # extensions can still enter the beam, so most of the vocabulary is never scored.
        num_best = stay(row, blank, nodes, size, scratch, weights)
        least = least_useful(nodes, size, num_best, scratch, weights)
        chosen = top(row, maxima, least, skip, tokens, log_probs)
        num_best = grow(
            tokens[:chosen],
            log_probs[:chosen],
            nodes,
            size,
            num_best,
            present,
            scratch,
            tables,
            weights,
        )
        # Fill the new beam. Nodes and links are created only for prefixes that enter it.
        for i in range(size):
            nodes.rank[before.node[i]] = NONE
        for rank in range(num_best):
            i, token = scratch.source[rank], scratch.token[rank]
            node = before.node[i]
            beam.best_blank[rank], beam.link_blank[rank] = -inf, NONE
            beam.best_label[rank], beam.link_label[rank] = -inf, NONE
            if token >= 0:  # it grew: all of its paths end in this token in this frame
                repeats = token == nodes.token[node]
                beam.blank[rank] = -inf
                beam.label[rank] = (before.blank[i] if repeats else before.total[i]) + row[token]
                beam.total[rank] = beam.label[rank]
                value, link = arrive(before, i, repeats)
                key = np.int64(node) * num_tokens + token
                slot = find_slot(keys, key)
                if keys[slot] == NONE:
                    add_node(nodes, num_nodes, node, token, tables, weights)
                    keys[slot], key_nodes[slot] = key, num_nodes
                    num_nodes += 1
                node = key_nodes[slot]
                num_links = add_link(links, num_links, link, frame, row[token])
                beam.best_label[rank], beam.link_label[rank] = value + row[token], num_links - 1
            else:  # it stayed: `stay` has summed its paths; what is left is the best one
                beam.blank[rank], beam.label[rank] = scratch.blank[i], scratch.label[i]
                beam.total[rank] = scratch.total[i]
                value, beam.link_blank[rank] = arrive(before, i, False)
                beam.best_blank[rank] = value + row[blank]
                # The best path that ends in the last token: either its run goes on, or the path
                # comes from the parent, which grows by the token in this frame.
                token, parent = nodes.token[node], scratch.parent[i]
                value, link = before.best_label[i], before.link_label[i]
                other, preceding = -inf, NONE
                if parent >= 0:
                    other, preceding = arrive(
                        before, parent, token == nodes.token[nodes.parent[node]]
                    )
                if other > value:
                    num_links = add_link(links, num_links, preceding, frame, row[token])
                    value, link = other, num_links - 1
                elif value > -inf and row[token] > links.log_prob[link]:
                    # The run peaks in this frame. A new link, as other prefixes may share the old.
                    num_links = add_link(links, num_links, links.before[link], frame, row[token])
                    link = num_links - 1
                if node != ROOT:
                    beam.best_label[rank], beam.link_label[rank] = value + row[token], link
            beam.node[rank] = node
        size, frame = num_best, frame + 1
        for rank in range(size):
            nodes.rank[beam.node[rank]] = rank
    complete = frame - counts[NUM_FRAMES] == len(rows)
    counts[NUM_NODES], counts[NUM_LINKS] = num_nodes, num_links
    counts[BEAM_SIZE], counts[NUM_FRAMES] = size, frame
    return complete
