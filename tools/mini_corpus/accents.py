"""Accents: from a text to the input of espeak-ng for a speaker with an accent.

English accents are voices of espeak-ng. Mandarin accents are defined here. espeak-ng's voice `cmn`
transcribes the characters, and an accent replaces tones (by contours that `cmn` has, in Chao's five
levels), initials and finals, and changes tempo and pitch. The replacements follow common
descriptions of the dialect groups (n/l and zh/z mergers, nasal endings, the tone values of a
central city), as far as espeak-ng's phonemes allow. They are caricatures: suited to test an
accent-aware model, but they say nothing about these dialects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from mini_corpus.espeak import Espeak

# The dictionary's contours of the four tones of standard Mandarin: high, rising, low, falling.
# The neutral tone is 11.
_STANDARD = ("55", "35", "214", "51")

_VOWELS = "'@aAeEiouyjw"
_N_ENDS = rf"(?<=\d)n(?![{_VOWELS}])"
_FINAL_N = (_N_ENDS, "N")
_NO_FINAL_N = (_N_ENDS, "")
_RHOTIC = (_N_ENDS, "r/")
_FINAL_NG = (r"(?<=\d)N", "n")
_N_IS_L = (rf"n(?=[{_VOWELS}])", "l")
_L_IS_N = ("l", "n")
_FLAT_I = (r"(?<=s)\.(h?'?)i\.", r"\1i[")
_FLAT = (r"(?<=[sz])\.", "")
_CURLED = (r"(?<=s)(h?'?)(?=[uoA@])", r".\1")
_POSTALVEOLAR = (r"s\.", "S")
_SOFT_IS_SHARP = (r"S;|(?<=t)s;", "s")
_R_IS_Y = (r"z\.", "j")
_R_IS_L = (r"z\.", "l")
_R_IS_Z = (r"z\.", "z")
_W_IS_V = ("w(?!u)", "v")
_AI_IS_E = (r"(?<!u)ai", "E")
_AU_IS_O = ("Au", "o")
_AN_IS_EN = (r"a(?=\d+n)", "E")
_AU_IS_A = ("Au", "A")
_EI_IS_I = (r"(?<![ua])ei", "i")
_OU_IS_U = (r"(?<!i)ou", "u")
_I_IS_APICAL = (r"(?<![aeuy])i(?![AEaeou.\[])", "i[")
_O_IS_SCHWA = (r"(?<=[pmf])('?)o(?![u-])", r"\1@")
_E_IS_SCHWA = ("o-", "@")
_E_IS_O = ("o-", "o")
_E_IS_FRONT = ("o-", "e")
_Y_IS_I = (r"y(?![&@Ei])", "i")
_SHU_IS_FU = (r"(?<!t)s\.('?)(?=[uw])", r"f\1")
_H_IS_F = (r"X('?)(?=[uw])", r"f\1")
_UO_IS_O = ("uo", "o")


@dataclass(frozen=True)
class Accent:
    """An accent of Mandarin.

    tones: contours that replace the four tones. sounds: regular expressions on espeak-ng's phonemes
    and their replacements, applied in this order. tempo: factor of the speaker's tempo. pitch:
    added to the speaker's pitch, on espeak-ng's scale.
    """

    tones: tuple[str, str, str, str] = _STANDARD
    sounds: tuple[tuple[str, str], ...] = ()
    tempo: float = 1.0
    pitch: int = 0

    def change(self, phonemes: str) -> str:
        """`phonemes` of standard Mandarin in this accent."""
        tones = dict(zip(_STANDARD, self.tones, strict=True))
        for pattern, replacement in self.sounds:
            phonemes = re.sub(pattern, replacement, phonemes)
        return re.sub(r"\d+", lambda tone: tones.get(tone[0], tone[0]), phonemes)


# The nine labels of KeSpeech ("Mandarin" is the standard language), then cities within its groups.
SUBDIALECTS = {
    "Mandarin": Accent(),
    "Beijing": Accent(("55", "35", "21", "51"), (_RHOTIC,), tempo=1.3, pitch=-6),
    "Ji-Lu": Accent(
        ("214", "53", "55", "21"), (_AI_IS_E, _AU_IS_O, _NO_FINAL_N, _W_IS_V), tempo=0.95
    ),
    "Jiang-Huai": Accent(
        ("21", "35", "22", "44"),
        (_N_IS_L, _FINAL_NG, _FLAT_I, _R_IS_L, _I_IS_APICAL),
        tempo=1.2,
        pitch=8,
    ),
    "Jiao-Liao": Accent(
        ("214", "53", "35", "51"), (_R_IS_Y, _UO_IS_O, _POSTALVEOLAR), tempo=0.8, pitch=-4
    ),
    "Lan-Yin": Accent(
        ("21", "53", "44", "35"), (_AN_IS_EN, _FINAL_N, _SHU_IS_FU, _L_IS_N, _W_IS_V), tempo=0.88
    ),
    "Northeastern": Accent(
        ("33", "35", "214", "53"),
        (_R_IS_Y, _O_IS_SCHWA, _E_IS_SCHWA, _OU_IS_U, _FLAT_I, _W_IS_V),
        tempo=1.0,
        pitch=-8,
    ),
    "Southwestern": Accent(
        ("44", "21", "53", "214"),
        (_N_IS_L, _FLAT_I, _FLAT, _FINAL_NG, _H_IS_F, _E_IS_FRONT, _AU_IS_A),
        tempo=1.1,
        pitch=4,
    ),
    "Zhongyuan": Accent(
        ("21", "35", "53", "44"),
        (_SHU_IS_FU, _SOFT_IS_SHARP, _EI_IS_I, _OU_IS_U, _NO_FINAL_N),
        tempo=0.85,
        pitch=2,
    ),
    "Tianjin": Accent(("21", "55", "35", "53"), (_FLAT_I, _FLAT, _RHOTIC), tempo=1.15),
    "Wuhan": Accent(("55", "214", "51", "35"), (_N_IS_L, _FLAT_I, _FLAT, _E_IS_O), tempo=1.1),
    "Kunming": Accent(
        ("44", "21", "53", "214"), (_Y_IS_I, _FINAL_NG, _R_IS_Z), tempo=0.95, pitch=3
    ),
    "Guiyang": Accent(("55", "21", "53", "35"), (_Y_IS_I, _N_IS_L, _H_IS_F), tempo=1.0, pitch=5),
    "Hefei": Accent(("21", "55", "35", "53"), (_FINAL_NG, _AU_IS_O, _R_IS_Z), tempo=1.1, pitch=4),
    "Yangzhou": Accent(
        ("21", "35", "51", "55"), (_N_IS_L, _AI_IS_E, _FLAT_I, _FLAT), tempo=0.9, pitch=8
    ),
    "Zhengzhou": Accent(("35", "53", "55", "214"), (_FINAL_N, _AI_IS_E), tempo=1.0, pitch=-3),
    "Luoyang": Accent(("33", "21", "53", "214"), (_E_IS_O, _SHU_IS_FU), tempo=0.85),
    "Yinchuan": Accent(("44", "53", "53", "21"), (_FINAL_N, _R_IS_Z, _UO_IS_O), tempo=1.0),
    "Yantai": Accent(("21", "55", "214", "55"), (_R_IS_Y, _AU_IS_O, _CURLED), tempo=0.95, pitch=-6),
    "Tangshan": Accent(
        ("55", "33", "214", "51"), (_R_IS_L, _O_IS_SCHWA, _E_IS_SCHWA, _RHOTIC), tempo=0.95, pitch=6
    ),
}

# How people from different regions read standard Mandarin: tones, tempo and pitch differ a little.
READING = {
    "standard": Accent(),
    "north": Accent(("55", "35", "214", "53"), tempo=1.05, pitch=-3),
    "northeast": Accent(("44", "35", "214", "53"), pitch=-2),
    "east": Accent(("55", "35", "21", "51"), tempo=1.05, pitch=2),
    "south": Accent(("44", "35", "21", "51"), (_R_IS_Z,), pitch=3),
    "southwest": Accent(("55", "35", "21", "53"), tempo=0.95),
    "northwest": Accent(("44", "35", "214", "51"), (_AI_IS_E,), tempo=0.95),
}

MANDARIN = {**READING, **SUBDIALECTS}

# Without `en-gb`, an alias that espeak-ng does not find by name, and `en-shaw`, which is a script.
ENGLISH = (
    "en",
    "en-us",
    "en-us-nyc",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)


def language(accent: str) -> str:
    """The espeak-ng language of `accent`."""
    return "cmn" if accent in MANDARIN else accent


def spoken(text: str, accent: str, espeak: Espeak) -> str:
    """What `espeak`, with a voice of `language(accent)`, is given to read `text` in this accent.

    text: words separated by spaces.
    """
    if accent not in MANDARIN:
        return text.lower()
    # brackets around each word, since espeak-ng treats the content of a pair as one word
    return " ".join(
        f"[[{MANDARIN[accent].change(_standard(word, espeak))}]]" for word in text.split()
    )


@cache
def _standard(word: str, espeak: Espeak) -> str:
    """The phonemes of a word in standard Mandarin, from espeak-ng's dictionary."""
    return espeak.mnemonics(word).replace("_|", "")


def tempo_and_pitch(accent: str) -> tuple[float, int]:
    """The tempo factor and the change of pitch of an accent."""
    own = MANDARIN.get(accent, Accent())
    return own.tempo, own.pitch
