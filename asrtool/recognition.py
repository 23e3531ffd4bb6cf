"""The recognition result of one audio, joined from its windows, with labels such as the accent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from asrtool.align import Timed, Word, text_of, words_of
from asrtool.align.formats import srt, vtt
from asrtool.data import tokenizers
from asrtool.errors import UserError
from asrtool.experiment import TrainConfig
from asrtool.longform import join
from asrtool.losses import AccentLossConfig
from asrtool.losses.accent import mean_posteriors
from asrtool.types import EncoderOutput, Hypothesis

Classes = Mapping[str, Mapping[str, float]]  # label -> value -> probability


@dataclass(frozen=True)
class Classifier:
    """A label that the model classifies: the encoder's tap with its logits, and its values in the
    order of the classes.
    """

    label: str
    tap: str
    values: tuple[str, ...]

    def __call__(self, encoded: EncoderOutput) -> list[dict[str, float]]:
        """Value -> mean probability over the frames, for each utterance."""
        rows = mean_posteriors(encoded.taps[self.tap]).tolist()
        return [dict(zip(self.values, row, strict=False)) for row in rows]


def classifiers(config: TrainConfig, vocab: Path) -> tuple[Classifier, ...]:
    """The classifiers that a phase trains, with the values of the vocabulary folder."""
    values = tokenizers.load_labels(vocab)
    losses = [
        loss
        for loss in config.losses.values()
        if isinstance(loss, AccentLossConfig) and loss.weight
    ]
    return tuple(
        Classifier(x.label, x.input, tuple(values[x.label])) for x in losses if x.label in values
    )


def classify(classifiers: Sequence[Classifier], encoded: EncoderOutput) -> list[Classes]:
    """The class probabilities of each utterance, for every classifier."""
    by_label = [(classifier.label, classifier(encoded)) for classifier in classifiers]
    return [
        {label: rows[row] for label, rows in by_label} for row in range(len(encoded.frames.lengths))
    ]


def mean_classes(parts: Sequence[tuple[float, Classes]]) -> Classes:
    """The weighted mean over pieces of one audio; parts: (weight, classes) of each piece."""
    total = sum(weight for weight, _ in parts) or 1.0
    return {
        label: {
            value: sum(weight * classes[label][value] for weight, classes in parts) / total
            for value in values
        }
        for label, values in (parts[0][1] if parts else {}).items()
    }


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The recognition result of one audio."""

    text: str
    # with times in seconds; None: the model has no CTC head, which provides times
    words: tuple[Word, ...] | None
    nbest: tuple[Hypothesis, ...]  # best first; only one if the audio was cut into windows
    seconds: float  # of audio
    # computing time in seconds for encoding, search and alignment: its share of the batch, by
    # length
    elapsed: float
    # start and end in seconds of each window in which it was recognised
    spans: tuple[tuple[float, float], ...]
    # labels that the model classifies, such as the accent
    classes: Classes = field(default_factory=dict)

    @property
    def is_cut(self) -> bool:
        """Whether the audio was cut into windows."""
        return self.spans != ((0.0, self.seconds),)

    @property
    def windows(self) -> int:
        """The number of windows that were recognised; 0: no speech was found."""
        return len(self.spans)

    @property
    def silent(self) -> float:
        """Seconds without speech, which were not recognised."""
        # Windows may overlap; count every second once.
        covered, end = 0.0, 0.0
        for first, last in self.spans:
            covered, end = covered + last - max(first, end), last
        return max(0.0, self.seconds - covered)

    def srt(self) -> str:
        """Subtitles in SubRip format. Raises `UserError` if there are no times."""
        return srt(self._timed())

    def vtt(self) -> str:
        """Subtitles in WebVTT format. Raises `UserError` if there are no times."""
        return vtt(self._timed())

    def _timed(self) -> tuple[Word, ...]:
        if self.words is None:
            raise UserError("subtitles need times, which come from a CTC head; this model has none")
        return self.words

    def json(self) -> dict:
        words = None
        if self.words is not None:
            parts = ("start", "end", "confidence")
            words = [
                {"text": w.text, **{name: round(getattr(w, name), 4) for name in parts}}
                for w in self.words
            ]
        factor = round(self.elapsed / max(self.seconds, 1e-9), 4)
        fields = {
            "text": self.text,
            "words": words,
            "seconds": round(self.seconds, 3),
            "rtf": factor,
        }
        return fields | ({"classes": self.classes} if self.classes else {})


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The result of one window, `start` seconds into the audio; its times count from there."""

    nbest: tuple[Hypothesis, ...]
    timed: Sequence[Timed] | None  # tokens of the best hypothesis, if they can be aligned
    seconds: float
    elapsed: float
    classes: Classes
    start: float = 0.0

    @property
    def end(self) -> float:
        return self.start + self.seconds


def put_together(
    pieces: Sequence[Piece], seconds: float, spell: Callable[[int], str], has_times: bool
) -> Recognition:
    """Join the windows of one audio, which are in order; no windows: it has no speech.

    seconds: of the audio; spell: token -> its text; has_times: whether the model provides times.
    """
    about = {
        "seconds": seconds,
        "elapsed": sum(piece.elapsed for piece in pieces),
        "spans": tuple((piece.start, piece.end) for piece in pieces),
        "classes": mean_classes([(piece.seconds, piece.classes) for piece in pieces]),
    }
    if [(piece.start, piece.end) for piece in pieces] == [(0.0, seconds)]:
        # The whole audio is one window: its n-best list and score need no joining.
        (only,) = pieces
        words = None if only.timed is None else tuple(words_of(only.timed))
        return Recognition(text=only.nbest[0].text, words=words, nbest=only.nbest, **about)
    best = [piece.nbest[0] for piece in pieces]
    if has_times:
        shifted = [[part.later(piece.start) for part in _spread(piece, spell)] for piece in pieces]
        timed = join(
            [
                (piece.start, piece.end, timed_tokens)
                for piece, timed_tokens in zip(pieces, shifted, strict=True)
            ]
        )
        words, tokens = tuple(words_of(timed)), tuple(part.token for part in timed)
        text, confidences = text_of(words), tuple(part.confidence for part in timed)
    else:
        words, confidences = None, None
        text = " ".join(hypothesis.text for hypothesis in best if hypothesis.text)
        tokens = tuple(token for hypothesis in best for token in hypothesis.tokens)
    # Scores add up over windows as log-probabilities; overlaps are counted twice.
    whole = Hypothesis(
        tokens=tokens,
        score=sum(hypothesis.score for hypothesis in best),
        parts={name: sum(h.parts[name] for h in best) for name in (best[0].parts if best else ())},
        confidences=confidences,
        text=text,
    )
    return Recognition(text=text, words=words, nbest=(whole,), **about)


def _spread(piece: Piece, spell: Callable[[int], str]) -> Sequence[Timed]:
    """The timed tokens of a window; evenly spaced with confidence 0 if CTC cannot align them."""
    if piece.timed is not None:
        return piece.timed
    tokens = piece.nbest[0].tokens
    bounds = np.linspace(0.0, piece.seconds, len(tokens) + 1).tolist()
    return [
        Timed(token=token, text=spell(token), start=start, end=end, confidence=0.0)
        for token, start, end in zip(tokens, bounds, bounds[1:], strict=False)
    ]
