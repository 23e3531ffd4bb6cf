"""What each study on real speech trains and decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LIBRISPEECH = "../librispeech/conf"
WHISPER = f"{LIBRISPEECH}/whisper"
BASE = "whisper-base"


class Decoding(NamedTuple):
    config: str
    lm: str | None = None  # as `--lm` of the recipe


GREEDY = Decoding("conf/decode_greedy.yaml")
FOUR_GRAM = Decoding(f"{WHISPER}/decode_whisper_cnn.yaml", lm="ngram:4")


@dataclass(frozen=True, kw_only=True)
class System:
    """One line of a study's table."""

    config: str  # training config, as seen from the recipe's folder
    changes: tuple[str, ...] = ()
    weights: Mapping[str, str] | None = None  # key of the config -> name of the model
    decodings: Mapping[str, Decoding] = field(default_factory=lambda: {"greedy": GREEDY})
    train_set: str = "study_train_1h"
    unit: str = "char"
    vocab_size: int = 0
    title: str = ""
    small: bool = False  # trained in 40 minutes of two cores: --budget small
    against: str | None = None  # the system that it is compared with
    primary: str = "greedy"  # decoding of the comparison


FRONT_END = {"model.encoder.frontend.weights": BASE}
READ = dict(config=f"{WHISPER}/train_whisper_cnn.yaml", weights=FRONT_END)
BOTH = {"greedy": GREEDY, "4gram": FOUR_GRAM}

RECOGNISER = {
    "frozen_10min": System(
        **READ,
        train_set="study_train_10min",
        decodings=BOTH,
        changes=("trainer.epochs=40",),  # as many steps as an hour's passes
        title="whisper-base frozen, 10 minutes",
    ),
    "frozen_1h": System(
        **READ,
        decodings=BOTH,
        changes=("trainer.epochs=15",),
        title="whisper-base frozen, 1 hour",
    ),
    "frozen": System(
        **READ,
        train_set="study_train",
        decodings=BOTH,
        title="whisper-base frozen, 3.4 hours",
        small=True,
    ),
}

KEYFRAME = "conf/studies/train_keyframe.yaml"
FRAMES = "model.encoder.downsamplers.2"
KEYFRAMES_READ = {
    "attention": Decoding(f"{LIBRISPEECH}/keyframe/decode_keyframe.yaml"),
    "aligned": Decoding(f"{LIBRISPEECH}/keyframe/decode_keyframe_aligned.yaml"),
}
ON_FRAMES = dict(weights=FRONT_END, primary="attention")
KEYFRAMES = {
    "baseline": System(
        config="conf/studies/train_keyframe_baseline.yaml",
        decodings={"attention": Decoding(f"{LIBRISPEECH}/decode_attention.yaml")},
        title="every frame, CTC and attention",
        **ON_FRAMES,
    ),
    "axe": System(
        config=KEYFRAME,
        decodings=KEYFRAMES_READ,
        against="baseline",
        title="key frames, AXE",
        small=True,
        **ON_FRAMES,
    ),
    "til": System(
        config=KEYFRAME,
        changes=(
            "losses.aligned={type: til, weight: 0}",
            "phases.keyframe.losses.aligned.weight=0.3",
            "phases.keyframe.trainer.best=valid/attention",
        ),
        decodings=KEYFRAMES_READ,
        against="axe",
        title="key frames, TIL",
        **ON_FRAMES,
    ),
    "nofusion": System(
        config=KEYFRAME,
        changes=(f"{FRAMES}.fusion=none",),
        decodings=KEYFRAMES_READ,
        against="axe",
        title="key frames, no fusion",
        **ON_FRAMES,
    ),
    "radius2": System(
        config=KEYFRAME,
        changes=(f"{FRAMES}.radius=2",),
        decodings=KEYFRAMES_READ,
        against="axe",
        title="key frames, 5 frames fused",
        **ON_FRAMES,
    ),
    "unsupervised": System(
        config=KEYFRAME,
        changes=(
            "phases.keyframe.losses.aligned.weight=0",
            "phases.keyframe.trainer.best=valid/attention",
        ),
        decodings={"attention": KEYFRAMES_READ["attention"]},
        against="axe",
        title="key frames, no loss behind the drop",
        **ON_FRAMES,
    ),
}

STUDIES: dict[str, dict[str, System]] = {"recogniser": RECOGNISER, "keyframes": KEYFRAMES}
