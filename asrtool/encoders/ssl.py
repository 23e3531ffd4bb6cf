"""Pre-trained encoders of waveforms, from `transformers`.

data2vec (arXiv 2202.03555), wav2vec 2.0 (2006.11477), HuBERT (2106.07447), WavLM (2110.13900):

    samples (B, T) -> normalise -> strided convolutions: frames (B, S, C) of 20 ms
    -> projection (B, S, D) -> + convolutional positions -> layers (B, S, D)

Modules and weights are those of `transformers`. The forward pass is our own, for three reasons:

* Padding must not change a number. In `transformers` it does in two places: the group norm of the
  base models includes the padding in its statistics, and the second to fifth positional
  convolutions of data2vec read what the ones before wrote into it. For a single utterance, the
  output equals that of `transformers`.
* Random choices (masks, layer drop) come from the generators that the trainer seeds, and are the
  same on all ranks where ranks must agree. The parameters of a dropped layer have gradients of 0.
* Empty utterances, and those shorter than the 400 samples of one frame, are legal.

The part shared with other pre-trained encoders is in asrtool/encoders/pretrained.py. `attention:
{type: echo}` adds a second attention to each layer (asrtool/encoders/echo.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
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
    visible_keys,
)
from asrtool.nn.masks import valid_mask
from asrtool.types import Padded, both

_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# of models from scratch
_SIZES = {"tiny": (32, 2, 2, 64), "base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
_CLASSES = {
    "data2vec": "Data2VecAudio",
    "wav2vec2": "Wav2Vec2",
    "hubert": "Hubert",
    "wavlm": "WavLM",
}
VARIANCE_FLOOR = 1e-7  # as in the feature extractors of `transformers`
# `transformers` creates `masked_spec_embed` only if it masks: set to any share above 0, so that the
# parameter exists in every phase; the masks themselves are ours
ANY_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class SslConfig(PretrainedConfig):
    """Settings of all four. `optim.groups` can freeze single parts, e.g.
    `encoder.model.feature_extractor.*`.
    """

    size: Literal["tiny", "base", "large"] | None = None  # null: as the weights say
    # samples to mean 0, variance 1; false for wavlm-base, which was trained so
    normalize: bool = True


@dataclass(frozen=True, kw_only=True)
class Data2vecConfig(SslConfig):
    """data2vec audio (arXiv 2202.03555), e.g. weights: facebook/data2vec-audio-base."""


@dataclass(frozen=True, kw_only=True)
class Wav2vec2Config(SslConfig):
    """wav2vec 2.0 (arXiv 2006.11477), e.g. weights: facebook/wav2vec2-base."""


@dataclass(frozen=True, kw_only=True)
class HubertConfig(SslConfig):
    """HuBERT (arXiv 2106.07447), e.g. weights: facebook/hubert-large-ll60k."""


@dataclass(frozen=True, kw_only=True)
class WavlmConfig(SslConfig):
    """WavLM (arXiv 2110.13900), e.g. weights: microsoft/wavlm-large."""


class SslEncoder(PretrainedEncoder):
    """Samples (B, T) -> frames (B, S, D), one every 320 samples."""

    def __init__(
        self, config: SslConfig, input_dim: int, vocab_size: int, frame_shift: float
    ) -> None:
        super().__init__(config, input_dim, vocab_size, frame_shift)
        settings = self.model.config
        self.frame_shift = frame_shift * prod(settings.conv_stride)
        self._steps = list(zip(settings.conv_kernel, settings.conv_stride, strict=True))
        # samples that one frame sees: the receptive field, computed from the last layer back
        self._field = 1
        for kernel, stride in reversed(self._steps):
            self._field = (self._field - 1) * stride + kernel

    def _build(self) -> nn.Module:
        return _model(self.name, self.config)

    def _enter(self, inputs: Padded) -> Padded:
        frames = self._extract(self._samples(inputs))  # (B, S, C)
        # (B, S, D); the projection of wav2vec 2.0 returns its normalised input too
        x = self.model.feature_projection(frames.data)
        x = x[0] if isinstance(x, tuple) else x
        return Padded(self._mask(x, frames.lengths, self.model.masked_spec_embed), frames.lengths)

    def _samples(self, inputs: Padded) -> Padded:
        """Normalised samples (B, max(T, samples of one frame)), 0 in the padding."""
        valid, lengths = inputs.mask, inputs.lengths
        data = inputs.data.masked_fill(~valid, 0)
        if self.config.normalize:
            # mean and variance of each row over its own samples
            count = lengths.clamp(min=1)[:, None]
            data = (data - data.sum(1, keepdim=True) / count).masked_fill(~valid, 0)
            data = data / (data.square().sum(1, keepdim=True) / count + VARIANCE_FLOOR).sqrt()
        # an exported graph cannot decide by the number of samples
        graph = torch.compiler.is_compiling()
        short = self._field - 1 if graph else self._field - data.shape[1]
        return Padded(pad(data, (0, short)) if short > 0 else data, lengths)

    def _extract(self, samples: Padded) -> Padded:
        """Samples (B, T) -> frames (B, S, C) of the strided convolutions."""
        x = samples.data[:, None]
        # utterances shorter than one frame are padded to it; empty ones get length 0 at the end
        lengths = both(lambda n: n.clamp(min=self._field), samples.lengths)
        for layer, (kernel, stride) in zip(
            self.model.feature_extractor.conv_layers, self._steps, strict=True
        ):
            lengths = both(lambda n, k=kernel, s=stride: (n - k) // s + 1, lengths)
            # base models normalise each channel over time after the first convolution: over valid
            # frames alone, unlike in `transformers`
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                x = layer.activation(_norm_over_time(layer.conv(x), lengths, layer.layer_norm))
            else:
                x = layer(x)
        lengths = both(lambda n, given: n.masked_fill(given == 0, 0), lengths, samples.lengths)
        return Padded(x.transpose(1, 2), lengths)

    def _layers(self, frames: Padded) -> list[Tensor]:
        x, lengths = frames
        encoder = self.model.encoder
        norm_at_end = getattr(self.model.config, "do_stable_layer_norm", False)
        valid = frames.mask
        # the positional convolution reads into the padding, which must be zero
        x = x.masked_fill(~valid[:, :, None], 0)
        x = x + self._positions(x, valid)
        x = encoder.dropout(x if norm_at_end else encoder.layer_norm(x))
        visible = visible_keys(lengths, x.shape[1])
        wavlm = isinstance(self.config, WavlmConfig)
        if visible is not None and not wavlm:
            visible = visible[:, None, None, :]  # (B, 1, 1, S); WavLM takes (B, S)
        # WavLM: the first layer computes the relative position bias of all layers, so layer drop
        # must keep it (`always`)
        bias = None

        def call(index: int, layer: nn.Module, x: Tensor) -> Tensor:
            nonlocal bias
            if wavlm:
                x, bias = layer(x, attention_mask=visible, position_bias=bias, index=index)[:2]
                return x
            x = layer(x, attention_mask=visible)
            return x[0] if isinstance(x, tuple) else x

        outputs = self._run(encoder.layers, x, call, always=(0,) if wavlm else ())
        return [*outputs[:-1], encoder.layer_norm(outputs[-1])] if norm_at_end else outputs

    def _positions(self, x: Tensor, valid: Tensor) -> Tensor:
        embedding = self.model.encoder.pos_conv_embed
        if not hasattr(embedding, "layers"):
            return embedding(x)
        x = x.transpose(1, 2)
        # data2vec stacks several convolutions, each of which must find zeros in the padding
        for layer in embedding.layers:
            x = layer(x).masked_fill(~valid[:, None], 0)
        return x.transpose(1, 2)


@ENCODERS.register("data2vec", Data2vecConfig)
class Data2vec(SslEncoder):
    pass


@ENCODERS.register("wav2vec2", Wav2vec2Config)
class Wav2vec2(SslEncoder):
    pass


@ENCODERS.register("hubert", HubertConfig)
class Hubert(SslEncoder):
    pass


@ENCODERS.register("wavlm", WavlmConfig)
class Wavlm(SslEncoder):
    pass


def _norm_over_time(x: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """x (B, C, S) normalised per channel over the valid frames of each row, scaled as by `norm`."""
    valid = valid_mask(lengths, x.shape[2])[:, None]
    count = lengths[:, None, None].to(x.dtype)
    mean = x.masked_fill(~valid, 0).sum(2, keepdim=True) / count
    x = (x - mean).masked_fill(~valid, 0)
    variance = x.square().sum(2, keepdim=True) / count
    return x * (variance + norm.eps).rsqrt() * norm.weight[:, None] + norm.bias[:, None]


def _model(name: str, config: SslConfig) -> nn.Module:
    """The network of `transformers`."""
    kind = getattr(transformers(name), _CLASSES[name] + "Model")
    model = build_network(
        kind,
        config,
        _SHAPE,
        _SIZES,
        from_scratch=partial(_of_size, kind.config_class, name),
        configured=partial(_configured, config=config),
        optional=("masked_spec_embed",),
    )
    norm_at_end = getattr(model.config, "do_stable_layer_norm", False)
    if norm_at_end and isinstance(config.layer, int):
        model.encoder.layer_norm = nn.Identity()
    return model


def _of_size(kind: type, name: str, size: str) -> object:
    """Settings of the published models of a size: large ones differ from the defaults."""
    settings = kind(**dict(zip(_SHAPE, _SIZES[size], strict=True)))
    if size == "large" and name != "data2vec":
        settings.feat_extract_norm, settings.do_stable_layer_norm = "layer", True
        settings.conv_bias = name != "wavlm"
    if size == "tiny":
        settings.conv_dim = [32] * len(settings.conv_kernel)
        settings.num_conv_pos_embedding_groups = 4
    return settings


def _configured(settings: object, config: SslConfig) -> object:
    """Layers and dropouts as configured; masks and layer drop of `transformers` are switched
    off.
    """
    if getattr(settings, "add_adapter", False):
        raise ValueError(
            f"weights {config.weights} have a strided adapter after the layers, which is not "
            "supported; take weights without one"
        )
    settings.num_hidden_layers = config.num_layers(settings.num_hidden_layers)
    settings.hidden_dropout, settings.attention_dropout = config.dropout, config.attention_dropout
    settings.activation_dropout, settings.feat_proj_dropout = config.activation_dropout, 0.0
    settings.layerdrop, settings.mask_feature_prob = 0.0, 0.0
    settings.mask_time_prob = ANY_SHARE
    return settings
