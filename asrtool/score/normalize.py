"""Named text normalisers, applied to reference and hypothesis alike, and the tokens that a metric
counts.

| normaliser | what it does, in this order |
|---|---|
| `none` | nothing |
| `en` | curly `'` to straight; hidden characters removed; NFKC; lower case; other punctuation to |
| | spaces; lone `'` removed |
| `zh` | as `en`, with `'` between two Latin letters only; spaces next to Han characters removed |
| `zh-aishell2` | U+2B5AF replaced by U+982B, U+2B689 removed; then `zh` |
| `zh-kespeech` | the tag `<SPOKEN_NOISE>` removed; then `zh` |
| `zh-magicdata` | FIL, SPK and tags as `[LAUGHTER]` or `[+]` removed; then `zh` |
| `whisper` | Whisper's normaliser of English, by the package whisper-normalizer |
| `whisper-basic` | Whisper's normaliser of all other languages, by the same package |

Hidden characters are invisible: zero-width spaces, soft hyphens, marks of direction, variation
selectors, controls (`asrtool/system/characters.py`). Punctuation is every character of the Unicode
categories P* and S*. A tag in angle brackets, such as `<unk>`, stays as it is.

| metric | tokens |
|---|---|
| `wer` | words: whatever Unicode white space separates |
| `cer` | characters (code points), white space not counted; a tag is one token |
| `mer` | Han characters one by one, the rest in words; a tag is one token |
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

from asrtool.errors import UserError
from asrtool.system import characters

HAN = "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
TAG = r"<[A-Za-z][\w/|:.-]*>|</[A-Za-z][\w|:.-]*>"

_tag = re.compile(TAG)
_han_spaces = re.compile(rf"(?<=[{HAN}])\s+|\s+(?=[{HAN}])")
_characters = re.compile(rf"{TAG}|\S")
_mixed = re.compile(rf"{TAG}|[{HAN}]|[^\s{HAN}<]+|<")
_loose_apostrophe = re.compile(r"(?<![a-z\u00df-\u024f])'|'(?![a-z\u00df-\u024f])")
_apostrophes = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4\uff07", "'"))

_bracket_tags = re.compile(r"\[(?:\+{1,2}|\*|[A-Za-z]+)\]|(?<![A-Za-z])(?:FIL|SPK)(?![A-Za-z])")
_aishell2 = str.maketrans({"\U0002b5af": "\u982b", "\U0002b689": None})


class _Punctuation(dict):
    """A translation table that classifies each character when it first occurs."""

    def __missing__(self, code: int) -> int:
        drop = chr(code) != "'" and unicodedata.category(chr(code))[0] in "PS"
        self[code] = ord(" ") if drop else code
        return self[code]


_punctuation = _Punctuation()


def normalizer(name: str) -> Callable[[str], str]:
    """The normaliser of a name. Raises `UserError` if its package is missing."""
    return _whisper(name) if name in WHISPER else _named(NORMALIZERS, name, "normalizer")


def splitter(metric: str) -> Callable[[str], list[str]]:
    """The function that splits a text into the tokens `metric` counts."""
    return _named(METRICS, metric, "metric")


def _named(table: dict[str, Callable], name: str, kind: str) -> Callable:
    if name not in table:
        raise ValueError(f"unknown {kind} '{name}' (valid: {', '.join(table)})")
    return table[name]


def _unchanged(text: str) -> str:
    return text


def _english(text: str) -> str:
    if "<" in text:
        return _around_tags(_english, text)
    return " ".join(word for word in _plain(text).split() if word.strip("'"))


def _mandarin(text: str) -> str:
    if "<" in text:
        return _han_spaces.sub("", _around_tags(_mandarin, text))
    text = _plain(text)
    if "'" in text:
        text = _loose_apostrophe.sub(" ", text)
    return _han_spaces.sub("", " ".join(text.split()))


def _plain(text: str) -> str:
    text = characters.visible(text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_apostrophes))
    return text.lower().translate(_punctuation)


def _around_tags(normalize: Callable[[str], str], text: str) -> str:
    """Normalise the text between tags; a `<` that opens no tag is punctuation."""
    pieces, end = [], 0
    for tag in _tag.finditer(text):
        pieces += [normalize(text[end : tag.start()].replace("<", " ")), tag.group()]
        end = tag.end()
    pieces.append(normalize(text[end:].replace("<", " ")))
    return " ".join(piece for piece in pieces if piece)


@functools.cache
def _whisper(name: str) -> Callable[[str], str]:
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise UserError(
            f"the normaliser '{name}' needs the package whisper-normalizer: pip install "
            "whisper-normalizer"
        ) from None
    normalize = EnglishTextNormalizer() if name == "whisper" else BasicTextNormalizer()
    # it may leave spaces at the ends
    return lambda text: " ".join(normalize(text).split())


WHISPER = ("whisper", "whisper-basic")
NORMALIZERS: dict[str, Callable[[str], str]] = {
    "none": _unchanged,
    "en": _english,
    "zh": _mandarin,
    "zh-aishell2": lambda text: _mandarin(text.translate(_aishell2)),
    "zh-kespeech": lambda text: _mandarin(text.replace("<SPOKEN_NOISE>", " ")),
    "zh-magicdata": lambda text: _mandarin(_bracket_tags.sub(" ", text)),
    "whisper": lambda text: _whisper("whisper")(text),
    "whisper-basic": lambda text: _whisper("whisper-basic")(text),
}
METRICS: dict[str, Callable[[str], list[str]]] = {
    "wer": str.split,
    "cer": _characters.findall,
    "mer": _mixed.findall,
}
