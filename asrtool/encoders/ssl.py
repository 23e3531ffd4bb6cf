"""Pre-trained encoders of waveforms, from `transformers`.

data2vec (arXiv 2202.03555), wav2vec 2.0 (2006.11477), HuBERT (2106.07447), WavLM (2110.13900):

    samples (B, T) -> normalise -> strided convolutions: frames (B, S, C) of 20 ms
    -> projection (B, S, D) -> + convolutional positions -> layers (B, S, D)

Modules and weights are those of `transformers`; the forward pass is written out here, for three
reasons:

* Padding must not change a number. In `transformers` it does so twice: the group norm of the base
  models takes its statistics over the padding too, and the second to fifth positional convolutions
  of data2vec read what the ones before wrote into it. For an utterance alone the output is that of
  `transformers`.
* Random choices (masks, layer drop) come from the generators that the trainer seeds, alike on all
  ranks where ranks must agree, and a layer that is left out keeps gradients of zero.
* Utterances shorter than the 400 samples of one frame, and empty ones, are legal.

`attention: {type: echo}` puts another attention beside that of each layer
(asrtool/encoders/echo.py).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from asrtool import torchaudio_adapter
from asrtool.encoders.base import ENCODERS, Encoder
from asrtool.encoders.echo import ATTENTIONS, wrap
from asrtool.nn.masks import span_mask, valid_mask
from asrtool.types import EncoderOutput, Padded

# Shapes of models from scratch: width, layers, heads, feed-forward width.
_SIZES = {"tiny": (32, 2, 2, 64), "base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
_CLASSES = {
    "data2vec": "Data2VecAudio",
    "wav2vec2": "Wav2Vec2",
    "hubert": "Hubert",
    "wavlm": "WavLM",
}
VARIANCE_FLOOR = 1e-7  # as the feature extractors of `transformers`


@dataclass(frozen=True, kw_only=True)
class SslConfig:
    """What the four have in common. Freeze by `optim.groups`, e.g.
    `encoder.model.feature_extractor.*`.
    """

    # hub name or local folder of a `transformers` model; null: from scratch
    weights: str | None = None
    revision: str | None = None  # of the hub's model: a commit, tag or branch
    # null: what the config.json of the weights says
    size: Literal["tiny", "base", "large"] | None = None
    # samples to mean 0, variance 1; false for wavlm-base, which was trained so
    normalize: bool = True
    # put around the attention of the layers; null: theirs alone
    attention: Annotated[object, ATTENTIONS] | None = None
    time_mask: float = 0.0  # share of frames in masked spans, before overlaps; 0: none
    time_mask_length: int = 10  # frames of a span
    channel_mask: float = 0.0  # likewise over channels
    channel_mask_length: int = 64
    layer_drop: float = 0.0  # probability that a training step leaves a layer out
    dropout: float = 0.0  # of what a layer adds
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0  # inside the feed-forward network
    final_dropout: float = 0.0  # of the frames that come out

    def __post_init__(self) -> None:
        if self.weights is None and self.size is None:
            raise ValueError(
                "give weights (a hub name or a folder), or size for an encoder from scratch"
            )
        shares = (
            "time_mask",
            "channel_mask",
            "layer_drop",
            "dropout",
            "attention_dropout",
            "activation_dropout",
            "final_dropout",
        )
        for name in shares:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        if self.time_mask_length < 1 or self.channel_mask_length < 1:
            raise ValueError("time_mask_length and channel_mask_length must be at least 1")


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


class SslEncoder(Encoder):
    """Samples (B, T) -> frames (B, S, D).

    `model` is the `transformers` model; its parameters keep their names.
    """

    reads_samples = True

    def __init__(
        self, config: SslConfig, input_dim: int, vocab_size: int, frame_shift: float
    ) -> None:
        super().__init__()
        name = ENCODERS.name_of(config)
        if input_dim != 1:
            raise ValueError(
                f"encoder {name} reads samples, not {input_dim} bins of fbank: set data.input: "
                "waveform"
            )
        self.config = config
        self.model = _model(name, config)
        if config.attention is not None:
            wrap(self.model, config.attention)
        self.dim = self.model.config.hidden_size
        self.frame_shift = frame_shift * prod(self.model.config.conv_stride)
        self.final_dropout = nn.Dropout(config.final_dropout)
        self._steps = list(
            zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True)
        )
        self._field = 1  # samples that one frame sees
        for kernel, stride in reversed(self._steps):
            self._field = (self._field - 1) * stride + kernel

    def forward(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        if chunk is not None:
            raise ValueError(
                f"encoder {ENCODERS.name_of(self.config)} cannot stream: every frame sees the "
                "whole utterance"
            )
        frames = self._extract(self._samples(inputs))  # (B, S, C)
        # (B, S, D); the projection of wav2vec 2.0 returns its normalised input too
        x = self.model.feature_projection(frames.data)
        x = self._mask(x[0] if isinstance(x, tuple) else x, frames.lengths)
        x = self.final_dropout(self._layers(x, frames.lengths))
        frames = Padded(x.masked_fill(~frames.mask[:, :, None], 0), frames.lengths)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        return EncoderOutput(frames=frames, positions=positions)

    def _samples(self, inputs: Padded) -> Padded:
        """Normalised samples (B, max(T, field)), 0 in the padding; field: of one frame."""
        valid, lengths = inputs.mask, inputs.lengths
        data = inputs.data.masked_fill(~valid, 0)
        if self.config.normalize:
            # mean and variance of each row over its own samples
            count = lengths.clamp(min=1)[:, None]
            data = (data - data.sum(1, keepdim=True) / count).masked_fill(~valid, 0)
            data = data / (data.square().sum(1, keepdim=True) / count + VARIANCE_FLOOR).sqrt()
        short = self._field - data.shape[1]
        return Padded(pad(data, (0, short)) if short > 0 else data, lengths)

    def _extract(self, samples: Padded) -> Padded:
        """Samples (B, T) -> frames (B, S, C) of the strided convolutions."""
        x = samples.data[:, None]
        # shorter utterances are padded to one frame; empty ones get length 0 at the end
        lengths = samples.lengths.clamp(min=self._field)
        for layer, (kernel, stride) in zip(
            self.model.feature_extractor.conv_layers, self._steps, strict=True
        ):
            lengths = (lengths - kernel) // stride + 1
            # base models normalise each channel over time, behind the first convolution
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                x = layer.activation(_norm_over_time(layer.conv(x), lengths, layer.layer_norm))
            else:
                x = layer(x)
        return Padded(x.transpose(1, 2), lengths.masked_fill(samples.lengths == 0, 0))

    def _mask(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Training: spans of frames become a learnt vector, spans of channels 0; x (B, S, D).

        This is the SpecAugment of fairseq.
        """
        if not self.training:
            return x
        embedding = self.model.masked_spec_embed.to(x.dtype)
        # the vector needs a gradient, even 0, where no span is drawn: DDP waits for it
        x = x + 0 * embedding.sum()
        config = self.config
        if config.time_mask:
            spans = span_mask(lengths, x.shape[1], config.time_mask, config.time_mask_length)
            x = torch.where(spans[:, :, None], embedding, x)
        if config.channel_mask:
            channels = torch.full_like(lengths, x.shape[2])
            spans = span_mask(channels, x.shape[2], config.channel_mask, config.channel_mask_length)
            x = x.masked_fill(spans[:, None, :], 0)
        return x

    def _layers(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Positions and Transformer layers: x (B, S, D) -> (B, S, D)."""
        encoder = self.model.encoder
        norm_at_end = getattr(self.model.config, "do_stable_layer_norm", False)
        valid = valid_mask(lengths, x.shape[1])
        # the positional convolution reads across the padding, which must hold zeros
        x = x.masked_fill(~valid[:, :, None], 0)
        x = x + self._positions(x, valid)
        x = encoder.dropout(x if norm_at_end else encoder.layer_norm(x))
        # without padding no mask is needed, and attention is faster; on a GPU the answer would have
        # to be waited for
        whole = bool(valid.all()) if valid.device.type == "cpu" else False
        # an empty row sees its first frame: softmax over no key would be NaN
        visible = None if whole else valid_mask(lengths.clamp(min=1), x.shape[1])
        wavlm = isinstance(self.config, WavlmConfig)
        if visible is not None and not wavlm:
            visible = visible[:, None, None, :]  # (B, 1, 1, S); WavLM takes (B, S)
        # WavLM: relative position bias, made by the first layer for all, so that this one always
        # runs
        bias = None
        for index, layer in enumerate(encoder.layers):
            if self.training and self._left_out() and not (wavlm and index == 0):
                # gradients are 0 and not None: DDP waits for every parameter
                x = x + 0 * sum(parameter.sum() for parameter in layer.parameters())
            elif wavlm:
                x, bias = layer(x, attention_mask=visible, position_bias=bias, index=index)[:2]
            else:
                x = layer(x, attention_mask=visible)
                x = x[0] if isinstance(x, tuple) else x
        return encoder.layer_norm(x) if norm_at_end else x

    def _left_out(self) -> bool:
        """Whether to leave out a layer; from Python's `random`, seeded alike on all ranks."""
        return self.config.layer_drop > 0 and random.random() < self.config.layer_drop

    def _positions(self, x: Tensor, valid: Tensor) -> Tensor:
        embedding = self.model.encoder.pos_conv_embed
        if not hasattr(embedding, "layers"):
            return embedding(x)
        x = x.transpose(1, 2)
        # data2vec: several convolutions in a row, each of which must find zeros in the padding
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
    """`norm` with a group per channel, over the valid frames of each row: x (B, C, S)."""
    valid = valid_mask(lengths, x.shape[2])[:, None]
    count = lengths[:, None, None].to(x.dtype)
    mean = x.masked_fill(~valid, 0).sum(2, keepdim=True) / count
    x = (x - mean).masked_fill(~valid, 0)
    variance = x.square().sum(2, keepdim=True) / count
    return x * (variance + norm.eps).rsqrt() * norm.weight[:, None] + norm.bias[:, None]


def _model(name: str, config: SslConfig) -> nn.Module:
    """The `transformers` model, with its weights or random ones of the configured size."""
    torchaudio_adapter.load()  # before transformers, which imports torchaudio
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"encoder {name} needs transformers: pip install 'asrtool[ssl]' ({error})"
        ) from error
    kind = getattr(transformers, _CLASSES[name] + "Model")
    # on the meta device only shapes are needed: nothing is downloaded for them
    shape_only = torch.get_default_device().type == "meta"
    if config.weights is None or (
        shape_only and config.size is not None and not Path(config.weights).is_dir()
    ):
        return kind(_configured(_of_size(kind.config_class, name, config.size), config))
    settings = _read_settings(kind, name, config)
    if shape_only:
        return kind(_configured(settings, config))
    model, info = kind.from_pretrained(
        config.weights,
        revision=config.revision or "main",
        config=_configured(settings, config),
        dtype=torch.float32,
        output_loading_info=True,
    )
    missing = sorted(key for key in info["missing_keys"] if key != "masked_spec_embed")
    if missing:
        raise ValueError(
            f"weights {config.weights}: {len(missing)} tensors of {name} are missing: {missing[:5]}"
        )
    return model


def _read_settings(kind: type, name: str, config: SslConfig) -> object:
    """The config.json of the weights, checked against `config`."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(config.weights, revision=config.revision or "main")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"weights {config.weights}: neither a folder with the config.json of a `transformers` "
            f"model nor a name that the hub knows ({str(error).strip().splitlines()[0]})"
        ) from error
    if not isinstance(settings, kind.config_class):
        raise ValueError(
            f"weights {config.weights} hold a model of type '{settings.model_type}', not {name}"
        )
    shape = (
        settings.hidden_size,
        settings.num_hidden_layers,
        settings.num_attention_heads,
        settings.intermediate_size,
    )
    if config.size is not None and shape != _SIZES[config.size]:
        raise ValueError(
            f"weights {config.weights}: width, layers, heads, feed-forward width are {shape}; "
            f"size: {config.size} means {_SIZES[config.size]}"
        )
    if getattr(settings, "add_adapter", False):
        raise ValueError(
            f"weights {config.weights} have a strided adapter behind the layers, which is not "
            "supported; take weights without one"
        )
    return settings


def _of_size(kind: type, name: str, size: str) -> object:
    """Settings of the published models of that size: large ones differ from the defaults."""
    dim, layers, heads, ffn_dim = _SIZES[size]
    settings = kind(
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn_dim,
    )
    if size == "large" and name != "data2vec":
        settings.feat_extract_norm, settings.do_stable_layer_norm = "layer", True
        settings.conv_bias = name != "wavlm"
    if size == "tiny":
        settings.conv_dim = [32] * len(settings.conv_kernel)
        settings.num_conv_pos_embedding_groups = 4
    return settings


def _configured(settings: object, config: SslConfig) -> object:
    """Dropouts as configured; masks and layer drop of `transformers` are switched off."""
    settings.hidden_dropout, settings.attention_dropout = config.dropout, config.attention_dropout
    settings.activation_dropout, settings.feat_proj_dropout = config.activation_dropout, 0.0
    settings.layerdrop, settings.mask_feature_prob = 0.0, 0.0
    settings.mask_time_prob = 0.05  # so that `masked_spec_embed` exists in every phase
    return settings
