"""When each token and word of a known text was spoken: CTC forced alignment, and the files it is
written to.
"""

from __future__ import annotations

from asrtool.align.viterbi import Alignment, align
from asrtool.align.words import Timed, Word, text_of, times_of, words_of

__all__ = ["Alignment", "Timed", "Word", "align", "text_of", "times_of", "words_of"]
