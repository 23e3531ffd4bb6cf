"""Labels of utterances, such as the accent, that a model recognises beside the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asrtool.data import tokenizers
from asrtool.experiment import TrainConfig
from asrtool.losses import AccentLossConfig
from asrtool.losses.accent import mean_posteriors
from asrtool.types import EncoderOutput

Classes = Mapping[str, Mapping[str, float]]  # label -> value -> probability


@dataclass(frozen=True)
class Classifier:
    """One label: the tap of the encoder that tells it, and its values in the order of the model's
    classes.
    """

    label: str
    tap: str
    values: tuple[str, ...]

    def __call__(self, encoded: EncoderOutput) -> list[dict[str, float]]:
        """Value -> mean probability over the frames, for each utterance."""
        rows = mean_posteriors(encoded.taps[self.tap]).tolist()
        return [dict(zip(self.values, row, strict=False)) for row in rows]


def classifiers(config: TrainConfig, vocab: Path) -> tuple[Classifier, ...]:
    """Those that a phase trains, with the values that the vocabulary folder numbers."""
    values = tokenizers.load_labels(vocab)
    losses = [
        loss
        for loss in config.losses.values()
        if isinstance(loss, AccentLossConfig) and loss.weight
    ]
    return tuple(
        Classifier(x.label, x.input, tuple(values[x.label])) for x in losses if x.label in values
    )


def classify(several: Sequence[Classifier], encoded: EncoderOutput) -> list[Classes]:
    """What each utterance is."""
    by_label = [(one.label, one(encoded)) for one in several]
    return [
        {label: rows[place] for label, rows in by_label}
        for place in range(len(encoded.frames.lengths))
    ]


def mean(parts: Sequence[tuple[float, Classes]]) -> Classes:
    """Of pieces of one audio: (weight, what the piece is)."""
    total = sum(weight for weight, _ in parts) or 1.0
    return {
        label: {
            value: sum(weight * classes[label][value] for weight, classes in parts) / total
            for value in values
        }
        for label, values in (parts[0][1] if parts else {}).items()
    }
