"""espeak-ng by ctypes: text in, samples out.

The library and its data come from the package `espeakng_loader`; no program has to be installed.
espeak-ng keeps its state (pitch flutter, random numbers, the last voice) in globals that cannot be
reset, so the same text sounds slightly different the second time. To get the same samples again,
synthesise the same texts with the same seed in a new process, as `render` does.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from mini_corpus.errors import CorpusError

SAMPLE_RATE_HZ = 22050

# Values of espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_POSITION_CHARACTER = 1
_CHARACTERS_UTF8 = 1
_PHONEMES_IN_BRACKETS = 0x100
_MNEMONICS, _IPA = 0, 2
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4

# Full volume (100) clips some voices; `acoustics` sets the level later.
_UNCLIPPED_VOLUME = 50

_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Espeak:
    """The synthesiser; one per process. seed: 1 to 2^31 - 1."""

    def __init__(self, seed: int) -> None:
        library_path, self._data = locate()
        self._library = ctypes.CDLL(library_path)
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        rate = self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, str(self._data).encode(), 0)
        if rate != SAMPLE_RATE_HZ:
            raise CorpusError(
                f"espeak_Initialize({self._data}) returned {rate}, expected {SAMPLE_RATE_HZ} (Hz)."
            )
        # Unseeded, espeak-ng draws the breath of some voices (f2, f3, f5) from the clock.
        self._check(
            self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed)),
            f"espeak_ng_SetRandSeed({seed})",
        )
        self._pieces: list[bytes] = []
        # Referenced here, because ctypes frees a callback without a reference and espeak-ng would
        # then call freed memory.
        self._callback = _SynthCallback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def set_voice(self, language: str, variant: str) -> None:
        """Select a voice, such as `en-us` and `f2`.

        Raises CorpusError if espeak-ng lacks one of them. espeak-ng itself would keep the previous
        voice for an unknown language and use the plain voice for an unknown variant, the latter
        without an error code.
        """
        if not (self._data / "voices" / "!v" / variant).is_file():
            raise CorpusError(
                f"This espeak-ng has no voice variant '{variant}' (in {self._data}/voices/!v)."
            )
        name = f"{language}+{variant}"
        self._check(
            self._library.espeak_SetVoiceByName(name.encode()), f"espeak_SetVoiceByName({name})"
        )

    def speak(
        self, text: str, *, words_per_minute: int, pitch: int, pitch_range: int
    ) -> np.ndarray:
        """Samples (T,) float32 in [-1, 1] at 22,050 Hz.

        Text in double square brackets is read as phoneme mnemonics. pitch, pitch_range: on
        espeak-ng's scales from 0 to 99.
        """
        settings = {
            _RATE: words_per_minute,
            _PITCH: pitch,
            _RANGE: pitch_range,
            _VOLUME: _UNCLIPPED_VOLUME,
        }
        for parameter, value in settings.items():
            status = self._library.espeak_SetParameter(parameter, value, 0)
            self._check(status, f"espeak_SetParameter({parameter}, {value})")
        self._pieces.clear()
        data = text.encode()
        flags = _CHARACTERS_UTF8 | _PHONEMES_IN_BRACKETS
        status = self._library.espeak_Synth(
            data, len(data) + 1, 0, _POSITION_CHARACTER, 0, flags, None, None
        )
        self._check(status, f"espeak_Synth({text!r})")
        samples = np.frombuffer(b"".join(self._pieces), dtype=np.int16)
        if not samples.any():
            raise CorpusError(f"espeak-ng returned silence for {text!r}.")
        return samples.astype(np.float32) / 32768

    def phonemes(self, text: str) -> str:
        """The IPA transcription in the current voice."""
        return self._transcribe(text, _IPA)

    def mnemonics(self, text: str) -> str:
        """The transcription in the current voice, as `speak` reads it in double square brackets."""
        return self._transcribe(text, _MNEMONICS)

    def _transcribe(self, text: str, mode: int) -> str:
        pointer, clauses = ctypes.c_char_p(text.encode()), []
        while pointer.value is not None:  # each call reads one clause
            clause = self._library.espeak_TextToPhonemes(
                ctypes.byref(pointer), _CHARACTERS_UTF8, mode
            )
            clauses.append(clause.decode())
        return " ".join(clauses)

    def _receive(self, samples: ctypes._Pointer, count: int, _events: int) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    def _check(self, status: int, call: str) -> None:
        if status != 0:
            raise CorpusError(f"{call} failed with code {status}.")


def locate() -> tuple[str, Path]:
    """The shared library and its data folder; raises CorpusError if they are not installed."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise CorpusError(
            "The miniature corpus is synthesised with espeak-ng, which is not installed: pip "
            "install espeakng-loader"
        ) from error
    return espeakng_loader.get_library_path(), Path(espeakng_loader.get_data_path())
