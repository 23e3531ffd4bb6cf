"""Back-off n-gram models: ARPA files by our own reader, binary files by KenLM, with the same
log-probabilities.

    log p(w | h) = log p of the n-gram h w                where the model has it       (1)
                 = log backoff(h) + log p(w | h')         else, h' = h without its first word

Katz, "Estimation of probabilities from sparse data", IEEE TASSP 1987. A state is the longest suffix
of the history that the model contains. Unknown words are `<unk>`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from asrtool.compiled import compiled
from asrtool.errors import UserError
from asrtool.searchers import arpa
from asrtool.searchers.arpa import BOS, EOS, LN10, Trie

KENLM_MAGIC = b"mmap lm http://kheafield.com/code"
# polynomial hash of a word, in two halves of 31 bits: the modulus is the Mersenne prime 2^31 - 1,
# so products fit into int64
MODULUS, BASES = (1 << 31) - 1, (1_000_003, 16_777_619)


class Ngram(Protocol):
    """Natural log-probabilities of words; a state stands for the words so far."""

    def start(self) -> Hashable:
        """The state at the start of a sentence."""

    def score(self, state: Hashable, word: str) -> tuple[float, Hashable]:
        """log p(word | state), the next state."""

    def end(self, state: Hashable) -> float:
        """log p(end of sentence | state)."""

    def knows(self, word: str) -> bool: ...


def load(path: Path | str) -> Ngram:
    """Load a model. KenLM's binary files need the package kenlm; other files are read as ARPA."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such n-gram model; create it, or correct the path")
    with open(path, "rb") as file:
        binary = file.read(len(KENLM_MAGIC)) == KENLM_MAGIC
    return KenlmModel(path) if binary else ArpaModel(path)


@compiled
def hash_step(value: int, character: int) -> int:
    """The 62-bit hash of a word plus one character (code point); 0 is the empty word."""
    high = ((value >> 31) * BASES[0] + character + 1) % MODULUS
    low = ((value & MODULUS) * BASES[1] + character + 1) % MODULUS
    return (high << 31) | low


def word_hash(word: str) -> int:
    value = 0
    for character in word:
        value = hash_step(value, ord(character))
    return int(value)


@compiled
def score(trie: Trie, state: int, word: int) -> tuple[float, int]:
    """(1): log p(word | state) and the next state, by word id."""
    # Back off to shorter histories until one of them has the word. This ends, as every word is a
    # unigram.
    total, node = 0.0, state
    extended = arpa.child(trie, node, word)
    while extended < 0:
        total += trie.backoff[node]
        node = trie.suffix[node]
        extended = arpa.child(trie, node, word)
    following = (
        extended if extended < len(trie.backoff) else arpa.longest(trie, trie.suffix[node], word)
    )
    return total + trie.prob[extended], following


@compiled
def find_word(hashes: np.ndarray, ids: np.ndarray, value: int, unknown: int) -> int:
    """The id of the word with this hash; hashes (W,) ascending, ids (W,)."""
    index = np.searchsorted(hashes, value)
    return ids[index] if index < len(hashes) and hashes[index] == value else unknown


@compiled
def fill_row(
    trie: Trie, state: int, words: np.ndarray, row: np.ndarray, scratch: np.ndarray
) -> None:
    """(1) for all `words` (V,) in one state, written to row (V,); scratch (W,) has a number per
    word of the model.

    It walks over the children of each suffix of the history once, instead of searching each word.
    """
    scratch[:] = np.nan
    total, node = 0.0, state
    while True:
        for child in range(trie.begin[node], trie.begin[node + 1]):
            word = trie.word[child]
            # longer histories come first, so the first value found is that of (1)
            if np.isnan(scratch[word]):
                scratch[word] = total + trie.prob[child]
        if node == 0:
            break
        total += trie.backoff[node]
        node = trie.suffix[node]
    for column in range(len(words)):
        row[column] = scratch[words[column]]


class ArpaModel:
    """A model in flat arrays (asrtool/searchers/arpa.py)."""

    def __init__(self, path: Path | str) -> None:
        model = arpa.read(Path(path))
        self.trie = model.trie
        self.words = model.words
        self.unknown = model.unknown
        hashes = np.array([word_hash(word) for word in model.words], dtype=np.int64)
        self.ids = np.argsort(hashes).astype(np.int32)
        self.hashes = hashes[self.ids]
        if (self.hashes[1:] == self.hashes[:-1]).any():
            raise UserError(f"{path}: two words have the same hash, or one occurs twice")
        self.num_words = len(model.words)
        if not self.knows(EOS):
            raise UserError(f"{path}: the model has no {EOS}, so no sentence can end")
        self._start = int(arpa.longest(self.trie, 0, self.id_of(BOS))) if self.knows(BOS) else 0
        self._end = self.id_of(EOS)

    def id_of(self, word: str) -> int:
        return int(find_word(self.hashes, self.ids, word_hash(word), self.unknown))

    def knows(self, word: str) -> bool:
        return self.id_of(word) != self.unknown

    def start(self) -> int:
        return self._start

    def score(self, state: int, word: str) -> tuple[float, int]:
        value, following = score(self.trie, state, self.id_of(word))
        return float(value), int(following)

    def end(self, state: int) -> float:
        return float(score(self.trie, state, self._end)[0])


class KenlmModel:
    """A model that the package kenlm reads: its binary files, or ARPA."""

    def __init__(self, path: Path | str) -> None:
        try:
            import kenlm
        except ImportError:
            raise UserError(
                f"{path} is a binary file of KenLM: pip install kenlm, or give the ARPA file"
            ) from None
        self._kenlm = kenlm
        self._model = kenlm.Model(str(path))

    def knows(self, word: str) -> bool:
        return word in self._model

    def start(self) -> Hashable:
        state = self._kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: Hashable, word: str) -> tuple[float, Hashable]:
        following = self._kenlm.State()
        return self._model.BaseScore(state, word, following) * LN10, following

    def end(self, state: Hashable) -> float:
        return self.score(state, EOS)[0]


def sentence(model: Ngram, words: Iterable[str]) -> float:
    """log p of a sentence, its end included."""
    state, total = model.start(), 0.0
    for word in words:
        value, state = model.score(state, word)
        total += value
    return total + model.end(state)
