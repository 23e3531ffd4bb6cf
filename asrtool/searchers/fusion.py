"""Shallow fusion: an n-gram model and hotwords add to the score of a prefix, token by token.

A token-level model scores tokens by their names in the vocabulary. A word-level model scores a word
once it is complete: when the next token begins with a space, or at the end. The text of a token is
its name, with a space for sentencepiece's word marker and for `<space>`; blank and sos/eos have no
text.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from asrtool.compiled import compiled
from asrtool.searchers import hotwords, lexicon, ngram
from asrtool.searchers.hotwords import Automaton, Hotwords
from asrtool.searchers.lexicon import Lexicon, Spelling
from asrtool.searchers.ngram import EOS, ArpaModel, Ngram
from asrtool.types import EncoderOutput

WORD_SIGN, SPACE_TOKEN = "\u2581", "<space>"
SPACE = ord(" ")
ROWS = 4096  # number of states with a cached row of probabilities
NOTHING, TOKENS, WORDS = 0, 1, 2  # `Tables.unit`


@dataclass(frozen=True, kw_only=True)
class NgramConfig:
    """An n-gram language model: ARPA (`.gz` too), or a binary file of KenLM."""

    # file of the model; null: that of `--ngram`, or of `--lm` in a recipe
    path: str | None = None
    unit: Literal["token", "word"] = "word"


class PrefixScore(Protocol):
    """A score of prefixes that is a sum over tokens."""

    def start(self) -> Hashable: ...

    def extend(self, state: Hashable, token: int) -> tuple[float, Hashable]: ...

    def end(self, state: Hashable) -> float:
        """The score of the end of the text."""


class Tables(NamedTuple):
    """The scores as arrays, for the compiled search; unit NOTHING: there is no n-gram model."""

    unit: int
    start: int  # state of the n-gram model
    trie: Any
    hashes: np.ndarray
    ids: np.ndarray
    unknown: int
    end: int
    token_words: np.ndarray  # (V,) int32 word id of each token, for token-level models
    # (V + 1,) int32: the characters of token c are text[begin[c]] ... text[begin[c + 1] - 1]
    begin: np.ndarray
    text: np.ndarray
    biased: int  # 1: there are hotwords
    biased_start: int
    automaton: Automaton
    spelling: Spelling


def spell(tokens: Sequence[str], blank: int, eos: int | None) -> list[str]:
    """The text of each token."""
    texts = [" " if name == SPACE_TOKEN else name.replace(WORD_SIGN, " ") for name in tokens]
    for nothing in (blank, eos):
        if nothing is not None:
            texts[nothing] = ""
    return texts


@compiled
def extend_ngram(tables: Tables, state: int, pending: int, token: int) -> tuple[float, int, int]:
    """The score that a token adds, the next state and the next pending word.

    pending: hash of the characters of the incomplete last word; 0: there is none.
    """
    if tables.unit == TOKENS:
        value, state = ngram.score(tables.trie, state, tables.token_words[token])
        return value, state, pending
    total = 0.0
    for index in range(tables.begin[token], tables.begin[token + 1]):
        # hashing characters one by one lets a word be cut into tokens anywhere
        if tables.text[index] != SPACE:
            pending = ngram.hash_step(pending, tables.text[index])
        elif pending != 0:
            word = ngram.find_word(tables.hashes, tables.ids, pending, tables.unknown)
            value, state = ngram.score(tables.trie, state, word)
            total, pending = total + value, 0
    return total, state, pending


@compiled
def end_ngram(tables: Tables, state: int, pending: int) -> float:
    total = 0.0
    if pending != 0:
        word = ngram.find_word(tables.hashes, tables.ids, pending, tables.unknown)
        total, state = ngram.score(tables.trie, state, word)
    value, state = ngram.score(tables.trie, state, tables.end)
    return total + value


class NgramFusion:
    """A `PrefixScore`: the log-probability of a prefix by an n-gram model."""

    def __init__(
        self, model: Ngram, unit: str, tokens: Sequence[str], texts: Sequence[str]
    ) -> None:
        self.model, self.unit, self.tokens, self.texts = model, unit, list(tokens), list(texts)
        inner = [name for name, text in zip(tokens, texts, strict=True) if text]
        if unit == "token" and 2 * sum(map(model.knows, inner)) < len(inner):
            raise ValueError(
                f"ngram: the model knows {sum(map(model.knows, inner))} of the {len(inner)} "
                "tokens of the vocabulary; train it on text in the same tokens, or set unit: word"
            )
        if unit == "word" and not any(" " in text for text in texts):
            raise ValueError(
                "ngram: unit: word needs tokens that mark where words begin; set unit: token"
            )

    def start(self) -> Hashable:
        return self.model.start(), ""

    def extend(self, state: Hashable, token: int) -> tuple[float, Hashable]:
        inner, pending = state
        if self.unit == "token":
            value, inner = self.model.score(inner, self.tokens[token])
            return value, (inner, "")
        total = 0.0
        *complete, last = (pending + self.texts[token]).split(" ")
        for word in filter(None, complete):
            value, inner = self.model.score(inner, word)
            total += value
        return total, (inner, last)

    def end(self, state: Hashable) -> float:
        inner, pending = state
        total = 0.0
        if pending:
            total, inner = self.model.score(inner, pending)
        return total + self.model.end(inner)

    def row(self, state: Hashable, eos: int) -> np.ndarray:
        """(V,): the score that each token would add; at `eos`, that of the end."""
        if self.unit == "token" and isinstance(self.model, ArpaModel):
            row = np.empty(len(self.tokens))
            scratch = np.empty(self.model.num_words)
            ngram.fill_row(self.model.trie, state[0], token_words(self), row, scratch)
        elif self.unit == "token":
            row = np.array([self.extend(state, token)[0] for token in range(len(self.tokens))])
        else:
            # a word-level model scores only tokens that begin a word: they complete the one before
            row = np.zeros(len(self.tokens))
            complete = self.model.score(*state)[0] if state[1] else 0.0
            for token, text in enumerate(self.texts):
                if " " in text:
                    simple = " " not in text[1:]
                    row[token] = complete if simple else self.extend(state, token)[0]
        row[eos] = self.end(state)
        return row


@lru_cache(maxsize=8)
def token_words(fusion: NgramFusion) -> np.ndarray:
    return np.array([fusion.model.id_of(name) for name in fusion.tokens], dtype=np.int32)


class HotwordFusion:
    """A `PrefixScore`: the bonus of hotwords.py."""

    def __init__(self, model: Hotwords, texts: Sequence[str]) -> None:
        self.model = model
        self.texts = list(texts)
        self.most = model.most * max(map(len, texts))  # a bound on what one token can add

    def start(self) -> Hashable:
        return self.model.start()

    def extend(self, state: Hashable, token: int) -> tuple[float, Hashable]:
        return self.model.extend(state, self.texts[token])

    def end(self, state: Hashable) -> float:
        return self.model.end(state)


def tables(
    scores: Mapping[str, PrefixScore], num_tokens: int, words_of: Lexicon | None = None
) -> Tables | None:
    """Scores as arrays; None if one of them has no compiled form (KenLM's binary files)."""
    words, biased = scores.get("ngram"), scores.get("hotwords")
    if words is not None and not isinstance(words.model, ArpaModel):
        return None
    none = np.zeros(0, dtype=np.int32)
    with_texts = next((score for score in (words, biased) if score is not None), None)
    if with_texts is not None:
        texts = with_texts.texts
    else:
        texts = ["".join(map(chr, codes)) for codes in words_of.codes] if words_of else []
    # numba needs one type for every search, so absent models are empty arrays, not None.
    no_trie = ngram.Trie(none, none.astype(np.float32), none.astype(np.float32), none, none)
    no_words = Automaton(none, none, none, np.zeros(0), np.zeros(0), 0)
    model = words.model if words is not None else None
    return Tables(
        unit=NOTHING if model is None else TOKENS if words.unit == "token" else WORDS,
        start=0 if model is None else model.start(),
        trie=no_trie if model is None else model.trie,
        hashes=none.astype(np.int64) if model is None else model.hashes,
        ids=none if model is None else model.ids,
        unknown=0 if model is None else model.unknown,
        end=0 if model is None else model.id_of(EOS),
        token_words=token_words(words) if model is not None and words.unit == "token" else none,
        # The texts of all tokens in one array: token i is text[begin[i] : begin[i + 1]].
        begin=np.cumsum([0, *map(len, texts)]).astype(np.int32)
        if texts
        else np.zeros(num_tokens + 1, dtype=np.int32),
        text=np.array([ord(character) for text in texts for character in text], dtype=np.int32),
        biased=int(biased is not None),
        biased_start=0 if biased is None else biased.start(),
        automaton=no_words if biased is None else biased.model.automaton,
        spelling=lexicon.nothing() if words_of is None else words_of.spelling,
    )


def load(
    ngram_config: NgramConfig | None,
    hotwords_config: hotwords.HotwordsConfig | None,
    tokens: Sequence[str] | None,
    blank: int,
    eos: int | None,
) -> dict[str, PrefixScore]:
    """The scores `ngram` and `hotwords`, if configured; tokens: names of the vocabulary.

    Raises `ValueError` if a file is not given or does not suit the vocabulary.
    """
    if ngram_config is None and hotwords_config is None:
        return {}
    if tokens is None:
        raise ValueError(
            "ngram and hotwords need the names of the tokens: pass `tokens` to the searcher"
        )
    scores: dict[str, PrefixScore] = {}
    texts = spell(tokens, blank, eos)
    if ngram_config is not None:
        if ngram_config.path is None:
            raise ValueError("ngram: no file is given; set ngram.path to the model to read")
        scores["ngram"] = NgramFusion(
            ngram.load(ngram_config.path), ngram_config.unit, tokens, texts
        )
    if hotwords_config is not None:
        spaced = any(" " in text for text in texts)
        scores["hotwords"] = HotwordFusion(Hotwords.load(hotwords_config, spaced=spaced), texts)
    return scores


def check_weights(weights: Mapping[str, float], **configured: object) -> None:
    """Raise `ValueError` for a part that has a weight but no config, or a config but no weight."""
    for name, config in configured.items():
        if config is not None and not weights.get(name):
            raise ValueError(
                f"{name} is set, but weights.{name} is not; set the weight, for example to 0.5"
            )
        if config is None and weights.get(name):
            raise ValueError(
                f"weights.{name} is set, but {name} is not; set {name}.path to the file to read"
            )


class NgramScorer:
    """An n-gram model as a `Scorer` of the whole vocabulary, for label-synchronous search."""

    partial = False

    def __init__(self, fusion: NgramFusion, eos: int) -> None:
        self.fusion = fusion
        self.eos = eos
        self._row = lru_cache(maxsize=ROWS)(lambda state: torch.from_numpy(fusion.row(state, eos)))

    def start(self, encoded: EncoderOutput, beam: int) -> tuple[Hashable, ...]:
        return (None,) * (len(encoded.frames.lengths) * beam)

    def score(
        self, prefixes: Tensor, state: tuple[Hashable, ...], candidates: Tensor | None
    ) -> tuple[Tensor, tuple[Hashable, ...]]:
        """prefixes (N, U) with sos -> float64 (N, V) or (N, K), states of these prefixes."""
        newest = prefixes[:, -1].tolist()
        if prefixes.shape[1] == 1:
            state = (self.fusion.start(),) * len(newest)
        else:
            state = tuple(
                self._extend(before, token) for before, token in zip(state, newest, strict=True)
            )
        rows = torch.stack([self._row(prefix_state) for prefix_state in state]).to(prefixes.device)
        return (rows if candidates is None else rows.gather(1, candidates)), state

    def _extend(self, state: Hashable, token: int) -> Hashable:
        return state if token == self.eos else self.fusion.extend(state, token)[1]

    def select(self, state: tuple[Hashable, ...], rows: Tensor) -> tuple[Hashable, ...]:
        return tuple(state[row] for row in rows.tolist())
