"""Unique sentences from a small grammar that use the words of a class about equally often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from mini_corpus.errors import CorpusError

_MAX_ATTEMPTS = 5000
_VOWELS = "aeiou"
# Words that begin with a vowel letter but a consonant sound: "a useful map".
_NOT_AN = ("useful",)


class Author:
    """Generates sentences of a grammar, each only once."""

    def __init__(
        self,
        rules: Mapping[str, tuple[str, ...]],
        words: Mapping[str, str],
        rng: np.random.Generator,
        *,
        max_words: int,
        max_words_per_class: int | None = None,
    ) -> None:
        self._rules = rules
        self._classes = {
            name: tuple(text.split()[:max_words_per_class]) for name, text in words.items()
        }
        self._rng = rng
        self._max_words = max_words
        self._written: set[str] = set()
        self._uses: Counter[str] = Counter()

    def write(self, count: int, *, only: set[str] | None = None) -> list[str]:
        """`count` new sentences in capitals, words separated by spaces.

        only: the words that they may have; None: all.
        """
        return [self._sentence(only) for _ in range(count)]

    def _sentence(self, only: set[str] | None) -> str:
        for _ in range(_MAX_ATTEMPTS):
            words = _with_articles(self._expand("SENTENCE"))
            sentence = " ".join(words).upper()
            if (
                not 3 <= len(words) <= self._max_words
                or sentence in self._written
                or self._repeats(words)
            ):
                continue
            if only is not None and not only.issuperset(sentence.split()):
                continue
            self._written.add(sentence)
            self._uses.update(words)
            return sentence
        raise CorpusError(
            f"The grammar gave no new sentence of at most {self._max_words} words in "
            f"{_MAX_ATTEMPTS} attempts, after {len(self._written)} sentences; choose a smaller "
            "size."
        )

    def _expand(self, symbol: str) -> list[str]:
        if symbol in self._classes:
            return [self._least_used(self._classes[symbol])]
        if symbol not in self._rules:
            return [symbol]
        alternatives = self._rules[symbol]
        chosen = alternatives[self._rng.integers(len(alternatives))]
        return [word for part in chosen.split() for word in self._expand(part)]

    def _least_used(self, words: tuple[str, ...]) -> str:
        """A random word; words used less so far are more likely."""
        weights = np.array([1 / (1 + self._uses[word]) for word in words])
        return words[self._rng.choice(len(words), p=weights / weights.sum())]

    def _repeats(self, words: list[str]) -> bool:
        """Whether a word of a class occurs twice ("the farmer met the farmer")."""
        content = [
            word for word in words if any(word in members for members in self._classes.values())
        ]
        return len(content) != len(set(content))


def vocabulary(rules: Mapping[str, tuple[str, ...]], words: Mapping[str, str]) -> list[str]:
    """All words that the grammar can generate, sorted; with `an` if it has `a`."""
    parts = (part for texts in rules.values() for text in texts for part in text.split())
    fixed = (part for part in parts if part not in rules and part not in words)
    members = (word for text in words.values() for word in text.split())
    vocabulary = {*fixed, *members}
    return sorted(vocabulary | {"an"} if "a" in vocabulary else vocabulary)


def _with_articles(words: list[str]) -> list[str]:
    """`words` with `an` instead of `a` before a vowel."""
    following = [*words[1:], ""]
    return [
        "an" if word == "a" and after[:1] in _VOWELS and after and after not in _NOT_AN else word
        for word, after in zip(words, following, strict=True)
    ]
