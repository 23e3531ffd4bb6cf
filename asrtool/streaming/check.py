"""Compare streaming with whole utterances: the same audio and chunk mask, in pieces and at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.log import logger, plural
from asrtool.recognition import classify
from asrtool.recognizer import Recognizer
from asrtool.streaming import FeatureStream, Session
from asrtool.types import Hypothesis, Padded, Utterance

# relative to a frame's largest number if that is above 1, since rounding of float32 grows with it
TOLERANCE = 1e-5


@dataclass
class Difference:
    """The differences found so far."""

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
    """Log the differences on the data directory `data`; returns whether there are none."""
    differences, draw = Difference(), random.Random(seed)
    rows = datadir.read(data)
    for start in range(0, len(rows), batch):
        compare(recognizer, rows[start : start + batch], draw, differences)
    logger.info(
        "%s: %s, %s, %s in chunks of %g ms: the largest difference is %.1e in features, %.1e in "
        "the encoder's frames; %s with different tokens, %d with a different label%s",
        *(
            data,
            plural(differences.utterances, "utterance"),
            plural(differences.frames, "frame"),
            plural(differences.tokens, "token"),
            recognizer.settings.chunk_ms,
            differences.features,
            differences.largest,
        ),
        *(plural(len(differences.texts), "utterance"), len(differences.labels)),
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
    """Compare one batch, each utterance in random pieces from no sample to three seconds."""
    sounds = [samples_of(recognizer, row) for row in rows]
    whole = Padded.stack([recognizer.inputs(sound) for sound in sounds])
    encoded = recognizer.encode(whole)
    expected, labels = recognizer.search_encoded(encoded), classify(recognizer.classifiers, encoded)
    session, parts = Session(recognizer, len(rows)), [FeatureStream(recognizer) for _ in rows]
    at, fed = [0] * len(rows), [[] for _ in rows]
    while True:
        # Half of the pieces are empty: an utterance may pause while others of the batch go on.
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
        # Differences are measured separately for features, encoder frames and texts, to show in
        # which stage the first one arises.
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


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference in any frame (T, D), relative to the frame's largest number if that is
    above 1; inf for different shapes.
    """
    if first.shape != second.shape:
        return float("inf")
    if not first.numel():
        return 0.0
    return float(((first - second).abs().amax(-1) / second.abs().amax(-1).clamp(min=1)).max())


def tokens(nbest: Sequence[Hypothesis]) -> tuple[int, ...]:
    return nbest[0].tokens
