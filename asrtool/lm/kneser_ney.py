"""Interpolated modified Kneser-Ney estimation of back-off n-gram models.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling", Harvard
TR-10-98 (1998), as Heafield et al., "Scalable modified Kneser-Ney language model estimation", ACL
2013, describe it and KenLM's `lmplz` computes it:

    a(g)      = c(g), how often g occurs, for the highest order and where g begins with <s>
              = the number of different words before g, for all others                     (1)
    D_k       = k - (k + 1) n_1 / (n_1 + 2 n_2) n_{k+1} / n_k,   D_3 for all k >= 3        (2)
    u(w | h)  = (a(h w) - D_a(h w)) / sum over v of a(h v)                                 (3)
    gamma(h)  = (sum of D over the h v that are kept + sum of a over the pruned ones)
                / sum over v of a(h v)                                                     (4)
    p(w | h)  = u(w | h) + gamma(h) p(w | h'),   h' = h without its first word             (5)

where n_k is the number of n-grams of an order with a = k, including pruned ones. Below the unigrams
is the uniform distribution over all words, with </s> and <unk>, without <s>. An n-gram is pruned if
c(g) is at most the threshold of its order. Arithmetic is in float32 as in lmplz, so that the files
agree to the last digits.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np

from asrtool.errors import UserError

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
NUM_SPECIAL = 3  # their ids are 0, 1, 2
FALLBACK = (0.5, 1.0, 1.5)  # lmplz's discounts if (2) cannot be computed
ROWS = 1 << 16  # lines per write


@dataclass
class Grams:
    """The C n-grams of one order: `prob` and `backoff` are log10, (C,) float32."""

    words: np.ndarray  # (C, n) int32 word ids
    prob: np.ndarray
    backoff: np.ndarray


@dataclass
class Counts:
    """The C n-grams of one order, including those that will be pruned."""

    history: np.ndarray  # (C,) index of the n-gram without its last word, in the lower order
    suffix: np.ndarray  # (C,) the same without its first word
    word: np.ndarray  # (C,) id of the last word
    count: np.ndarray  # (C,) how often it occurs
    begins: np.ndarray  # (C,) bool: its first word is <s>
    adjusted: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (1)


def estimate(
    sentences: Iterable[Sequence[str]],
    order: int,
    *,
    prune: Sequence[int] = (0,),
    fallback: Sequence[float] | None = None,
) -> tuple[list[str], list[Grams]]:
    """The words by id, and the n-grams of orders 1 ... `order`.

    prune: a threshold for each order; the last one applies to all higher orders. fallback: the
    discounts of an order for which (2) cannot be computed, for counts of 1, 2, and 3 or more.
    Raises `UserError` for invalid settings, a text without words or with <s>, </s> or <unk>, and,
    without fallback, a text too small for (2).
    """
    thresholds = check(order, prune, fallback)
    words, ids, depth = number(sentences)
    orders = [unigrams(ids, len(words))]
    grams = ids.astype(np.int64)  # (T,): index of the n-gram that ends at each position
    for n in range(2, order + 1):
        grams = extend(orders, grams, ids, depth, n, len(words))
    adjust(orders)
    return words, interpolate(orders, thresholds, fallback)


def check(order: int, prune: Sequence[int], fallback: Sequence[float] | None) -> list[int]:
    """The pruning threshold of each order."""
    if order < 1:
        raise UserError(f"the order is {order}; give 1 or more")
    if not prune or len(prune) > order or list(prune) != sorted(prune) or min(prune) < 0:
        raise UserError(
            f"pruning thresholds are {list(prune)}: give at most {order}, for orders 1 to {order}, "
            "none below 0 and none lower than the previous one"
        )
    if fallback is not None and (
        len(fallback) != 3 or not all(0 <= d <= k for k, d in enumerate(fallback, 1))
    ):
        raise UserError(
            f"fallback discounts are {list(fallback)}: give three, from 0 to 1, 2 and 3"
        )
    return [*prune, *[prune[-1]] * (order - len(prune))]


def number(sentences: Iterable[Sequence[str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The words; the text as ids (T,), each sentence between <s> and </s>; and the position of each
    word in its sentence, 1 for <s>.
    """
    table: defaultdict[str, int] = defaultdict(lambda: len(table))
    for special in (UNK, BOS, EOS):
        table[special]  # noqa: B018 - the look-up numbers it
    # Typed arrays take 4 bytes per word; a list of a large corpus would not fit into memory.
    flat, lengths = array("i"), array("i")
    for words in sentences:
        flat.append(1)
        flat.extend(map(table.__getitem__, words))
        flat.append(2)
        lengths.append(len(words) + 2)
    ids, sizes = np.array(flat, dtype=np.int32), np.array(lengths, dtype=np.int64)
    # <s> and </s> occur once per sentence unless the text itself contains them.
    counts = np.bincount(ids, minlength=NUM_SPECIAL)
    if counts[0] or counts[1] != len(sizes) or counts[2] != len(sizes):
        raise UserError(
            f"the text contains the word {BOS}, {EOS} or {UNK}, which is reserved; remove it"
        )
    if len(table) == NUM_SPECIAL:
        raise UserError("there are no words to estimate an n-gram model from")
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    depth = (np.arange(len(ids)) - starts + 1).astype(np.int32)
    return list(table), ids, depth


def unigrams(ids: np.ndarray, num_words: int) -> Counts:
    """The counts of order 1, one for each word; histories and suffixes are the empty n-gram 0."""
    count = np.bincount(ids, minlength=num_words)
    count[1] = 0  # <s> is given, never predicted
    none = np.zeros(num_words, dtype=np.int32)
    every = np.arange(num_words, dtype=np.int32)
    return Counts(none, none, every, count, np.zeros(num_words, dtype=bool))


def extend(
    orders: list[Counts],
    grams: np.ndarray,
    ids: np.ndarray,
    depth: np.ndarray,
    n: int,
    num_words: int,
) -> np.ndarray:
    """Append the n-grams of order n to `orders`; grams (T,): index of the (n - 1)-gram that ends at
    each position. Returns the same for n, -1 if none ends there.
    """
    ends = np.flatnonzero(depth >= n)
    # An n-gram is its history and its last word; sorted keys group those with the same history.
    keys = grams[ends - 1] * num_words + ids[ends]
    keys, first, inverse, count = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    # Any occurrence serves for suffix, word and begins: they are the same in all.
    first = ends[first]
    orders.append(
        Counts(
            history=(keys // num_words).astype(np.int32),
            suffix=grams[first].astype(np.int32),
            word=ids[first],
            count=count,
            begins=depth[first] == n,
        )
    )
    following = np.full(len(ids), -1, dtype=np.int64)
    following[ends] = inverse
    return following


def adjust(orders: list[Counts]) -> None:
    """Set the adjusted counts (1) of every order."""
    for lower, higher in zip(orders, orders[1:], strict=False):
        # Each n-gram occurs once in `higher`, so this counts the different words before `lower`'s.
        different = np.bincount(higher.suffix, minlength=len(lower.count))
        lower.adjusted = np.where(lower.begins, lower.count, different)
    orders[-1].adjusted = orders[-1].count


def discounts(adjusted: np.ndarray, n: int, fallback: Sequence[float] | None) -> np.ndarray:
    """(2): discounts (4,) float32, for adjusted counts of 0, 1, 2, and 3 or more."""
    seen = [int((adjusted == k).sum()) for k in range(5)]
    computed = np.zeros(4, dtype=np.float32)
    reason = next((f"no {n}-gram has the count {k}" for k in (1, 2, 3) if not seen[k]), "")
    if not reason:
        f32 = np.float32
        y = f32(seen[1]) / f32(seen[1] + 2.0 * seen[2])
        for k in (1, 2, 3):
            computed[k] = f32(k) - f32(k + 1) * y * f32(seen[k + 1]) / f32(seen[k])
            if not 0 <= computed[k] <= k:
                reason = f"that of {n}-grams with the count {k} would be {computed[k]:.3f}"
                break
    if reason and fallback is None:
        raise UserError(
            f"the discounts of Kneser-Ney cannot be computed, because {reason}; the text is small "
            "or repeats itself: give more of it, or fixed discounts by --discount-fallback"
        )
    return np.array([0.0, *fallback], dtype=np.float32) if reason else computed


def interpolate(
    orders: list[Counts], thresholds: Sequence[int], fallback: Sequence[float] | None
) -> list[Grams]:
    """(3), (4) and (5), for the n-grams that are kept."""
    interpolated: list[Grams] = []
    lower = words = renumbered = None
    for n, (counts, threshold) in enumerate(zip(orders, thresholds, strict=True), 1):
        kept = counts.count > threshold
        if n == 1:
            # Below the unigrams: uniform over all kept words but <s>.
            kept[:NUM_SPECIAL] = True
            lower = np.full(1, np.float32(1.0) / np.float32(kept.sum() - 1))
        discount = discounts(counts.adjusted, n, fallback)
        contexts = int(counts.history.max()) + 1 if n == 1 else len(orders[n - 2].count)
        total, gamma = masses(counts, kept, discount, contexts)
        # Histories without any continuation have total 0; nothing refers to them.
        with np.errstate(invalid="ignore", divide="ignore"):
            prob = counts.adjusted.astype(np.float32) - discount[np.minimum(counts.adjusted, 3)]
            prob = prob / total[counts.history]
            prob = prob + gamma[counts.history] * lower[counts.suffix]
        if n == 1:
            prob[1] = 1.0
            words = np.arange(len(kept), dtype=np.int32)[:, None]
        else:
            # gamma(h) of (5) is the backoff weight of h, an n-gram of the lower order
            seen = np.flatnonzero(total)
            rows = renumbered[seen]
            interpolated[-1].backoff[rows[rows >= 0]] = np.log10(gamma[seen[rows >= 0]])
            words = np.concatenate([words[counts.history], counts.word[:, None]], 1)
        # From an index among all n-grams to one among the kept ones; -1 for pruned ones.
        renumbered = np.where(kept, np.cumsum(kept) - 1, -1)
        logs = np.minimum(np.log10(np.maximum(prob[kept], np.float32(1e-37))), np.float32(0))
        interpolated.append(Grams(words[kept], logs, np.zeros(len(logs), dtype=np.float32)))
        lower = prob
    return interpolated


def masses(
    counts: Counts, kept: np.ndarray, discount: np.ndarray, contexts: int
) -> tuple[np.ndarray, np.ndarray]:
    """The denominator of (3) and gamma (4) of each history, (contexts,) float32."""
    total = np.bincount(counts.history, counts.adjusted, contexts).astype(np.float32)
    gamma = np.zeros(contexts, dtype=np.float32)
    classes = np.minimum(counts.adjusted, 3)
    for k in (1, 2, 3):
        rows = counts.history[kept & (classes == k)]
        gamma += discount[k] * np.bincount(rows, minlength=contexts).astype(np.float32)
    removed = np.bincount(counts.history[~kept], counts.adjusted[~kept], contexts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total, (gamma + removed.astype(np.float32)) / total


def write(stream: TextIO, words: Sequence[str], orders: Sequence[Grams]) -> None:
    """Write ARPA format: per n-gram log10 p, the words, and except for the highest order log10 of
    the backoff weight.
    """
    stream.write("\\data\\\n")
    for n, grams in enumerate(orders, 1):
        stream.write(f"ngram {n}={len(grams.prob)}\n")
    for n, grams in enumerate(orders, 1):
        stream.write(f"\n\\{n}-grams:\n")
        last = n == len(orders)
        # map and zip format a block of rows without a Python-level loop over its n-grams.
        for begin in range(0, len(grams.prob), ROWS):
            rows = slice(begin, begin + ROWS)
            texts = [[words[i] for i in column] for column in grams.words[rows].T.tolist()]
            lines = map(
                "%.8g\t%s".__mod__, zip(grams.prob[rows].tolist(), joined(texts), strict=True)
            )
            if not last:
                ends = map("\t%.8g".__mod__, grams.backoff[rows].tolist())
                lines = map("".join, zip(lines, ends, strict=True))
            stream.write("\n".join(lines) + "\n")
    stream.write("\n\\end\\\n")


def joined(columns: Sequence[Sequence[str]]) -> Iterable[str]:
    """The n-grams' texts; columns: the first words of all n-grams, the second ones, and so on."""
    return map(" ".join, zip(*columns, strict=True))
