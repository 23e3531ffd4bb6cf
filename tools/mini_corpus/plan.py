"""Who reads what: the sizes of a corpus, its sets, speakers and sentences, before anything is spoken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mini_corpus import english
from mini_corpus.acoustics import HEAVY, LIGHT, Conditions
from mini_corpus.errors import CorpusError
from mini_corpus.sentences import Author
from mini_corpus.speakers import KNOWN_VOICES, UNSEEN_VOICES, Cast, Speaker

# Measured over the default size.
_SECONDS_PER_UTTERANCE = 2.75
_UTTERANCES_PER_SESSION = 25


@dataclass(frozen=True)
class Size:
    """Utterances and speakers of the training, development and each test set, and the longest sentence in words."""

    train: tuple[int, int]
    dev: tuple[int, int]
    test: tuple[int, int]
    max_words: int = 14
    max_words_per_class: int | None = None


SIZES = {
    "tiny": Size(train=(40, 4), dev=(6, 2), test=(6, 2), max_words=6, max_words_per_class=4),
    "small": Size(train=(200, 16), dev=(24, 4), test=(40, 5)),
    "default": Size(train=(5200, 96), dev=(80, 10), test=(170, 12)),
}
_MAX_TRAINING_SPEAKERS = 96


@dataclass(frozen=True)
class Sets:
    """The names that a corpus gives its four sets."""

    train: str
    dev: str
    test_clean: str
    test_other: str


@dataclass(frozen=True)
class Session:
    """What one speaker reads in one go, recorded under one set's conditions."""

    number: int
    split: str
    speaker: Speaker
    sentences: tuple[str, ...]
    conditions: Conditions


def parse_size(text: str) -> Size:
    """The named size, or the size that has about `text` hours of training speech."""
    if text in SIZES:
        return SIZES[text]
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0.01 <= hours <= 100:
        names = ", ".join(SIZES)
        raise CorpusError(f"The size is '{text}', expected {names} or the hours of training speech (0.01 to 100).")
    train = round(hours * 3600 / _SECONDS_PER_UTTERANCE)
    speakers = min(max(4, train // 40), _MAX_TRAINING_SPEAKERS)
    heldout = min(max(12, train // 12), 500)
    return Size(train=(train, speakers), dev=(heldout, 4), test=(heldout, min(4 + heldout // 20, 12)))


def plan(size: Size, sets: Sets, seed: int) -> list[Session]:
    """All sessions of a corpus, the same for the same arguments.

    No speaker and no sentence is in two sets. Development and clean test speakers combine voices and accents of the
    training set anew, those of the other test set have voices of their own; held-out sentences use words of the
    training set only.
    """
    text_rng, cast_rng = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    author = Author(
        english.RULES,
        english.WORDS,
        text_rng,
        max_words=size.max_words,
        max_words_per_class=size.max_words_per_class,
    )
    cast = Cast(cast_rng)

    train_speakers = cast.draw(size.train[1], KNOWN_VOICES, first_number=1001)
    train_sentences = author.write(size.train[0])
    words = set(" ".join(train_sentences).split())
    known = cast.known(train_speakers)

    sessions = _sessions(sets.train, train_speakers, train_sentences, LIGHT)
    for split, (utterances, speakers), voices, conditions, first_number in (
        (sets.dev, size.dev, known, LIGHT, 2001),
        (sets.test_clean, size.test, known, LIGHT, 3001),
        (sets.test_other, size.test, UNSEEN_VOICES, HEAVY, 4001),
    ):
        readers = cast.draw(speakers, voices, first_number)
        sessions += _sessions(split, readers, author.write(utterances, only=words), conditions)
    return sessions


def _sessions(split: str, speakers: list[Speaker], sentences: list[str], conditions: Conditions) -> list[Session]:
    """`sentences` dealt out evenly to `speakers`, cut into sessions of at most `_UTTERANCES_PER_SESSION`."""
    sessions = []
    for index, speaker in enumerate(speakers):
        own = sentences[index :: len(speakers)]
        for part, start in enumerate(range(0, len(own), _UTTERANCES_PER_SESSION)):
            texts = tuple(own[start : start + _UTTERANCES_PER_SESSION])
            sessions.append(Session(speaker.number * 100 + part, split, speaker, texts, conditions))
    return sessions
