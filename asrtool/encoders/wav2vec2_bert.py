"""wav2vec-BERT 2.0 (arXiv 2312.05187), a Conformer pre-trained on fbank, from `transformers`.

    samples (B, T) of 16 kHz -> fbank of 80 bins, each with mean 0 and variance 1 over the utterance
    -> pairs of frames (B, S, 160), one every 20 ms -> projection (B, S, D) -> layers

The fbank is that of `SeamlessM4TFeatureExtractor`: Kaldi's, of whole frames, normalised over the
valid frames of each row. If their number is odd, the last one is dropped, as there. An utterance
shorter than one pair is padded to it with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from asrtool.encoders.base import ENCODERS
from asrtool.encoders.pretrained import (
    PretrainedConfig,
    PretrainedEncoder,
    build_network,
    transformers,
)
from asrtool.nn.masks import valid_mask
from asrtool.registry import OMIT
from asrtool.tuning import EncoderTuning
from asrtool.types import Padded, both

_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# of models from scratch
_SIZES = {"tiny": (32, 2, 2, 64), "large": (1024, 24, 16, 4096)}
RATE, WINDOW, HOP, FFT, BINS = 16000, 400, 160, 512, 80
PAIR = 2  # frames of fbank that are one frame of the network
SCALE = 32768.0  # Kaldi computes on 16-bit integers
PREEMPHASIS = 0.97
LEAST = 1.192092955078125e-07  # floor of the power: the epsilon of float32, as in Kaldi
VARIANCE_FLOOR = 1e-7
POVEY = 0.85  # exponent of the Hann window that makes it Kaldi's Povey window
# `transformers` creates `masked_spec_embed` only if it masks: set to any share above 0, so that the
# parameter exists in every phase; the masks themselves are ours
ANY_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Wav2vec2BertTuning(EncoderTuning):
    """LoRA of wav2vec-BERT, whose projections have names of their own."""

    targets: tuple[str, ...] = ("linear_q", "linear_v")


@dataclass(frozen=True, kw_only=True)
class Wav2vec2BertConfig(PretrainedConfig):
    """wav2vec-BERT 2.0 (arXiv 2312.05187), e.g. weights: facebook/w2v-bert-2.0."""

    size: Literal["tiny", "large"] | None = None  # null: as the weights say
    tuning: Wav2vec2BertTuning = field(default=Wav2vec2BertTuning(mode="full"), metadata=OMIT)


@ENCODERS.register("wav2vec2-bert", Wav2vec2BertConfig)
class Wav2vec2Bert(PretrainedEncoder):
    """Samples (B, T) -> frames (B, S, D), one every 320 samples."""

    attention_name = "self_attn"
    rate = RATE

    def __init__(
        self, config: Wav2vec2BertConfig, input_dim: int, vocab_size: int, frame_shift: float
    ) -> None:
        super().__init__(config, input_dim, vocab_size, frame_shift)
        self.frame_shift = frame_shift * HOP * PAIR
        window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64) ** POVEY
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("filters", _filters(), persistent=False)

    def _build(self) -> nn.Module:
        return _model(self.name, self.config)

    def features(self, inputs: Padded) -> Padded:
        """Samples (B, T) -> pairs of normalised frames (B, S, 160), 0 in the padding."""
        least = WINDOW + HOP  # samples of a pair
        lengths = both(lambda n: n.clamp(min=least), inputs.lengths)
        x = inputs.data.masked_fill(~inputs.mask, 0) * SCALE
        # an exported graph cannot decide by the number of samples
        graph = torch.compiler.is_compiling()
        short = least - 1 if graph else max(0, least - x.shape[1])
        frames = pad(x, (0, short)).unfold(1, WINDOW, HOP)
        frames = frames - frames.mean(-1, keepdim=True)
        # pre-emphasis within each frame, as in Kaldi: its first sample precedes itself
        before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
        spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * self.window, FFT)
        power = (spectrum.abs().square() @ self.filters).clamp(min=LEAST)
        counts = both(lambda n: (n - WINDOW) // HOP + 1, lengths)
        outside = ~valid_mask(counts, power.shape[1])[:, :, None]
        # (B, N, 80), 0 in the padding at every step, so that plain sums are sums over valid frames
        x = power.log().masked_fill(outside, 0)
        count = counts[:, None, None].to(x.dtype)
        x = (x - x.sum(1, keepdim=True) / count).masked_fill(outside, 0)
        # the unbiased variance, as in the feature extractor; there are at least two frames
        variance = x.square().sum(1, keepdim=True) / (count - 1)
        x = x / (variance + VARIANCE_FLOOR).sqrt()
        pairs = x[:, : x.shape[1] // PAIR * PAIR].unflatten(1, (-1, PAIR)).flatten(2)
        own = both(lambda n, given: (n // PAIR).masked_fill(given == 0, 0), counts, inputs.lengths)
        return Padded(pairs, own)

    def _enter(self, inputs: Padded) -> Padded:
        with torch.autocast(inputs.data.device.type, enabled=False):  # powers span 16 decades
            pairs, lengths = self.features(inputs)
        x, _ = self.model.feature_projection(pairs)
        return Padded(self._mask(x, lengths, self.model.masked_spec_embed), lengths)

    def _layers(self, frames: Padded) -> list[Tensor]:
        x, lengths = frames
        encoder = self.model.encoder
        x = encoder.dropout(x.masked_fill(~frames.mask[:, :, None], 0))
        # an empty row sees its first frame: softmax over no key would be NaN
        valid = valid_mask(lengths.clamp(min=1), x.shape[1])
        # (B, 1, 1, S), added to the scores
        visible = torch.zeros_like(x[..., 0]).masked_fill(~valid, torch.finfo(x.dtype).min)
        visible = visible[:, None, None, :]
        embedded = None if encoder.embed_positions is None else encoder.embed_positions(x)

        def call(index: int, layer: nn.Module, x: Tensor) -> Tensor:
            return layer(
                x,
                attention_mask=visible,
                relative_position_embeddings=embedded,
                conv_attention_mask=valid,
            )

        return self._run(encoder.layers, x, call)


def _filters() -> Tensor:
    """(257, F): triangular filters on Kaldi's mel scale from 20 Hz to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        FFT // 2 + 1, BINS, 20, RATE // 2, RATE, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    return torch.tensor(filters, dtype=torch.float32)


def _model(name: str, config: Wav2vec2BertConfig) -> nn.Module:
    """The network of `transformers`."""
    kind = transformers(name).Wav2Vec2BertModel
    return build_network(
        kind,
        config,
        _SHAPE,
        _SIZES,
        from_scratch=partial(_of_size, kind.config_class),
        configured=partial(_configured, config=config),
        optional=("masked_spec_embed",),
    )


def _of_size(kind: type, size: str) -> object:
    shape = dict(zip(_SHAPE, _SIZES[size], strict=True))
    return kind(**shape, position_embeddings_type="relative_key")


def _configured(settings: object, config: Wav2vec2BertConfig) -> object:
    """Layers and dropouts as configured; masks, layer drop and the adapter of `transformers` are
    switched off.
    """
    settings.num_hidden_layers = config.num_layers(settings.num_hidden_layers)
    settings.hidden_dropout, settings.attention_dropout = config.dropout, config.attention_dropout
    settings.activation_dropout, settings.feat_proj_dropout = config.activation_dropout, 0.0
    settings.conformer_conv_dropout = config.dropout
    settings.layerdrop, settings.mask_feature_prob = 0.0, 0.0
    settings.mask_time_prob = ANY_SHARE
    settings.add_adapter = settings.use_intermediate_ffn_before_adapter = False
    return settings
