"""Times of aligned tokens in seconds, and the words that the tokens form.

Words are separated by spaces; Han characters, which are written without spaces, are words of their
own. A word ends with the last frame in which the best path emits its last token. CTC emits a token
in only a few frames around its peak, so that this is early rather than late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from asrtool.align.viterbi import Alignment

# Unicode blocks: radicals, iteration marks and zero, extension A, unified ideographs,
# compatibility ideographs, and the supplementary planes (extensions B to H).
HAN = (
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A token with its start and end in seconds of the audio, and its confidence from 0 to 1."""

    token: int
    text: str
    start: float
    end: float
    confidence: float

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2

    def later(self, seconds: float) -> Timed:
        """The same token in audio that begins `seconds` earlier."""
        return replace(self, start=round(self.start + seconds, 3), end=round(self.end + seconds, 3))


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word with its times and tokens; glued: without a space between it and the previous word."""

    text: str
    start: float
    end: float
    confidence: float  # geometric mean over its tokens
    parts: tuple[Timed, ...]
    glued: bool = False


def times_of(
    alignment: Alignment,
    tokens: Sequence[int],
    pieces: Sequence[str],
    positions: Sequence[int],
    frame_shift: float,
    duration: float,
) -> list[Timed]:
    """tokens (U,) and their texts `pieces` (U,) -> the tokens with their times.

    Frame s begins at positions[s] * frame_shift seconds; no token ends after `duration`.
    """

    def at(position: float) -> float:
        return round(min(position * frame_shift, duration), 3)

    bounds = zip(alignment.starts, alignment.ends, strict=True)
    spans = [(at(positions[start]), at(positions[end - 1] + 1)) for start, end in bounds]
    return [
        Timed(token=token, text=text, start=start, end=end, confidence=math.exp(log_prob))
        for token, text, (start, end), log_prob in zip(
            tokens, pieces, spans, alignment.log_probs, strict=True
        )
    ]


def words_of(timed: Sequence[Timed]) -> list[Word]:
    """The words that a sequence of tokens forms.

    A token begins a word if its text starts with a space or a Han character, or follows one. A
    token of spaces alone belongs to the next word, but does not change its times and confidence.
    """
    groups: list[tuple[list[Timed], bool]] = []  # a word's tokens, whether it is glued
    spaces: list[Timed] = []  # tokens of nothing but space, since the last visible character
    last, spaced = "", False
    for part in timed:
        visible = part.text.strip()
        if not visible:
            spaces.append(part)
            spaced = True
            continue
        # A space may be a token of its own, the end of the last token or the start of this one.
        spaced = spaced or part.text[0].isspace()
        if not last or spaced or is_han(visible[0]) or is_han(last):
            groups.append(([], bool(last) and not spaced))
        groups[-1][0].extend([*spaces, part])
        spaces, last, spaced = [], visible[-1], part.text[-1].isspace()
    return [_word(parts, glued) for parts, glued in groups]


def _word(parts: Sequence[Timed], glued: bool) -> Word:
    visible = [part for part in parts if part.text.strip()]
    return Word(
        text="".join(part.text for part in visible).strip(),
        start=visible[0].start,
        end=visible[-1].end,
        # exp of the mean log-probability: independent of how many tokens a word is split into.
        confidence=math.prod(part.confidence for part in visible) ** (1 / len(visible)),
        parts=tuple(parts),
        glued=glued,
    )


def text_of(words: Sequence[Word]) -> str:
    """The text of the words."""
    return "".join(
        ("" if word.glued or index == 0 else " ") + word.text for index, word in enumerate(words)
    )


def is_han(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in HAN)
