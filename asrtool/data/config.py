"""The `data:` part of a training config. Sets are named (folders beside the training set), never
given as paths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from asrtool.data.fbank import FbankConfig


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Utterances of similar length, planned by padded seconds; sentences (data.input: text) by
    padded tokens.
    """

    # of the global batch: all ranks and micro-batches of one optimizer step together
    seconds: float | None = None
    max_seconds_per_device: float | None = (
        None  # of one micro-batch on one device; None: the rank's whole share at once
    )
    tokens: float | None = None  # the same two for text
    max_tokens_per_device: float | None = None
    max_utterances: int = 1024  # of the global batch

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.tokens is None):
            raise ValueError("give either seconds (of audio) or tokens (of text), and not both")
        unit, other = ("seconds", "tokens") if self.tokens is None else ("tokens", "seconds")
        if getattr(self, f"max_{other}_per_device") is not None:
            raise ValueError(
                f"max_{other}_per_device does not go with {unit}; use max_{unit}_per_device"
            )
        if self.size <= 0 or self.max_utterances < 1 or (self.per_device or 1.0) <= 0:
            raise ValueError(f"{unit}, max_{unit}_per_device and max_utterances must be above 0")

    @property
    def size(self) -> float:
        """Of the global batch, in its unit."""
        return self.seconds if self.tokens is None else self.tokens

    @property
    def per_device(self) -> float | None:
        return self.max_seconds_per_device if self.tokens is None else self.max_tokens_per_device


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Training data in a few large tar archives, each read from end to end: for disks that are slow
    at small files.
    """

    size_mb: float = 2000.0  # of one archive, as stage 1 writes it
    # of consecutive members, of which batches are made; that much again is read ahead
    buffer_mb: float = 1000.0
    seed: int = 0  # of the order in which utterances were dealt to the archives

    def __post_init__(self) -> None:
        if self.size_mb <= 0 or self.buffer_mb <= 0:
            raise ValueError("size_mb and buffer_mb must be above 0")


@dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    """SpecAugment (arXiv 1904.08779): bands of mel bins and stretches of frames become the mean, 0
    after CMVN.
    """

    num_frequency_masks: int = 2
    frequency_width: int = 10  # mel bins, at most
    num_time_masks: int = 2
    time_width: int = 50  # frames, at most
    time_share: float = 0.25  # of the utterance that the time masks may hide together
    warp: int = 0  # frames, at most; 0 = no time warping


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Add recordings of a noise set at a random signal-to-noise ratio."""

    set: str  # name of a data directory beside the training set
    share: float = 0.5  # of the utterances
    snr_db: tuple[float, float] = (5.0, 25.0)


@dataclass(frozen=True, kw_only=True)
class RoomConfig:
    """Convolve with a room impulse response of a set; the direct sound stays where it was."""

    set: str
    share: float = 0.3


@dataclass(frozen=True, kw_only=True)
class BabbleConfig:
    """Add several people who talk at once, utterances of a set, at a random signal-to-noise ratio
    (as Kaldi does).
    """

    set: str  # name of a data directory beside the training set; that set itself will do
    share: float = 0.3  # of the utterances
    speakers: tuple[int, int] = (3, 7)
    snr_db: tuple[float, float] = (13.0, 20.0)

    def __post_init__(self) -> None:
        if not 1 <= self.speakers[0] <= self.speakers[1]:
            raise ValueError(
                f"speakers: the fewest and the most, from 1 on; got {list(self.speakers)}"
            )


@dataclass(frozen=True, kw_only=True)
class NonSpeechConfig:
    """Stretches of noise and music with an empty text among the training utterances (arXiv
    2406.17272).
    """

    # name of a data directory beside the training set, such as musan; its texts are not read
    set: str
    share: float = 0.15  # of the utterances of an epoch
    seconds: tuple[float, float] = (1.0, 15.0)  # of a stretch; a shorter recording is taken whole

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share lies between 0 and 1, got {self.share}")
        if not 0 < self.seconds[0] <= self.seconds[1]:
            raise ValueError(
                f"seconds: the shortest and the longest stretch, above 0; got {list(self.seconds)}"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    # stored: one copy each; online: drawn per utterance and epoch
    speeds: tuple[float, ...] = (1.0,)
    gain_db: tuple[float, float] = (0.0, 0.0)  # random gain, drawn per utterance and epoch
    spec_augment: SpecAugmentConfig | None = None
    noise: NoiseConfig | None = None
    room: RoomConfig | None = None
    babble: BabbleConfig | None = None
    non_speech: NonSpeechConfig | None = None

    @property
    def sets(self) -> tuple[str, ...]:
        """The data directories beside the training set that are needed."""
        parts = (self.noise, self.room, self.babble, self.non_speech)
        return tuple(dict.fromkeys(part.set for part in parts if part is not None))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    batch: BatchConfig
    input: Literal["fbank", "waveform", "text"] = "fbank"  # text: for a language model
    # online: computed from the audio in every epoch
    features: Literal["stored", "online"] = "stored"
    fbank: FbankConfig = field(default_factory=FbankConfig)
    min_seconds: float = 0.1  # training utterances outside are left out, counted and named
    max_seconds: float = 30.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # the training set in tar archives; null: as single files, or Kaldi's archives
    shards: ShardConfig | None = None
    workers: int = 2  # loader processes per rank; 0: in the training process

    def __post_init__(self) -> None:
        augment = self.augment
        if not augment.speeds or min(augment.speeds) <= 0:
            raise ValueError("augment.speeds needs at least one factor above 0")
        if self.features == "stored" and self.input == "fbank":
            parts = ("noise", "room", "babble", "non_speech")
            needs = [name for name in parts if getattr(augment, name) is not None]
            if needs:
                raise ValueError(
                    f"augment.{' and '.join(needs)} need the waveform: set data.features: online"
                )
        if self.shards is not None and augment.non_speech is not None:
            raise ValueError(
                "augment.non_speech adds utterances that no archive holds: leave data.shards out"
            )
        if self.input != "fbank" and augment.spec_augment is not None:
            raise ValueError(
                f"augment.spec_augment masks fbank features; data.input is {self.input}"
            )
        if (self.input == "text") != (self.batch.tokens is not None):
            raise ValueError("batch.tokens goes with data.input: text, batch.seconds with audio")
