"""Conversations: long recordings of two speakers, with pauses, overlaps and other sounds."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mini_corpus import accents, acoustics
from mini_corpus.acoustics import SAMPLE_RATE_HZ, Conditions
from mini_corpus.espeak import Espeak
from mini_corpus.plan import Session
from mini_corpus.reading import say
from mini_corpus.speakers import Speaker

# About six minutes; a pair with more sentences has several recordings.
_SENTENCES_PER_RECORDING = 120
_PAUSE_SECONDS = (0.15, 1.0)
_OVERLAP_SECONDS = (0.1, 0.4)

# Kinds of turns and their probabilities; the rest is plain speech.
OVERLAP, LAUGHTER, SONANT = "overlap", "laughter", "sonant"
_KINDS = {OVERLAP: 0.05, LAUGHTER: 0.03, SONANT: 0.03}
# Sounds between two turns, and their probabilities.
UNINTELLIGIBLE, NOISE, MUSIC = "unintelligible", "noise", "music"
_BETWEEN = {UNINTELLIGIBLE: 0.01, NOISE: 0.03, MUSIC: 0.01}


@dataclass(frozen=True)
class Turn:
    """A sentence of a speaker (0 or 1), or a sound with an empty `text`, of a speaker or nobody."""

    kind: str
    speaker: int | None
    text: str


@dataclass(frozen=True)
class Conversation:
    """A recording of two speakers, the `number`-th of its set."""

    number: int
    split: str
    speakers: tuple[Speaker, Speaker]
    turns: tuple[Turn, ...]
    conditions: Conditions

    @property
    def sentences(self) -> tuple[str, ...]:
        """The texts of the turns that have words."""
        return tuple(turn.text for turn in self.turns if turn.text)


def converse(sessions: Sequence[Session], seed: int) -> list[Conversation]:
    """Pair the speakers of each set; the sentences of their sessions become their turns."""
    spoken: dict[tuple[str, Speaker], list[str]] = {}
    conditions = {}
    for session in sessions:
        spoken.setdefault((session.split, session.speaker), []).extend(session.sentences)
        conditions[session.split] = session.conditions
    conversations = []
    for split in conditions:
        speakers = [speaker for name, speaker in spoken if name == split]
        number = 0
        for pair in zip(speakers[::2], speakers[1::2], strict=True):
            lists = [spoken[split, speaker] for speaker in pair]
            parts = -(-sum(map(len, lists)) // _SENTENCES_PER_RECORDING)
            for part in range(parts):
                number += 1
                rng = np.random.default_rng([seed, zlib.crc32(split.encode()), number])
                turns = _turns([sentences[part::parts] for sentences in lists], rng)
                conversations.append(Conversation(number, split, pair, turns, conditions[split]))
    return conversations


def _turns(sentences: list[list[str]], rng: np.random.Generator) -> tuple[Turn, ...]:
    """The speakers alternate with one to three sentences, until both have said all of theirs."""
    remaining, turns, current = [list(texts) for texts in sentences], [], 0
    while any(remaining):
        for _ in range(min(int(rng.integers(1, 4)), len(remaining[current]))):
            kind = _draw(_KINDS, rng) or "speech"
            if kind == OVERLAP and not (turns and turns[-1].speaker == 1 - current):
                kind = "speech"  # only the other speaker can be interrupted
            turns.append(Turn(kind, current, remaining[current].pop(0)))
            between = _draw(_BETWEEN, rng)
            if between:
                turns.append(Turn(between, current if between == UNINTELLIGIBLE else None, ""))
        current = 1 - current
    return tuple(turns)


def _draw(probabilities: dict[str, float], rng: np.random.Generator) -> str:
    """A random name, or an empty text with the remaining probability."""
    point = rng.random()
    for name, probability in probabilities.items():
        point -= probability
        if point < 0:
            return name
    return ""


@dataclass(frozen=True)
class Talk:
    """A conversation and its audio file; a job for `render`."""

    conversation: Conversation
    path: Path
    seed: int

    def description(self) -> str:
        """The speakers, for messages."""
        names = [speaker.description() for speaker in self.conversation.speakers]
        return f"the conversation of {' and '.join(names)}"

    def speak(self) -> list[tuple[float, float]]:
        """Write the file; returns start and end of each turn in seconds."""
        talk = self.conversation
        espeak = Espeak(seed=1 + (self.seed + talk.number) % (2**31 - 1))
        rng = np.random.default_rng([self.seed, zlib.crc32(talk.split.encode()), talk.number, 1])
        placed, now = [], 0.5
        for turn in talk.turns:
            signal = self._dry(turn, espeak, rng)
            if turn.kind == OVERLAP:
                now -= rng.uniform(*_OVERLAP_SECONDS)
            else:
                now += rng.uniform(*_PAUSE_SECONDS)
            start = round(now * SAMPLE_RATE_HZ)
            placed.append((start, signal))
            now = (start + signal.size) / SAMPLE_RATE_HZ
        recording = self._record(placed, rng)
        acoustics.write(recording, self.path)
        return [
            (start / SAMPLE_RATE_HZ, (start + signal.size) / SAMPLE_RATE_HZ)
            for start, signal in placed
        ]

    def _dry(self, turn: Turn, espeak: Espeak, rng: np.random.Generator) -> np.ndarray:
        """The dry signal of a turn, at the level of its speaker."""
        if turn.speaker is None:
            signal, level_db = _sound(turn.kind, rng), -35.0
        else:
            speaker = self.conversation.speakers[turn.speaker]
            espeak.set_voice(accents.language(speaker.accent), speaker.voice)
            if turn.kind == UNINTELLIGIBLE:
                text = str(rng.choice(self.conversation.sentences))
                signal = say(text, speaker, espeak, rng)[::-1]  # played backwards
            else:
                signal = say(turn.text, speaker, espeak, rng)
            if turn.kind in (LAUGHTER, SONANT):
                signal = np.concatenate([_breath(turn.kind, signal, rng), signal])
            level_db = speaker.level_db + rng.uniform(-2, 2)
        return signal * np.float32(10 ** (level_db / 20) / np.sqrt(np.mean(np.square(signal))))

    def _record(self, placed: list[tuple[int, np.ndarray]], rng: np.random.Generator) -> np.ndarray:
        """(T,) int16: all turns in the same room, with the same noise."""
        conditions, end = (
            self.conversation.conditions,
            max(start + signal.size for start, signal in placed),
        )
        mixed = np.zeros(end + SAMPLE_RATE_HZ // 2, np.float32)
        for start, signal in placed:
            mixed[start : start + signal.size] += signal
        speech_rms = np.sqrt(np.mean(np.square(np.concatenate([signal for _, signal in placed]))))
        if rng.random() < conditions.reverberation_share:
            ratio = rng.uniform(*conditions.direct_to_reverberant_db)
            mixed = acoustics.reverberate(
                mixed, acoustics.room(rng.uniform(*conditions.rt60_seconds), ratio, rng)
            )
        mixed = mixed + acoustics.background(mixed, conditions, speech_rms, rng)
        gain = min(1.0, 0.95 / np.abs(mixed).max())
        return np.round(mixed * np.float32(gain * 32767)).astype(np.int16)


def _breath(kind: str, speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Four bursts with the spectrum of `speech` for laughter, one for a cough; then a pause."""
    bursts = 4 if kind == LAUGHTER else 1
    size = round(rng.uniform(0.1, 0.18) * SAMPLE_RATE_HZ)
    shape = np.sin(np.pi * np.arange(size) / size).astype(np.float32)
    level = np.sqrt(np.mean(np.square(speech)))
    pieces = [acoustics.noise("speech", speech, rng)[:size] * shape * level for _ in range(bursts)]
    return np.concatenate([*pieces, np.zeros(SAMPLE_RATE_HZ // 10, np.float32)])


def _sound(kind: str, rng: np.random.Generator) -> np.ndarray:
    """0.5 to 1 seconds of noise, or of three decaying tones for music."""
    time = np.arange(round(rng.uniform(0.5, 1.0) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    if kind == NOISE:
        return acoustics.noise("pink", np.zeros(time.size, np.float32), rng)
    root = rng.uniform(200, 400)
    chord = sum(np.sin(2 * np.pi * root * ratio * time) for ratio in (1, 1.25, 1.5))
    return (chord * np.exp(-3 * time)).astype(np.float32)
