"""Words within a prefix: which of them may be completed, and their number.

A trie over characters follows the text of a prefix, so that the tokenization of a word does not
matter: letters and word pieces work alike. An incomplete word is possible as long as some word of
the list begins with it, and a space or the end of the text may follow a whole word only. Without a
list every word is possible, and words are only counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asrtool.compiled import compiled
from asrtool.searchers.arpa import BOS, EOS, UNKNOWN
from asrtool.searchers.ngram import ArpaModel

SPACE = ord(" ")
# states: between words; within a word, without a list; no word of the list begins like this
OUTSIDE, INSIDE, FORBIDDEN = 0, 1, -1
OF_NGRAM = "ngram"  # the list of words is that of the n-gram model


class Spelling(NamedTuple):
    """Node 0 is the start of a word; the children of node i are begin[i] ... begin[i + 1] - 1."""

    used: int  # 0: words neither count nor are limited
    limited: int  # 1: there is a list of words
    character: np.ndarray  # (nodes,) int32
    begin: np.ndarray  # (nodes + 1,) int32
    whole: np.ndarray  # (nodes,) bool: a word ends here


@compiled
def follow(spelling: Spelling, state: int, characters: np.ndarray) -> tuple[int, int]:
    """The number of words that further characters complete, and the next state."""
    count = 0
    for character in characters:
        if character == SPACE:
            if state != OUTSIDE:
                if spelling.limited and not spelling.whole[state]:
                    return count, FORBIDDEN
                count += 1
            state = OUTSIDE
        elif not spelling.limited:
            state = INSIDE
        else:
            # binary search: children are sorted by character
            low, end = spelling.begin[state], spelling.begin[state + 1]
            high = end
            while low < high:
                middle = (low + high) // 2
                if spelling.character[middle] < character:
                    low = middle + 1
                else:
                    high = middle
            if low == end or spelling.character[low] != character:
                return count, FORBIDDEN
            state = low
    return count, state


@compiled
def settle(spelling: Spelling, state: int) -> int:
    """The number of words that the end of the text completes: 0 or 1, or FORBIDDEN within a word
    that is not in the list.
    """
    if state == OUTSIDE:
        return 0
    return FORBIDDEN if spelling.limited and not spelling.whole[state] else 1


class Lexicon:
    """The words that a search may complete; None: all. texts: those of the tokens.

    Raises `ValueError` if no token begins a word.
    """

    def __init__(self, words: Iterable[str] | None, texts: Sequence[str]) -> None:
        if not any(" " in text for text in texts):
            raise ValueError(
                "word_score and lexicon need tokens that mark where words begin, which this "
                "vocabulary lacks; leave them out"
            )
        self.codes = [np.array([ord(c) for c in text], dtype=np.int32) for text in texts]
        self.most = max(text.count(" ") for text in texts)  # words that one token can complete
        self.spelling = nothing(used=1) if words is None else _trie(words)

    def extend(self, state: int, token: int) -> tuple[int, int]:
        """The number of words that a token completes, and the next state; `FORBIDDEN`: it may not
        follow.
        """
        count, state = follow(self.spelling, state, self.codes[token])
        return int(count), int(state)

    def end(self, state: int) -> int:
        return int(settle(self.spelling, state))


def nothing(used: int = 0) -> Spelling:
    none = np.zeros(0, dtype=np.int32)
    return Spelling(used, 0, none, none, none.astype(np.bool_))


def _trie(words: Iterable[str]) -> Spelling:
    """A trie of words, numbered breadth first, so that the children of a node are contiguous."""
    root: dict = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        # The empty key marks the end of a word; it is no child.
        node[""] = {}
    character, begin, whole, queue = [], [1], [], deque([(0, root)])
    waiting = 1
    while queue:
        code, node = queue.popleft()
        below = sorted((ord(c), child) for c, child in node.items() if c)
        character.append(code)
        whole.append("" in node)
        waiting += len(below)
        # Breadth first: the children of the next node follow all those queued so far.
        begin.append(waiting)
        queue.extend(below)
    return Spelling(
        used=1,
        limited=1,
        character=np.array(character, dtype=np.int32),
        begin=np.array(begin, dtype=np.int32),
        whole=np.array(whole, dtype=np.bool_),
    )


def read(path: str, model: object | None) -> list[str]:
    """The first field of every line of a file, or the words of the n-gram model (`ngram`).

    Raises `ValueError` if there are none.
    """
    if path == OF_NGRAM:
        if not isinstance(model, ArpaModel):
            raise ValueError(
                "lexicon: ngram takes the words of an n-gram model in ARPA format; set ngram.path "
                "to one, or give a file of words"
            )
        return [word for word in model.words if word not in (BOS, EOS, *UNKNOWN)]
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such list of words; create it, or correct lexicon")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: the list of words is not UTF-8; convert it") from None
    words = [line.split()[0] for line in lines if line.strip()]
    if not words:
        raise ValueError(f"{path}: the list of words is empty; give one word per line")
    return words


def load(path: str | None, texts: Sequence[str], model: object | None) -> Lexicon:
    """The lexicon at `path`, as in `read`; None: all words. model: the n-gram model.

    Raises `ValueError` if the vocabulary can spell none of the words.
    """
    if path is None:
        return Lexicon(None, texts)
    words = read(path, model)
    spelled = set("".join(texts))
    usable = [word for word in words if spelled.issuperset(word)]
    if not usable:
        raise ValueError(
            f"lexicon: none of the {len(words)} words of {path}, such as {words[0]!r}, is made of "
            "the model's letters; write them as the vocabulary does"
        )
    return Lexicon(usable, texts)
