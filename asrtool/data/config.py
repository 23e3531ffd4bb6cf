"""The `data:` part of a training config.

Sets are names of folders beside the training set, never paths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from asrtool.data.fbank import FbankConfig
from asrtool.registry import OMIT, bounded


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Utterances of similar length, up to a limit of padded seconds (padded tokens for text)."""

    # of the global batch: all ranks and micro-batches of one optimizer step together
    seconds: float | None = bounded(None, least=0)
    # of one micro-batch on one device; null: the rank's whole share at once
    max_seconds_per_device: float | None = None
    tokens: float | None = None  # the same two limits for text
    max_tokens_per_device: float | None = None
    max_utterances: int = bounded(1024, least=1)  # of the global batch

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.tokens is None):
            raise ValueError("give either seconds (for audio) or tokens (for text), not both")
        unit, other = ("seconds", "tokens") if self.tokens is None else ("tokens", "seconds")
        if getattr(self, f"max_{other}_per_device") is not None:
            raise ValueError(
                f"max_{other}_per_device cannot be used with {unit}; use max_{unit}_per_device"
            )
        if self.size <= 0 or self.max_utterances < 1 or (self.per_device or 1.0) <= 0:
            raise ValueError(
                f"{unit}, max_{unit}_per_device and max_utterances must be greater than 0"
            )

    @property
    def size(self) -> float:
        """Limit of the global batch, in its unit."""
        return self.seconds if self.tokens is None else self.tokens

    @property
    def per_device(self) -> float | None:
        return self.max_seconds_per_device if self.tokens is None else self.max_tokens_per_device

    def divided(self, parts: int) -> BatchConfig:
        """Limits of a part of the batch; itself for one part."""
        if parts == 1:
            return self
        names = ("seconds", "max_seconds_per_device", "tokens", "max_tokens_per_device")
        given = {name: getattr(self, name) for name in names}
        return replace(
            self,
            **{name: value and value / parts for name, value in given.items()},
            max_utterances=max(1, self.max_utterances // parts),
        )


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Training data in a few large tar archives, for disks that are slow with many small files."""

    size_mb: float = 2000.0  # of one archive; used by stage 1
    # of consecutive members, from which batches are made; as much again is read ahead
    buffer_mb: float = 1000.0
    seed: int = 0  # of the shuffled order of utterances in the archives

    def __post_init__(self) -> None:
        if self.size_mb <= 0 or self.buffer_mb <= 0:
            raise ValueError("size_mb and buffer_mb must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    """SpecAugment (arXiv 1904.08779): mask bands of mel bins and stretches of frames with the mean.

    The mean is 0 after CMVN.
    """

    num_frequency_masks: int = bounded(2, least=0)
    frequency_width: int = bounded(10, least=0)  # maximum, in mel bins
    num_time_masks: int = bounded(2, least=0)
    time_width: int = bounded(50, least=0)  # maximum, in frames
    # maximum share of the utterance under all time masks together
    time_share: float = bounded(0.25, least=0, most=1)
    warp: int = bounded(0, least=0)  # maximum, in frames; 0: no time warping

    def __post_init__(self) -> None:
        if min(self.num_frequency_masks, self.num_time_masks, self.warp) < 0:
            raise ValueError("spec_augment: numbers of masks and warp are 0 or more")
        if min(self.frequency_width, self.time_width) < 0 or not 0 <= self.time_share <= 1:
            raise ValueError(
                "spec_augment: widths of masks are 0 or more, time_share is from 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class SpecSubConfig:
    """SpecSub (U2++, arXiv 2106.05642): replace frames by earlier frames of the utterance.

    A stretch that starts at frame t becomes a copy of the frames from a random one up to t on.
    Applied after SpecAugment.
    """

    num_substitutions: int = 3
    time_width: int = bounded(30, least=0)  # of a stretch, maximum, in frames

    def __post_init__(self) -> None:
        if self.num_substitutions < 0 or self.time_width < 1:
            raise ValueError(
                "spec_sub: num_substitutions is 0 or more and time_width at least 1 frame; got "
                f"{self.num_substitutions} and {self.time_width}"
            )


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Add recordings of a noise set at a random signal-to-noise ratio."""

    set: str  # name of a data directory beside the training set
    share: float = bounded(0.5, least=0, most=1)  # share of the utterances
    snr_db: tuple[float, float] = bounded((5.0, 25.0), ordered=True)


@dataclass(frozen=True, kw_only=True)
class RoomConfig:
    """Convolve with a room impulse response of a set; the direct sound keeps its position."""

    set: str
    share: float = bounded(0.3, least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class BabbleConfig:
    """Add babble: several utterances of a set at a random signal-to-noise ratio, as in Kaldi."""

    set: str  # name of a data directory beside the training set; may be the training set itself
    share: float = bounded(0.3, least=0, most=1)  # share of the utterances
    speakers: tuple[int, int] = bounded((3, 7), ordered=True)
    snr_db: tuple[float, float] = bounded((13.0, 20.0), ordered=True)

    def __post_init__(self) -> None:
        if not 1 <= self.speakers[0] <= self.speakers[1]:
            raise ValueError(
                f"speakers must be a range [fewest, most] of at least 1; got {list(self.speakers)}"
            )


@dataclass(frozen=True, kw_only=True)
class NonSpeechConfig:
    """Add stretches of noise and music with an empty text to training (arXiv 2406.17272)."""

    # name of a data directory beside the training set, such as musan; its transcripts are ignored
    set: str
    share: float = bounded(0.15, least=0, most=1)  # share of the utterances of an epoch
    # length of a stretch; shorter recordings are used whole
    seconds: tuple[float, float] = bounded((1.0, 15.0), ordered=True)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")
        if not 0 < self.seconds[0] <= self.seconds[1]:
            raise ValueError(
                f"seconds must be a range [shortest, longest] above 0; got {list(self.seconds)}"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    # stored features: one copy for each speed; online: drawn per utterance and epoch
    speeds: tuple[float, ...] = (1.0,)
    # random gain, drawn per utterance and epoch
    gain_db: tuple[float, float] = bounded((0.0, 0.0), ordered=True)
    spec_augment: SpecAugmentConfig | None = None
    spec_sub: SpecSubConfig | None = None
    noise: NoiseConfig | None = None
    room: RoomConfig | None = None
    babble: BabbleConfig | None = None
    non_speech: NonSpeechConfig | None = None

    @property
    def sets(self) -> tuple[str, ...]:
        """The data directories beside the training set that are used."""
        parts = (self.noise, self.room, self.babble, self.non_speech)
        return tuple(dict.fromkeys(part.set for part in parts if part is not None))


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """One of several training sets."""

    set: str  # name of a data directory beside the training set, or of the training set
    weight: float = 1.0  # how often its utterances are read, relative to those of the other sets


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    batch: BatchConfig
    input: Literal["fbank", "waveform", "text"] = "fbank"  # text: for a language model
    # online: computed from the audio in every epoch; waveforms are always read from their files.
    # stored_frames, with input: waveform: stage 1 stores the frames of the frozen
    # model.encoder.frontend, and training reads these
    features: Literal["stored", "online", "stored_frames"] = "stored"
    fbank: FbankConfig = field(default_factory=FbankConfig)
    # training utterances outside are left out with a warning
    min_seconds: float = bounded(0.1, least=0)
    max_seconds: float = bounded(30.0, least=0)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # several training sets, the training set among them; none: that alone
    sets: tuple[SetConfig, ...] = field(default=(), metadata=OMIT)
    # 1: sets are read as often as `weight` says; above, small ones more often: by their hours to
    # the power of 1 / temperature
    temperature: float = bounded(1.0, least=1, omit=True)
    # the training set in tar archives; null: single files, or Kaldi archives
    shards: ShardConfig | None = None
    # loader processes per rank; 0: in the training process; auto: as many as the device needs
    workers: int | Literal["auto"] = bounded("auto", least=0)

    def __post_init__(self) -> None:
        augment = self.augment
        if self.workers != "auto" and not (self.workers is not None and self.workers >= 0):
            raise ValueError(f"workers is {self.workers}: give 0 or more loader processes, or auto")
        if not 0 <= self.min_seconds < self.max_seconds:
            raise ValueError(
                f"min_seconds is {self.min_seconds:g} and max_seconds {self.max_seconds:g}: give a "
                "min_seconds of at least 0, and a larger max_seconds"
            )
        self._check_sets()
        if not augment.speeds or min(augment.speeds) <= 0:
            raise ValueError("augment.speeds must have at least one factor, all above 0")
        if self.features == "stored" and self.input == "fbank":
            parts = ("noise", "room", "babble", "non_speech")
            needs = [name for name in parts if getattr(augment, name) is not None]
            if needs:
                raise ValueError(
                    f"augment.{' and '.join(needs)} works on waveforms: set data.features: online"
                )
        if self.features == "stored_frames":
            self._check_stored_frames()
        if self.shards is not None and augment.non_speech is not None:
            raise ValueError(
                "augment.non_speech adds utterances that are in no shard: remove data.shards"
            )
        for name in ("spec_augment", "spec_sub"):
            if self.input != "fbank" and getattr(augment, name) is not None:
                raise ValueError(
                    f"augment.{name} changes fbank features, but data.input is {self.input}"
                )
        if (self.input == "text") != (self.batch.tokens is not None):
            raise ValueError("use batch.tokens with data.input: text, and batch.seconds with audio")

    def _check_sets(self) -> None:
        names = [part.set for part in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"sets: {', '.join(names)}: each set is named once")
        if any(not 0 < part.weight < math.inf for part in self.sets):
            raise ValueError("sets: a weight is a number above 0; leave out a set that is not read")
        if not 1 <= self.temperature < math.inf or (self.temperature != 1 and not self.sets):
            raise ValueError(
                f"temperature is {self.temperature:g}: it is 1 or more, and weights several `sets`"
            )
        if self.sets and (self.shards is not None or self.input == "text"):
            raise ValueError(
                "sets are data directories with audio or features: remove data.shards, or join "
                "the texts"
            )

    def _check_stored_frames(self) -> None:
        if self.input != "waveform":
            raise ValueError(
                "features: stored_frames stores frames that a front end computes from samples, but "
                f"data.input is {self.input}: set data.input: waveform"
            )
        plain = AugmentConfig()
        parts = ("gain_db", "noise", "room", "babble", "non_speech")
        changed = [name for name in parts if getattr(self.augment, name) != getattr(plain, name)]
        if changed:
            raise ValueError(
                f"augment.{' and '.join(changed)} changes waveforms, which training does not read "
                "with data.features: stored_frames; leave it out (augment.speeds stores copies), "
                "or take features: stored, which runs the front end in every step"
            )
