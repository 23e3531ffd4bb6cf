"""Streaming against the whole: the same utterances, the same chunk mask, piece by piece and at
once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.log import logger
from asrtool.recognition import classify
from asrtool.recognizer import Recognizer
from asrtool.streaming import FeatureStream, Session
from asrtool.types import Hypothesis, Padded, Utterance

# of a frame's largest number where that is above 1: what float32 rounds away grows with it
TOLERANCE = 1e-5


@dataclass
class Difference:
    """What was found so far."""

    utterances: int = 0
    tokens: int = 0
    frames: int = 0
    largest: float = 0.0  # of the encoder's frames and taps, by their size (`difference`)
    features: float = 0.0
    texts: list[str] = field(default_factory=list)  # utterances with other tokens
    labels: list[str] = field(default_factory=list)  # utterances with another accent


def check(
    recognizer: Recognizer, data: Path, batch: int = 8, seed: int = 0, tolerance: float = TOLERANCE
) -> bool:
    """Says what differs; whether it is nothing."""
    differences, draw = Difference(), random.Random(seed)
    rows = datadir.read(data)
    for start in range(0, len(rows), batch):
        compare(recognizer, rows[start : start + batch], draw, differences)
    logger.info(
        "%s: %d utterances, %d frames, %d tokens in chunks of %g ms: the largest difference is "
        "%.1e in features, %.1e in "
        "the encoder's frames; %d utterances have different tokens, %d a different label%s",
        *(
            data,
            differences.utterances,
            differences.frames,
            differences.tokens,
            recognizer.settings.chunk_ms,
            differences.features,
            differences.largest,
        ),
        *(len(differences.texts), len(differences.labels)),
        "".join(f", {name}" for name in [*differences.texts, *differences.labels][:5]),
    )
    good = not differences.texts and not differences.labels and differences.largest <= tolerance
    logger.info(
        "streaming %s",
        "changes nothing" if good else f"differs (more than {tolerance:g}, or other results)",
    )
    return good


@torch.inference_mode()
def compare(
    recognizer: Recognizer, rows: Sequence[Utterance], draw: random.Random, differences: Difference
) -> None:
    """One batch, each utterance fed in pieces of its own sizes, from no sample to three seconds."""
    sounds = [samples_of(recognizer, row) for row in rows]
    whole = Padded.stack([recognizer.inputs(sound) for sound in sounds])
    encoded = recognizer.encode(whole)
    expected, labels = recognizer.search_encoded(encoded), classify(recognizer.classifiers, encoded)
    session, parts = Session(recognizer, len(rows)), [FeatureStream(recognizer) for _ in rows]
    at, fed = [0] * len(rows), [[] for _ in rows]
    while True:
        sizes = [draw.choice((0, draw.randrange(3 * recognizer.rate))) for _ in rows]
        before, at = at, [a + size for a, size in zip(at, sizes, strict=True)]
        ended = torch.tensor([a >= len(sound) for a, sound in zip(at, sounds, strict=True)])
        pieces = [
            part(sound[a:b], final=bool(end))
            for part, sound, a, b, end in zip(parts, sounds, before, at, ended, strict=True)
        ]
        session.accept(Padded.stack(pieces), ended)
        for row, piece in zip(fed, pieces, strict=True):
            row.append(piece)
        if ended.all():
            break
    streamed = session.encoded()
    nbests, classes = session.finish()
    for row, utterance in enumerate(rows):
        features = torch.cat(fed[row])
        differences.features = max(
            differences.features, difference(features, whole.data[row, : len(features)])
        )
        for name, part in {"": encoded.frames, **encoded.taps}.items():
            other = streamed.taps[name] if name else streamed.frames
            differences.largest = max(
                differences.largest, difference(part.unpad()[row], other.unpad()[row])
            )
        if tokens(nbests[row]) != tokens(expected[row]):
            differences.texts.append(utterance.id)
        if [max(x, key=x.get) for x in labels[row].values()] != [
            max(x, key=x.get) for x in classes[row].values()
        ]:
            differences.labels.append(utterance.id)
        differences.tokens += len(expected[row][0].tokens)
    differences.utterances += len(rows)
    differences.frames += int(encoded.frames.lengths.sum())


def samples_of(recognizer: Recognizer, row: Utterance) -> np.ndarray:
    return audio.read(row.audio, *row.stretch, recognizer.rate)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest in any frame (T, D), as a share of the frame's largest number where that is above
    1.
    """
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    return float(((one - other).abs().amax(-1) / other.abs().amax(-1).clamp(min=1)).max())


def tokens(nbest: Sequence[Hypothesis]) -> tuple[int, ...]:
    return nbest[0].tokens
