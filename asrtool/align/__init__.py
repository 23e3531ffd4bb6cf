"""Times of the tokens and words of a known text: CTC forced alignment, and its files."""

from __future__ import annotations

from asrtool.align.viterbi import Alignment, align
from asrtool.align.words import Timed, Word, text_of, times_of, words_of

__all__ = ["Alignment", "Timed", "Word", "align", "text_of", "times_of", "words_of"]
