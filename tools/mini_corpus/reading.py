"""Read speech: each sentence of a session is an audio file."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mini_corpus import accents, acoustics
from mini_corpus.espeak import Espeak
from mini_corpus.plan import Session
from mini_corpus.speakers import Speaker


@dataclass(frozen=True)
class Reading:
    """A session and its audio files, one per sentence; a job for `render`."""

    session: Session
    paths: tuple[Path, ...]
    seed: int

    def description(self) -> str:
        """The session and its speaker, for messages."""
        return f"session {self.session.number} ({self.session.speaker.description()})"

    def speak(self) -> list[tuple[float, float]]:
        """Write the files; returns start and end of each sentence in its file, in seconds."""
        session, speaker = self.session, self.session.speaker
        espeak = Espeak(seed=1 + (self.seed + session.number) % (2**31 - 1))
        espeak.set_voice(accents.language(speaker.accent), speaker.voice)
        take = zlib.crc32(session.take.encode())
        times = []
        for index, (text, path) in enumerate(
            zip(session.sentences, self.paths, strict=True), session.first_index
        ):
            rng = np.random.default_rng([self.seed, take, speaker.number, index])
            dry = say(text, speaker, espeak, rng, tilt_db=session.conditions.tilt_db)
            recording = acoustics.record(
                dry, session.conditions, speaker.level_db + rng.uniform(-2, 2), rng
            )
            acoustics.write(recording, path)
            times.append((0.0, recording.size / acoustics.SAMPLE_RATE_HZ))
        return times


def say(
    text: str, speaker: Speaker, espeak: Espeak, rng: np.random.Generator, *, tilt_db: float = 0.0
) -> np.ndarray:
    """(T,) float32 at 16 kHz: `text` in the current voice of `espeak`, dry.

    Tempo and pitch vary a little around those of the speaker.
    """
    tempo, pitch = accents.tempo_and_pitch(speaker.accent)
    dry = espeak.speak(
        accents.spoken(text, speaker.accent, espeak),
        words_per_minute=round(speaker.words_per_minute * tempo * rng.uniform(0.95, 1.05)),
        pitch=speaker.pitch + pitch + int(rng.integers(-3, 4)),
        pitch_range=speaker.pitch_range,
    )
    return acoustics.resample(
        acoustics.trim(dry), block=speaker.tract, tilt_db=speaker.tilt_db + tilt_db
    )
