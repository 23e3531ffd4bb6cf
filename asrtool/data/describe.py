"""Statistics of a data directory: hours, speakers, lengths, characters, and overlap with others."""

from __future__ import annotations

import hashlib
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np

from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.data.tokenizers import Tokenizer, single_spaced
from asrtool.system import atomic
from asrtool.types import Utterance

EDGES = (
    0,
    0.5,
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    15,
    20,
    30,
    60,
    math.inf,
)  # bin width of the histogram in seconds
EXAMPLES = 10
PART = 4000  # utterances whose audio is measured or hashed at once
PERCENTILES = (0, 1, 25, 50, 75, 99, 100)


@dataclass
class Statistics:
    """Statistics of one set; `texts` and `sounds` hash transcripts and recordings for overlaps."""

    name: str
    seconds: array = field(default_factory=lambda: array("d"))
    # characters per second, of utterances with a transcript
    rates: array = field(default_factory=lambda: array("d"))
    per_speaker: Counter[str] = field(default_factory=Counter)  # seconds
    characters: Counter[str] = field(default_factory=Counter)  # without spaces
    words: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    empty: int = 0
    unmeasured: list[str] = field(default_factory=list)  # ids whose length is not known
    unread: list[str] = field(default_factory=list)  # ids whose audio could not be hashed
    texts: Counter[int] = field(default_factory=Counter)
    sounds: Counter[int | bytes] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.seconds) + len(self.unmeasured)


def describe(folder: Path, base: Path | None = None, content: bool = False) -> Statistics:
    """Read a data directory; audio is opened if no file gives its duration.

    With `content` all audio is read, and recordings are the same if their bytes are; otherwise if
    their paths (and segments) are.
    """
    statistics = Statistics(str(folder))
    rows = iter(datadir.read(folder, measure=False))
    with ThreadPoolExecutor(8) as pool:
        do = pool.map if content else map  # only reading benefits from a thread
        while part := list(islice(rows, PART)):
            lengths = measured(part, base)
            sounds = do(lambda row: sound(row, base, content), part)
            for row, seconds, key in zip(part, lengths, sounds, strict=True):
                add(statistics, row, seconds, key)
    return statistics


def add(statistics: Statistics, row: Utterance, seconds: float, key: int | bytes | None) -> None:
    text = single_spaced(row.text)
    if math.isnan(seconds):
        statistics.unmeasured.append(row.id)
    else:
        statistics.seconds.append(seconds)
    statistics.per_speaker[row.speaker] += 0 if math.isnan(seconds) else seconds
    if key is None:
        statistics.unread.append(row.id)
    else:
        statistics.sounds[key] += 1
    for name, value in row.labels.items():
        statistics.labels.setdefault(name, Counter())[value] += 1
    if not text:
        statistics.empty += 1
        return
    words = text.split(" ")
    letters = "".join(words)
    statistics.words.update(words)
    statistics.characters.update(letters)
    statistics.texts[hash(text)] += 1
    if seconds > 0:
        statistics.rates.append(len(letters) / seconds)


def measured(rows: Sequence[Utterance], base: Path | None) -> list[float]:
    """Seconds of each utterance, measured if no file gives them; NaN if that fails."""
    unknown = [index for index, row in enumerate(rows) if math.isnan(row.duration)]
    durations = [row.duration for row in rows]
    moved = [replace(rows[index], audio=located(rows[index].audio, base)) for index in unknown]
    for index, seconds in zip(unknown, datadir.lengths(moved), strict=True):
        durations[index] = math.nan if isinstance(seconds, audio.AudioError) else seconds
    return durations


def sound(row: Utterance, base: Path | None, content: bool) -> int | bytes | None:
    """A key that identifies the audio of an utterance; None if it cannot be read."""
    path = located(row.audio, base)
    start, seconds = row.stretch
    span = (
        None
        if row.recording is None
        else (round(start, 3), None if seconds is None else round(seconds, 3))
    )
    if not content:
        return hash((path if audio.is_pipe(path) else os.path.abspath(path), span))
    try:
        if span is None and not audio.is_pipe(path):
            data = audio.contents(path)
        else:
            data = audio.load(path, start, seconds)[0].tobytes()
    except audio.AudioError:
        return None
    return hashlib.blake2b(data, digest_size=16).digest()


def located(path: str, base: Path | None) -> str:
    return path if base is None or audio.is_pipe(path) else str(base / path)


# -- reports ---------------------------------------------------------------


def summary(statistics: Statistics) -> dict:
    """The statistics as JSON values; lengths in seconds."""
    seconds, rates = np.array(statistics.seconds), np.array(statistics.rates)
    counts = np.histogram(seconds, bins=EDGES)[0].tolist()
    spans = zip(EDGES, EDGES[1:], counts, strict=False)
    return {
        "name": statistics.name,
        "utterances": len(statistics),
        "hours": round(float(seconds.sum()) / 3600, 4),
        "speakers": len(statistics.per_speaker),
        "seconds": percentiles(seconds),
        "histogram": [
            [first, None if math.isinf(last) else last, count] for first, last, count in spans
        ],
        "minutes_per_speaker": percentiles(np.array(list(statistics.per_speaker.values())) / 60),
        "characters_per_second": percentiles(rates),
        "characters": statistics.characters.total(),
        "different_characters": len(statistics.characters),
        "words": statistics.words.total(),
        "different_words": len(statistics.words),
        "rare_characters": sum(count < 5 for count in statistics.characters.values()),
        "empty_transcripts": statistics.empty,
        "repeated_transcripts": statistics.texts.total() - len(statistics.texts),
        "repeated_audio": statistics.sounds.total() - len(statistics.sounds),
        "unmeasured": statistics.unmeasured,
        "unread": statistics.unread,
        "labels": {
            name: {**dict(sorted(counts.items())), "(none)": len(statistics) - counts.total()}
            for name, counts in sorted(statistics.labels.items())
        },
    }


def percentiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    limits = np.percentile(values, PERCENTILES)
    return {
        f"{share}%": round(float(value), 3)
        for share, value in zip(PERCENTILES, limits, strict=True)
    }


def unknown(statistics: Statistics, reference: Statistics | Tokenizer) -> dict:
    """Characters (and words, for a set) that the reference lacks: kinds, counts and examples."""
    if isinstance(reference, Tokenizer):
        return {
            "characters": lacking(statistics.characters, lambda text: bool(reference.unknown(text)))
        }
    return {
        "characters": lacking(statistics.characters, lambda text: text not in reference.characters),
        "words": lacking(statistics.words, lambda text: text not in reference.words),
    }


def lacking(counts: Counter[str], is_unknown: Callable[[str], bool]) -> dict:
    out = Counter({text: count for text, count in counts.items() if is_unknown(text)})
    ranked = sorted(out.items(), key=lambda item: (-item[1], item[0]))
    return {
        "kinds": len(out),
        "occurrences": out.total(),
        "share": round(out.total() / max(counts.total(), 1), 6),
        "examples": dict(ranked[:EXAMPLES]),
    }


def overlaps(sets: Sequence[Statistics]) -> Iterator[dict]:
    """For each pair: common speakers, and utterances of the second with a text or audio of both."""
    for first, second in combinations(sets, 2):
        speakers = sorted(first.per_speaker.keys() & second.per_speaker.keys())
        yield {
            "first": first.name,
            "second": second.name,
            "speakers": {"common": len(speakers), "examples": speakers[:EXAMPLES]},
            "texts": shared(first.texts, second.texts),
            "audio": shared(first.sounds, second.sounds),
        }


def shared(first: Counter, second: Counter) -> dict:
    common = sum(count for key, count in second.items() if key in first)
    return {"utterances": common, "share": round(common / max(second.total(), 1), 6)}


def plot(sets: Iterable[Statistics], path: Path) -> None:
    """Plot lengths, speaking rates, minutes per speaker and character counts to one PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (lengths, rates), (speakers, characters) = figure.subplots(2, 2)
    for statistics in sets:
        for axes, values, limit in (
            (lengths, statistics.seconds, 30),
            (rates, statistics.rates, 30),
        ):
            inside = np.minimum(np.array(values), limit)
            if len(inside):
                share = np.full(len(inside), 100 / len(inside))
                axes.hist(
                    inside,
                    bins=60,
                    range=(0, limit),
                    weights=share,
                    histtype="step",
                    label=statistics.name,
                )
        minutes = np.sort(np.array(list(statistics.per_speaker.values())) / 60)[::-1]
        speakers.plot(np.linspace(0, 100, len(minutes)), minutes, label=statistics.name)
        counts = np.array([count for _, count in statistics.characters.most_common()])
        if len(counts):
            characters.loglog(np.arange(1, len(counts) + 1), counts, label=statistics.name)
    lengths.set(title="length", xlabel="seconds (30: and more)", ylabel="% of utterances")
    rates.set(
        title="speaking rate",
        xlabel="characters per second (30: and more)",
        ylabel="% of utterances",
    )
    speakers.set(
        title="speakers", xlabel="% of speakers, most minutes first", ylabel="minutes of a speaker"
    )
    characters.set(title="characters", xlabel="rank", ylabel="occurrences")
    lengths.legend()
    with atomic.replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=100, metadata={"Software": None})
