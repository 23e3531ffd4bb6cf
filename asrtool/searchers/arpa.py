"""Read an n-gram model in ARPA format (`.arpa`, `.lm`, plain or `.gz`) into a few flat arrays.

The n-grams form a trie. Node 0 is the empty history, its children are the words in the order of
their ids, and the children of every node are contiguous. A node of order 1 ... n - 1 takes 20
bytes: a word, a probability, a backoff weight, the index of its first child and the node of its
longest proper suffix. One of the highest order takes 8 bytes, for the first two. Logarithms are
natural.

If the file lacks the history of an n-gram (as pruned models of SRILM do), the history becomes a
node with the probability that backing off gives, and a backoff weight of 1.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from asrtool.compiled import compiled
from asrtool.errors import UserError

BOS, EOS, UNKNOWN = "<s>", "</s>", ("<unk>", "<UNK>")
MISSING_UNKNOWN = -100.0  # log10 p of unknown words if a file has no <unk>, as in KenLM
LN10 = log(10.0)
LONGEST = 1 << 20  # bytes of a line
PACKED = 1100  # times its size that a file packed by gzip unpacks to at most


class Trie(NamedTuple):
    """The n-grams as arrays. M nodes, those below the highest order, may have children."""

    word: np.ndarray  # (nodes,) int32
    prob: np.ndarray  # (nodes,) float32, log p(word | history)
    backoff: np.ndarray  # (M,) float32
    begin: np.ndarray  # (M + 1,) int32: the children of node i are begin[i] ... begin[i + 1] - 1
    suffix: np.ndarray  # (M,) int32


@dataclass(frozen=True)
class Arpa:
    """words[i] is the word with id i."""

    trie: Trie
    words: list[str]
    unknown: int


@dataclass
class Order:
    """The C n-grams of one order: words (C, n) int32, log-probabilities and backoffs (C,)."""

    words: np.ndarray
    prob: np.ndarray
    backoff: np.ndarray

    def take(self, rows: np.ndarray) -> Order:
        return Order(self.words[rows], self.prob[rows], self.backoff[rows])

    def extended(self, words: np.ndarray) -> Order:
        """The same with more n-grams, whose probability is not known yet (NaN)."""
        nothing = np.zeros(len(words), dtype=np.float32)
        return Order(
            np.concatenate([self.words, words]),
            np.concatenate([self.prob, nothing + np.float32(np.nan)]),
            np.concatenate([self.backoff, nothing]),
        )


def read(path: Path) -> Arpa:
    """Read a model. Raises `UserError` with file and line if the file is malformed."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such n-gram model; create it, or correct the path")
    packed = path.suffix == ".gz"
    with (gzip.open if packed else open)(path, "rb") as file:
        lines = _lines(path, file)
        counts = _counts(path, lines)
        _check_room(path, counts, PACKED if packed else 1)
        ids: dict[bytes, int] = {}
        orders = [_order(path, lines, n, count, ids) for n, count in enumerate(counts, 1)]
    words = [word.decode("utf-8", errors="replace") for word in ids]
    unknown = next((ids[name.encode()] for name in UNKNOWN if name.encode() in ids), len(words))
    if unknown == len(words):
        words.append(UNKNOWN[0])
        first = orders[0].extended(np.array([[unknown]], dtype=np.int32))
        first.prob[-1] = MISSING_UNKNOWN * LN10
        orders[0] = first
    return Arpa(build(orders, len(words)), words, unknown)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; a file that is no text, or zeros packed by gzip, does not fill the memory."""
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(LONGEST)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: damaged or truncated ({error})") from None
        if not line:
            return
        if len(line) == LONGEST:
            raise UserError(f"{path}:{number}: a line of more than {LONGEST:,} bytes")
        yield number, line


def _check_room(path: Path, counts: Sequence[int], ratio: int) -> None:
    """Raise `UserError` where the header promises more n-grams than the file can hold, before
    memory is taken for them.
    """
    # a digit, and a word of one byte behind a space
    least = sum(count * (2 + 2 * n) for n, count in enumerate(counts, 1))
    size = path.stat().st_size * ratio
    if least > size:
        raise UserError(
            f"{path}: the header promises {sum(counts):,} n-grams, which need at least {least:,} "
            f"bytes, and the file has at most {size:,}"
        )


def _counts(path: Path, lines: Iterator[tuple[int, bytes]]) -> list[int]:
    """The header, up to the line before the first section."""
    counts: list[int] = []
    for number, line in lines:
        line = line.strip()
        if line == b"\\1-grams:":
            if not counts or min(counts[:1]) < 1:
                break
            return counts
        if match := re.fullmatch(rb"ngram\s+(\d+)\s*=\s*(\d+)", line):
            if int(match[1]) != len(counts) + 1:
                raise UserError(f"{path}:{number}: expected the count of {len(counts) + 1}-grams")
            counts.append(int(match[2]))
    raise UserError(
        f"{path} is no n-gram model in ARPA format: it has no \\data\\ header with counts before "
        "\\1-grams:"
    )


def _order(
    path: Path, lines: Iterable[tuple[int, bytes]], n: int, count: int, ids: dict[bytes, int]
) -> Order:
    """The section of one order, including the title line of the next one."""
    words = np.zeros((count, n), dtype=np.int32)
    prob, backoff = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=np.float32)
    row = 0
    for number, line in lines:
        if line.startswith(b"\\"):
            if row != count:
                raise UserError(f"{path}:{number}: {row} {n}-grams, but the header says {count}")
            return Order(words, prob, backoff)
        fields = line.split()
        if not fields:
            continue
        try:
            if row == count or len(fields) not in (n + 1, n + 2):
                raise ValueError
            # unigrams define the ids, in the order of the file; higher orders may use known words
            # only
            for column, word in enumerate(fields[1 : n + 1]):
                words[row, column] = ids.setdefault(word, row) if n == 1 else ids[word]
            if n == 1 and len(ids) != row + 1:
                raise UserError(
                    f"{path}:{number}: the word '{fields[1].decode(errors='replace')}' occurs twice"
                )
            prob[row] = float(fields[0]) * LN10
            backoff[row] = float(fields[n + 1]) * LN10 if len(fields) == n + 2 else 0.0
        except KeyError as error:
            word = error.args[0].decode(errors="replace")
            raise UserError(
                f"{path}:{number}: the word '{word}' is not among the 1-grams"
            ) from None
        except UserError:
            raise
        except ValueError:
            expected = f"log10 probability, {n} word{'s' * (n > 1)} and perhaps a backoff weight"
            raise UserError(f"{path}:{number}: expected {expected}, {count} lines in all") from None
        row += 1
    raise UserError(f"{path}: the file ends within its {n}-grams; it is truncated")


# -- the trie ---------------------------------------------------------------


def build(orders: list[Order], num_words: int) -> Trie:
    """Sort the n-grams into a trie; orders[0] must have all words, each once."""
    orders = list(orders)
    level = 0
    # per order: history node (within its order) * num_words + word, ascending
    tables: list[np.ndarray] = []
    parents: list[np.ndarray] = []
    while level < len(orders):
        order = orders[level]
        histories = _locate(tables, order.words[:, :-1], num_words)
        if (histories < 0).any():
            # Missing histories become n-grams of the order below. That level is sorted again, since
            # the new n-grams may lack histories themselves.
            lacking = np.unique(order.words[histories < 0, :-1], axis=0)
            orders[level - 1] = orders[level - 1].extended(lacking)
            level -= 1
            del tables[level:], parents[level:]
            continue
        keys = histories * num_words + order.words[:, -1]
        rows = np.argsort(keys, kind="stable")
        tables.append(keys[rows])
        parents.append(histories[rows])
        orders[level] = order.take(rows)
        level += 1
    return _link(orders, parents)


def _locate(tables: list[np.ndarray], words: np.ndarray, num_words: int) -> np.ndarray:
    """words (C, k) -> (C,) int64: the index of each k-gram within its order, or -1."""
    indices = np.zeros(len(words), dtype=np.int64)
    for table, column in zip(tables, words.T, strict=False):
        keys = indices * num_words + column
        # one lookup per order: the index of a prefix, times the number of words, plus the next word
        # is the key of the longer prefix
        row = np.searchsorted(table, keys)
        same = table[np.minimum(row, len(table) - 1)] == keys
        indices = np.where(same & (indices >= 0), row, -1)
    return indices


def _link(orders: list[Order], parents: list[np.ndarray]) -> Trie:
    sizes = [1, *(len(order.words) for order in orders)]
    first = np.cumsum([0, *sizes])  # node id of the first n-gram of each order
    inner = int(first[len(orders)])
    begin = np.zeros(inner + 1, dtype=np.int64)
    for n, histories in enumerate(parents, 1):
        begin[first[n - 1] + 1 : first[n] + 1] = np.bincount(histories, minlength=sizes[n - 1])
    begin = (np.cumsum(begin) + 1).astype(np.int32)
    none = np.zeros(1)
    word = np.concatenate([none, *(order.words[:, -1] for order in orders)]).astype(np.int32)
    prob = np.concatenate([none, *(order.prob for order in orders)]).astype(np.float32)
    backoff = np.concatenate([none, *(order.backoff for order in orders[:-1])]).astype(np.float32)
    parent = np.concatenate(
        [none, *(first[n] + histories for n, histories in enumerate(parents))]
    ).astype(np.int32)
    trie = Trie(word, prob, backoff, begin, np.zeros(inner, dtype=np.int32))
    _suffixes(trie, parent)
    return trie


@compiled
def child(trie: Trie, node: int, word: int) -> int:
    """The node of history + word, or -1."""
    if node == 0:
        return 1 + word
    # binary search: children are sorted by word
    low, high = trie.begin[node], trie.begin[node + 1]
    end = high
    while low < high:
        middle = (low + high) // 2
        if trie.word[middle] < word:
            low = middle + 1
        else:
            high = middle
    return low if low < end and trie.word[low] == word else -1


@compiled
def longest(trie: Trie, node: int, word: int) -> int:
    """The node of the longest suffix of history + word that may have children.

    node: a suffix of the history.
    """
    while True:
        extended = child(trie, node, word)
        if 0 <= extended < len(trie.backoff):
            return extended
        if node == 0:
            return 0
        node = trie.suffix[node]


@compiled
def _suffixes(trie: Trie, parent: np.ndarray) -> None:
    """Fill in suffixes and unknown probabilities (NaN). Nodes are sorted by order, so those of
    shorter n-grams are complete when longer ones need them.
    """
    for node in range(1, len(trie.word)):
        history, word = parent[node], trie.word[node]
        if node < len(trie.suffix) and history != 0:
            trie.suffix[node] = longest(trie, trie.suffix[history], word)
        if trie.prob[node] != trie.prob[node]:
            # NaN: not in the file. Back off until a shorter history has the word.
            value, shorter = 0.0, history
            while True:
                value += trie.backoff[shorter]
                shorter = trie.suffix[shorter]
                extended = child(trie, shorter, word)
                if extended >= 0:
                    trie.prob[node] = value + trie.prob[extended]
                    break
