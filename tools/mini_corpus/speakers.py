"""The speakers with their voices and accents.

A speaker has an accent (see `accents`), a voice variant (formants and voice quality), a pitch, a
tempo, a vocal tract length and a microphone. No two speakers have the same accent and variant,
unless a corpus asks for more speakers of an accent than there are variants.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mini_corpus.errors import CorpusError

# Selected from the 104 variants of espeak-ng 1.52: no whispering, croaking or robotic ones, and no
# near-duplicates (such as klatt6 and adam, or the three stephs).
KNOWN_VOICES = {
    "m1": "M",
    "m3": "M",
    "m6": "M",
    "m8": "M",
    "Alex": "M",
    "Diogo": "M",
    "Gene": "M",
    "Mario": "M",
    "Michael": "M",
    "Reed": "M",
    "adam": "M",
    "edward": "M",
    "iven3": "M",
    "john": "M",
    "max": "M",
    "norbert": "M",
    "robert": "M",
    "f1": "F",
    "f2": "F",
    "f3": "F",
    "f5": "F",
    "Annie": "F",
    "belinda": "F",
    "steph": "F",
}
# Not in training, so that a test set can have unseen voices.
UNSEEN_VOICES = {
    "Andrea": "F",
    "f4": "F",
    "grandma": "F",
    "linda": "F",
    "Andy": "M",
    "gustave": "M",
    "m7": "M",
    "michel": "M",
    "pablo": "M",
    "quincy": "M",
    "rob": "M",
    "victor": "M",
}

# Output samples per 20 ms, see acoustics.resample; all make fast FFTs.
_TRACTS = (300, 308, 315, 320, 324, 330, 336)


@dataclass(frozen=True)
class Speaker:
    """A speaker.

    voice: espeak-ng's name of the variant. pitch, pitch_range: on espeak-ng's scales from 0 to 99.
    tract: see `acoustics.resample`. level_db: RMS of the speech in dBFS.
    """

    number: int
    sex: str
    accent: str
    voice: str
    pitch: int
    pitch_range: int
    words_per_minute: int
    tract: int
    tilt_db: float
    level_db: float

    def name(self) -> str:
        """`<accent>+<voice>`."""
        return f"{self.accent}+{self.voice}"

    def description(self) -> str:
        """The speaker in one phrase, for the corpus's table of speakers."""
        return (
            f"espeak-ng {self.name()}, pitch {self.pitch}, {self.words_per_minute} words per minute"
        )


@dataclass(frozen=True)
class Manner:
    """How the speakers of a language vary: accents, and ranges of tempo and of pitch range.

    unfit: voice variants that do not work in this language.
    """

    accents: tuple[str, ...]
    words_per_minute: tuple[int, int]
    pitch_range: tuple[int, int]
    unfit: tuple[str, ...] = ()

    def voices(self, known: bool) -> dict[str, str]:
        """Name -> sex of the voices of training, or of the unseen ones."""
        voices = KNOWN_VOICES if known else UNSEEN_VOICES
        return {name: sex for name, sex in voices.items() if name not in self.unfit}


class Cast:
    """Draws speakers such that accents and voices are used evenly and no pair twice."""

    def __init__(self, manner: Manner, rng: np.random.Generator) -> None:
        self._manner = manner
        self._rng = rng
        self._uses: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._accents = manner.accents

    def draw(self, count: int, voices: dict[str, str], first_number: int) -> list[Speaker]:
        """New speakers with `voices` (name -> sex), numbered from `first_number`."""
        return [self._speaker(first_number + index, voices) for index in range(count)]

    def draw_with(
        self, accents: Sequence[str], voices: dict[str, str], first_number: int
    ) -> list[Speaker]:
        """A new speaker for each of `accents`.

        A pair of accent and voice is used again if an accent has more speakers than voices.
        """
        return [
            self._speaker(first_number + index, voices, accent)
            for index, accent in enumerate(accents)
        ]

    def known(self, speakers: list[Speaker]) -> dict[str, str]:
        """The voices of `speakers` (name -> sex); later draws use only their accents."""
        self._accents = tuple(
            a for a in self._manner.accents if any(s.accent == a for s in speakers)
        )
        return {speaker.voice: speaker.sex for speaker in speakers}

    def _speaker(self, number: int, voices: dict[str, str], accent: str | None = None) -> Speaker:
        pairs = list(itertools.product(self._accents if accent is None else [accent], voices))
        fewest = 0 if accent is None else min(self._pairs[pair] for pair in pairs)
        free = [pair for pair in pairs if self._pairs[pair] == fewest]
        if not free:
            raise CorpusError(
                f"{len(self._accents)} accents and {len(voices)} voices give no more speakers; "
                "choose a smaller size."
            )
        order = self._rng.permutation(len(free))
        accent, voice = min(
            (free[i] for i in order), key=lambda pair: (self._uses[pair[1]], self._uses[pair[0]])
        )
        self._uses.update((accent, voice))
        self._pairs[accent, voice] += 1
        return Speaker(
            number=number,
            sex=voices[voice],
            accent=accent,
            voice=voice,
            pitch=int(self._rng.integers(30, 71)),
            pitch_range=int(self._rng.integers(*self._manner.pitch_range)),
            words_per_minute=int(self._rng.integers(*self._manner.words_per_minute)),
            tract=int(self._rng.choice(_TRACTS)),
            tilt_db=round(float(self._rng.uniform(-2, 2)), 2),
            level_db=round(float(self._rng.uniform(-30, -20)), 1),
        )
