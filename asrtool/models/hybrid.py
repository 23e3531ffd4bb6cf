"""An encoder with heads: hybrid CTC/attention (arXiv 1609.06773) and every other head of a loss.

x -> encoder -> frames h (B, S, D)
    -> head `ctc`: logits (B, S, V)
    -> head `aligned`: logits (B, S, V), with about one frame per token (AXE, TIL)
    -> head `attention`: decoder(h, y), logits (B, U + 1, V)
    -> head `reverse`: reverse_decoder(h, reversed y), logits (B, U + 1, V)
  -> taps, passed on by heads of the same name
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from asrtool.decoders import DECODERS
from asrtool.encoders import ENCODERS, check_encoder
from asrtool.heads import HEADS, AttentionHeadConfig, CtcHeadConfig, ReverseHeadConfig
from asrtool.models.base import MODELS, AsrModel
from asrtool.models.origins import fingerprints
from asrtool.nn.meta_device import on_meta
from asrtool.types import EncoderOutput, Padded

# head -> the key of the model that configures it
DECODER_KEYS = {"attention": "decoder", "reverse": "reverse_decoder"}


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """An encoder with a head for each loss. `decoder`, `reverse_decoder` and `ctc_input` configure
    the heads `attention`, `reverse` and `ctc`; `heads` configures those with other names.
    """

    encoder: Annotated[object, ENCODERS]
    decoder: Annotated[object, DECODERS] | None = None
    reverse_decoder: Annotated[object, DECODERS] | None = None  # for attention_rescoring
    # what the head `ctc` reads: a tap of the encoder, or frames; null: the encoder's choice
    ctc_input: str | None = None
    heads: dict[str, Annotated[object, HEADS]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, key in {**DECODER_KEYS, "ctc": "ctc_input"}.items():
            if name in self.heads and getattr(self, key) is not None:
                raise ValueError(f"the head '{name}' is configured twice: {key} and heads.{name}")

    @property
    def configured(self) -> dict[str, object]:
        """Name -> config of the heads that do not have the default one."""
        configs = dict(self.heads)
        if self.decoder is not None:
            configs["attention"] = AttentionHeadConfig(decoder=self.decoder)
        if self.reverse_decoder is not None:
            configs["reverse"] = ReverseHeadConfig(decoder=self.reverse_decoder)
        return configs


@MODELS.register("hybrid", HybridConfig)
class Hybrid(AsrModel):
    """Inputs (B, T, F) or (B, T) -> the outputs of the heads."""

    def __init__(
        self,
        config: HybridConfig,
        *,
        input_dim: int,
        vocab_size: int,
        frame_shift: float,
        heads: frozenset[str],
    ) -> None:
        super().__init__()
        self.encoder = ENCODERS.build(
            config.encoder, input_dim=input_dim, vocab_size=vocab_size, frame_shift=frame_shift
        )
        check_encoder(self.encoder)
        self.dim = self.encoder.dim
        self.frame_shift = self.encoder.frame_shift
        self.vocab_size, self.eos = vocab_size, vocab_size - 1
        configs = config.configured
        for head, key in DECODER_KEYS.items():
            if head in heads and head not in configs:
                raise ValueError(f"a loss reads the head '{head}', but model.{key} is not set")
            if head not in heads and head in configs:
                raise ValueError(f"model.{key} is set, but no loss reads its head '{head}'")
        if "ctc" in heads:  # `ctc_input` may stand where one of several phases has no CTC loss
            configs.setdefault("ctc", CtcHeadConfig(input=config.ctc_input))
        self.heads = self.build_heads(frozenset(heads), configs)
        self.frozen = frozenset(f"encoder.{key}" for key in self.encoder.frozen)
        self.pretrained = frozenset(f"encoder.{key}" for key in self.encoder.pretrained)
        self.sources = () if on_meta() else fingerprints(self.encoder)

    def encode(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        return self.encoder(inputs, chunk)
