"""Who reads what: sizes, sets, speakers and sentences of a corpus, before synthesis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mini_corpus import accents, english, mandarin
from mini_corpus.acoustics import Conditions
from mini_corpus.errors import CorpusError
from mini_corpus.sentences import Author
from mini_corpus.speakers import Cast, Manner, Speaker

_UTTERANCES_PER_SESSION = 25
_MAX_TRAINING_SPEAKERS = 96


@dataclass(frozen=True)
class Language:
    """The grammar and the speakers of a language.

    seconds: mean length of an utterance, measured on a corpus of the default size.
    """

    rules: Mapping[str, tuple[str, ...]]
    words: Mapping[str, str]
    manner: Manner
    seconds: float


ENGLISH = Language(
    english.RULES, english.WORDS, Manner(accents.ENGLISH, (135, 196), (30, 81)), seconds=2.75
)
# espeak-ng 1.52 crashes with the variant rob on some falling and rising tones ("cmn+rob", pitch
# range 90).
MANDARIN = Language(
    mandarin.RULES,
    mandarin.WORDS,
    Manner(tuple(accents.READING), (200, 271), (60, 100), unfit=("rob",)),
    seconds=2.12,
)


@dataclass(frozen=True)
class Size:
    """Numbers of utterances and speakers of the training, development and each test set.

    max_words: limit of the words of a sentence. max_words_per_class: how many words of each class
    of the grammar are used; None: all.
    """

    train: tuple[int, int]
    dev: tuple[int, int]
    test: tuple[int, int]
    max_words: int = 14
    max_words_per_class: int | None = None


SIZES = {
    "tiny": Size(train=(40, 4), dev=(6, 2), test=(6, 2), max_words=6, max_words_per_class=4),
    "small": Size(train=(200, 16), dev=(24, 4), test=(40, 5)),
    "default": Size(train=(5200, 96), dev=(80, 10), test=(170, 12)),
    # more test data, so that small differences are significant
    "study": Size(train=(5200, 96), dev=(80, 10), test=(600, 12)),
}
# A small model leaves CTC's plateau two epochs earlier with 270 characters than with all 435.
MANDARIN_SIZES = {
    **SIZES,
    **{name: replace(SIZES[name], max_words_per_class=4) for name in ("default", "study")},
}


@dataclass(frozen=True)
class Set:
    """A set of a corpus.

    share: the field of `Size` with its numbers of utterances and speakers: train, dev or test.
    unseen: its speakers have voices that no other set has. Otherwise they are new combinations of
    voices and accents of the training set.
    """

    name: str
    share: str
    conditions: Conditions
    first_speaker: int
    unseen: bool = False


@dataclass(frozen=True)
class Session:
    """Sentences that a speaker reads in one session, recorded in the conditions of a set.

    first_index: index of the first sentence among all of the speaker's.
    take: seeds the random choices; recordings of the same reading by several microphones have the
    same take.
    """

    number: int
    split: str
    speaker: Speaker
    sentences: tuple[str, ...]
    conditions: Conditions
    first_index: int
    take: str

    @property
    def speakers(self) -> tuple[Speaker, ...]:
        """The speaker, as a conversation has two."""
        return (self.speaker,)


def parse_size(text: str, language: Language, sizes: Mapping[str, Size]) -> Size:
    """The size with the name `text`, or the one with about `text` hours of training speech."""
    if text in sizes:
        return sizes[text]
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0.01 <= hours <= 100:
        names = ", ".join(sizes)
        raise CorpusError(
            f"The size is '{text}'; expected {names} or the hours of training speech (0.01 to 100)."
        )
    train = round(hours * 3600 / language.seconds)
    speakers = min(max(4, train // 40), _MAX_TRAINING_SPEAKERS)
    heldout = min(max(12, train // 12), 500)
    return Size(
        train=(train, speakers), dev=(heldout, 4), test=(heldout, min(4 + heldout // 20, 12))
    )


def plan(
    size: Size,
    sets: Sequence[Set],
    language: Language,
    seed: int,
    *,
    shares: Mapping[str, float] | None = None,
) -> list[Session]:
    """All sessions of a corpus; the same arguments give the same sessions.

    The first of `sets` is the training set. No speaker and no sentence is in two sets. Held-out
    sentences use only words of the training set.

    shares: accent -> its share of the training speakers; the other sets are balanced.
    """
    text_rng, cast_rng = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    author = Author(
        language.rules,
        language.words,
        text_rng,
        max_words=size.max_words,
        max_words_per_class=size.max_words_per_class,
    )
    cast = Cast(language.manner, cast_rng)
    words: set[str] | None = None
    known = language.manner.voices(known=True)
    sessions = []
    for part in sets:
        utterances, count = getattr(size, part.share)
        voices = language.manner.voices(known=False) if part.unseen else known
        if shares is None:
            readers = cast.draw(count, voices, part.first_speaker)
        else:
            wanted = shares if words is None else dict.fromkeys(shares, 1.0)
            readers = cast.draw_with(apportion(count, wanted), voices, part.first_speaker)
        sentences = author.write(utterances, only=words)
        for index, reader in enumerate(readers):
            sessions += read_aloud(reader, sentences[index :: len(readers)], part)
        if words is None:
            words = set(" ".join(sentences).split())
            known = cast.known(readers)
    return sessions


def apportion(count: int, shares: Mapping[str, float]) -> list[str]:
    """At least `count` names, in proportion to their shares and at least one of each, grouped."""
    total = sum(shares.values())
    counts = dict.fromkeys(shares, 1)
    for _ in range(count - len(shares)):
        counts[max(shares, key=lambda name: shares[name] / total * count - counts[name])] += 1
    return [name for name, number in counts.items() for _ in range(number)]


def read_aloud(
    speaker: Speaker,
    sentences: Sequence[str],
    part: Set,
    *,
    first_index: int = 0,
    first_session: int = 0,
) -> list[Session]:
    """`sentences` of one speaker in sessions of at most `_UTTERANCES_PER_SESSION`.

    first_index, first_session: how many sentences and sessions of the speaker there are already.
    """
    return [
        Session(
            number=speaker.number * 100 + number,
            split=part.name,
            speaker=speaker,
            sentences=tuple(sentences[start : start + _UTTERANCES_PER_SESSION]),
            conditions=part.conditions,
            first_index=first_index + start,
            take=part.name,
        )
        for number, start in enumerate(
            range(0, len(sentences), _UTTERANCES_PER_SESSION), first_session
        )
    ]
