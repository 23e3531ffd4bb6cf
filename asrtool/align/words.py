"""From aligned tokens to times in seconds, and from tokens to words.

A word is what spaces separate; Han characters, which are written without spaces, are words of their own. CTC marks a
token by one or a few frames around its peak, so a word's end is early rather than late: it is the end of the last frame
in which the best path reads its last token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from asrtool.align.viterbi import Alignment

HAN = ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A token in time; start and end in seconds from the beginning of the audio, confidence from 0 to 1."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Word(Timed):
    """A word in time, with its tokens. `glued`: no space stands between it and the word before."""

    tokens: tuple[int, ...]
    parts: tuple[Timed, ...]
    glued: bool = False

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2

    def later(self, seconds: float) -> Word:
        """The same word in audio that begins `seconds` earlier."""

        def moved(part: Timed) -> dict[str, float]:
            return {"start": round(part.start + seconds, 3), "end": round(part.end + seconds, 3)}

        return replace(self, **moved(self), parts=tuple(replace(part, **moved(part)) for part in self.parts))


def times_of(
    alignment: Alignment, pieces: Sequence[str], positions: Sequence[int], frame_shift: float, duration: float
) -> list[Timed]:
    """Seconds of each token; frame s begins at positions[s] * frame_shift, and nothing ends after `duration`."""

    def at(position: float) -> float:
        return round(min(position * frame_shift, duration), 3)

    return [
        Timed(text=piece, start=at(positions[start]), end=at(positions[end - 1] + 1), confidence=math.exp(log_prob))
        for piece, start, end, log_prob in zip(
            pieces, alignment.starts, alignment.ends, alignment.log_probs, strict=True
        )
    ]


def words_of(tokens: Sequence[int], timed: Sequence[Timed]) -> list[Word]:
    """Tokens (U,) and their times -> words; a word's confidence is the geometric mean of its tokens'.

    The text of a token tells whether it begins a word: by a space in front, or as (or after) a Han character. A token
    that is nothing but space belongs to the word behind it and counts for neither time nor confidence.
    """
    groups: list[tuple[list[int], bool]] = []  # places of a word's tokens, whether it is glued
    spaces: list[int] = []  # tokens of nothing but space, since the last visible character
    last, spaced = "", False
    for place, part in enumerate(timed):
        visible = part.text.strip()
        if not visible:
            spaces.append(place)
            spaced = True
            continue
        spaced = spaced or part.text[0].isspace()
        if not last or spaced or is_han(visible[0]) or is_han(last):
            groups.append(([], bool(last) and not spaced))
        groups[-1][0].extend([*spaces, place])
        spaces, last, spaced = [], visible[-1], part.text[-1].isspace()
    return [_word(tokens, timed, places, glued) for places, glued in groups]


def _word(tokens: Sequence[int], timed: Sequence[Timed], places: Sequence[int], glued: bool) -> Word:
    visible = [timed[place] for place in places if timed[place].text.strip()]
    return Word(
        text="".join(part.text for part in visible).strip(),
        start=visible[0].start,
        end=visible[-1].end,
        confidence=math.prod(part.confidence for part in visible) ** (1 / len(visible)),
        tokens=tuple(tokens[place] for place in places),
        parts=tuple(timed[place] for place in places),
        glued=glued,
    )


def text_of(words: Sequence[Word]) -> str:
    """What the words read."""
    return "".join(("" if word.glued or place == 0 else " ") + word.text for place, word in enumerate(words))


def is_han(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in HAN)
