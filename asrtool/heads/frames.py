"""Heads with a distribution for each frame: CTC, aligned, and taps of the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from asrtool.heads.base import HEADS, FrameHead, Head, Search, names_of, tap
from asrtool.types import EncoderOutput, Padded

FRAMES = "frames"


class LinearHead(FrameHead, nn.Linear):
    """One linear layer over frames (B, S, D) -> logits (B, S, V)."""

    def __init__(self, name: str, dim: int, vocab_size: int, source: str | None = None) -> None:
        nn.Linear.__init__(self, dim, vocab_size)
        self.name = name
        self.source = source  # the tap to read; None or "frames": the encoder's frames

    def logits(self, encoded: EncoderOutput) -> Padded:
        frames, lengths = self.frames(encoded)
        return Padded(F.linear(frames, self.weight, self.bias), lengths)

    def frames(self, encoded: EncoderOutput) -> Padded:
        if self.source in (None, FRAMES):
            return encoded.frames
        if self.source not in encoded.taps:
            has = names_of({*encoded.taps, FRAMES})
            raise LookupError(
                f"the head '{self.name}' reads the tap '{self.source}', which the encoder does not "
                f"have (it has: {has})"
            )
        return encoded.taps[self.source]


@dataclass(frozen=True, kw_only=True)
class CtcHeadConfig:
    """CTC (Graves et al. 2006) over frames."""

    input: str | None = None  # tap of the encoder, or frames; null: as the encoder says


@HEADS.register("ctc", CtcHeadConfig)
class CtcHead(LinearHead):
    """Logits (B, S, V); blank 0."""

    alignment = "ctc"
    precedence = 30

    def __init__(self, config: CtcHeadConfig, *, name: str, model: object) -> None:
        source = model.encoder.ctc_tap if config.input is None else config.input
        super().__init__(name, model.dim, model.vocab_size, source)


@dataclass(frozen=True, kw_only=True)
class AlignedHeadConfig:
    """About one frame per token (AXE and TIL, arXiv 2510.10453)."""


@HEADS.register("aligned", AlignedHeadConfig)
class AlignedHead(LinearHead):
    """Logits (B, S, V); a frame without a token has blank 0, repeated tokens are not merged."""

    alignment = "token"
    precedence = 20

    def __init__(self, config: AlignedHeadConfig, *, name: str, model: object) -> None:
        super().__init__(name, model.dim, model.vocab_size)


@dataclass(frozen=True, kw_only=True)
class TapHeadConfig:
    """A tap of the encoder, unchanged."""


class TapHead(FrameHead):
    """Passes on a tap. It owns no module, because later layers of the encoder read that tap."""

    def __init__(self, config: object, *, name: str, model: object) -> None:
        super().__init__(name)

    def logits(self, encoded: EncoderOutput) -> Padded:
        return tap(encoded, self.name, f"the head '{self.name}'")


@dataclass(frozen=True, kw_only=True)
class InterCtcHeadConfig(TapHeadConfig):
    """The intermediate CTC head that selects key frames (`downsamplers: {type: keyframe}`)."""


@HEADS.register("inter_ctc", InterCtcHeadConfig)
class InterCtcHead(TapHead):
    """Logits (B, S', V) with their own lengths: those of the frames before any was dropped."""

    alignment = "ctc"
    precedence = 10


@dataclass(frozen=True, kw_only=True)
class AccentHeadConfig(TapHeadConfig):
    """Accent of every frame (`encoder: {type: qifusion}`, `downsamplers: {type: experts}`)."""


@HEADS.register("accent", AccentHeadConfig)
class AccentHead(TapHead):
    """Logits (B, S, A) of the accents; the mean posterior classifies the utterance."""

    output = "utterance"
    exported = False

    def search(self, heads: Mapping[str, Head]) -> Search | None:
        return None


@dataclass(frozen=True, kw_only=True)
class ExpertCtcHeadConfig(TapHeadConfig):
    """The CTC heads of accent experts (`downsamplers: {type: experts}`)."""


@HEADS.register("expert_ctc", ExpertCtcHeadConfig)
class ExpertCtcHead(TapHead):
    """Logits (B, S, E * V), expert by expert: for the loss alone, nothing is searched by them."""

    output = "none"
    exported = False

    def log_probs(self, encoded: EncoderOutput) -> Padded:
        raise LookupError(
            f"the head '{self.name}' has a distribution for each expert; it serves the loss alone"
        )

    def search(self, heads: Mapping[str, Head]) -> Search | None:
        return None
