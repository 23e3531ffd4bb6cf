"""Utterances -> model inputs and token ids, and a `Batch` of several, in loader processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asrtool.data import audio, augment, features
from asrtool.data.config import DataConfig, SpecAugmentConfig
from asrtool.data.fbank import Fbank
from asrtool.data.shapes import DIGITS, SECONDS, TARGET_DIGITS, recurring
from asrtool.data.tokenizers import Tokenizer
from asrtool.errors import UserError
from asrtool.types import Batch, Padded, Utterance

Content = bytes | str  # the content of an utterance's file, or the reason why it cannot be read


class Example(NamedTuple):
    """One utterance as model input: features (T, F), samples (T,) or a front end's frames (S, D) in
    float16, and targets (U,) int64.
    """

    utterance: Utterance
    inputs: Tensor
    targets: Tensor


class Views(NamedTuple):
    """How many differently masked views of each utterance a training batch has, and how many times
    as much of each SpecAugment masks in time.
    """

    count: int = 1
    time_masks: float = 1.0


ONE_VIEW = Views()


class Reader:
    """Reads utterances: stored features or frames, or audio that is augmented in training.

    Features are normalised with `cmvn` if given, then masked in training (SpecAugment); waveforms
    and frames of a front end stay as they are. `sets` holds the utterances of the noise and room
    sets by name. Outside of training, missing stored features are computed, and in place of missing
    stored frames the model gets samples.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: DataConfig,
        cmvn: features.Cmvn | None,
        labels: Mapping[str, Sequence[str]],
        *,
        training: bool,
        seed: int,
        sets: Mapping[str, Sequence[Utterance]],
        views: Views = ONE_VIEW,
    ) -> None:
        self.views = views
        self._spec_augment = more_time_masks(config.augment.spec_augment, views.time_masks)
        self.tokenizer = tokenizer
        self.config = config
        self.cmvn = cmvn if config.input == "fbank" else None
        self.labels = {
            name: {value: i for i, value in enumerate(values)} for name, values in labels.items()
        }
        self.training = training
        self.seed = seed
        self.from_audio = config.features == "online" or (
            config.input == "waveform" and config.features != "stored_frames"
        )
        self._unit = round(SECONDS * config.fbank.rate) if config.input == "waveform" else 1
        self._fbank = Fbank(config.fbank)
        self._augment = None
        if training and self.from_audio:
            self._augment = augment.WaveformAugment(config.augment, sets, config.fbank.rate, seed)

    def example(
        self, utterance: Utterance, epoch: int = 0, content: Content | None = None
    ) -> Example:
        """Read an utterance; `UserError` if it is unreadable, empty, or has NaN or infinite values.

        content: its file, if it has been read already. Gives the first view.
        """
        return self.examples(utterance, epoch, content)[0]

    def examples(
        self, utterance: Utterance, epoch: int = 0, content: Content | None = None
    ) -> list[Example]:
        """All views of an utterance: as `example`, but masked differently."""
        try:
            inputs = self._inputs(utterance, epoch, content)
        except (audio.AudioError, OSError, EOFError, ValueError, RuntimeError) as error:
            raise UserError(f"{utterance.id}: {error}") from error
        if not len(inputs):
            raise UserError(
                f"{utterance.id}: {utterance.duration:g} seconds of audio are too short for one "
                "frame"
            )
        # one sum instead of a mask: any NaN or infinity makes it non-finite
        if not np.isfinite(inputs.sum(dtype=np.float64)):
            raise UserError(
                f"{utterance.id}: NaN or infinite values in {utterance.features or utterance.audio}"
            )
        targets = torch.tensor(self.tokenizer.encode(utterance.text), dtype=torch.int64)
        return [
            Example(
                utterance, torch.from_numpy(self._masked(inputs, utterance, epoch, view)), targets
            )
            for view in range(self.views.count)
        ]

    def batch(
        self,
        utterances: Sequence[Utterance],
        epoch: int = 0,
        contents: Sequence[Content] | None = None,
    ) -> tuple[Batch | None, dict[str, str]]:
        """The batch of the readable utterances (None: none), and id -> reason of the others."""
        examples, problems = [], {}
        for utterance, content in zip(
            utterances, contents or [None] * len(utterances), strict=True
        ):
            try:
                examples += self.examples(utterance, epoch, content)
            except UserError as error:
                problems[utterance.id] = str(error)
        # sizes of sample inputs recur in hundredths of a second, those of frames one by one
        unit = self._unit if examples and examples[0].inputs.ndim == 1 else 1
        if not examples:
            return None, problems
        return replace(collate(examples, self.labels, unit), views=self.views.count), problems

    def _inputs(self, utterance: Utterance, epoch: int, content: Content | None) -> np.ndarray:
        if isinstance(content, str):
            raise UserError(content)
        if self.from_audio or (utterance.features is None and not self.training):
            inputs = self._samples(utterance, epoch, content)
            if self.config.input == "waveform":
                return inputs
            inputs = self._features(inputs, epoch, utterance.id)
        elif utterance.features is None:
            other = "stored" if self.config.input == "waveform" else "online"
            raise UserError(
                f"it has no stored features (run stage 1, or set data.features: {other})"
            )
        else:
            reference = utterance.features
            stored = (
                features.read_stored(reference)
                if content is None
                else features.decode(content, reference)
            )
            if self.config.features == "stored_frames":
                return stored  # float16: half the memory and transfer; the model converts it
            inputs = self._louder(stored.astype(np.float32, copy=False), epoch, utterance.id)
        return inputs if self.cmvn is None else self.cmvn.apply(inputs)

    def _masked(
        self, inputs: np.ndarray, utterance: Utterance, epoch: int, view: int
    ) -> np.ndarray:
        """A view of features (T, F); samples and frames of a front end are masked in the model."""
        if self.config.input != "fbank":
            return inputs
        kind = f" {view}" if view else ""  # the first view is that of a training without others
        if self.training and self._spec_augment is not None:
            rng = augment.generator(self.seed, epoch, utterance.id, f"mask{kind}")
            # views are compared frame by frame, so they share the warp
            warping = augment.generator(self.seed, epoch, utterance.id, "warp")
            inputs = augment.spec_augment(inputs, self._spec_augment, rng, warping)
        if self.training and self.config.augment.spec_sub is not None:
            rng = augment.generator(self.seed, epoch, utterance.id, f"substitute{kind}")
            inputs = augment.spec_sub(inputs, self.config.augment.spec_sub, rng)
        return np.require(inputs, np.float32, ["C", "W"])

    def _samples(self, utterance: Utterance, epoch: int, content: bytes | None) -> np.ndarray:
        rate = self.config.fbank.rate
        if content is None:
            samples = audio.read(utterance.audio, *utterance.stretch, rate)
        else:
            samples = audio.resample(*audio.decode(content, utterance.audio), rate)
        return samples if self._augment is None else self._augment(samples, epoch, utterance.id)

    def _louder(self, stored: np.ndarray, epoch: int, utterance_id: str) -> np.ndarray:
        """Apply a random gain to stored features: g dB multiply mel energies by 10 ** (g / 10)."""
        limits = self.config.augment.gain_db
        if not self.training or limits == (0.0, 0.0):
            return stored
        gain_db = augment.generator(self.seed, epoch, utterance_id, "gain").uniform(*limits)
        return stored + np.float32(gain_db * np.log(10) / 10)

    def _features(self, samples: np.ndarray, epoch: int, utterance_id: str) -> np.ndarray:
        samples = torch.from_numpy(samples)
        if not self.config.fbank.dither:
            return self._fbank(samples).numpy()
        # dither draws from torch's global generator: seed it per utterance, then restore it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                int(augment.generator(self.seed, epoch, utterance_id, "dither").integers(1 << 62))
            )
            return self._fbank(samples).numpy()


def more_time_masks(config: SpecAugmentConfig | None, times: float) -> SpecAugmentConfig | None:
    """SpecAugment with `times` as many time masks, over `times` as large a share of the frames."""
    if config is None or times == 1:
        return config
    number, share = round(config.num_time_masks * times), min(config.time_share * times, 1.0)
    return replace(config, num_time_masks=number, time_share=share)


def collate(
    examples: Sequence[Example], labels: Mapping[str, Mapping[str, int]], unit: int = 1
) -> Batch:
    """Pad examples to sizes that recur (asrtool/data/shapes.py).

    labels: name -> value -> class index; a missing or new value gets -1. unit: granularity of input
    sizes, in frames or samples.
    """
    utterances = [example.utterance for example in examples]
    longest = max(len(example.inputs) for example in examples)
    return Batch(
        ids=tuple(utterance.id for utterance in utterances),
        inputs=Padded.stack(
            [example.inputs for example in examples], size=unit * recurring(-(-longest // unit))
        ),
        targets=stack_tokens([example.targets for example in examples], TARGET_DIGITS),
        labels={
            name: torch.tensor(
                [classes.get(utterance.labels.get(name, ""), -1) for utterance in utterances]
            )
            for name, classes in labels.items()
        },
        texts=tuple(utterance.text for utterance in utterances),
    )


def stack_tokens(rows: Sequence[Tensor], digits: int = DIGITS) -> Padded:
    """Token ids (U_i,) to (B, U), where U + 1, the size with a start or end token, recurs."""
    return Padded.stack(rows, size=recurring(max(map(len, rows)) + 1, digits) - 1)
