"""The encoder of Whisper (arXiv 2212.04356), from `transformers`.

    samples (B, T) of 16 kHz -> log-mel (B, F, M), a frame every 10 ms
    -> two convolutions, the second with stride 2: frames (B, S, D) of 20 ms
    -> + sinusoids -> layers (B, S, D)

The log-mel is that of `WhisperFeatureExtractor`: with P the mel power of a frame,

    m = max(log10 max(P, 1e-10), max over the utterance of that - 8),   x = (m + 4) / 4

Whisper was trained on windows of 30 s, with zeros after shorter audio. `pad_to_30s: true` does the
same: attention sees all 1,500 frames, as in `transformers`, and those of the utterance come out. By
default, an utterance of T samples has S = ceil(floor(T / 160) / 2) frames and attention sees no
others, so the cost depends on the length of the audio. Everything else is as if zeros followed:

* Samples after the end are 0. The convolutions read the mel frames there, which hold the tail of
  the audio and then the floor. Before the start, samples are mirrored, as in the padded form.
* The floor is 8 below the maximum over the utterance's own frames and the following ones that its
  samples reach, which is the maximum over the 30 s.

So the input of the layers is the same in both forms, and does not depend on the batch.

Positions and convolutions end at 30 s: longer audio is an error. The weights may be those of the
whole model, of which only `model.encoder.*` is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from asrtool.encoders.base import ENCODERS
from asrtool.encoders.pretrained import (
    PretrainedConfig,
    PretrainedEncoder,
    build_network,
    longest,
    transformers,
    visible_keys,
)
from asrtool.types import Padded, both

# Shapes of the published encoders: _SHAPE and mel bins.
_SHAPE = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
_SIZES = {
    "tiny": (384, 4, 6, 1536, 80),
    "base": (512, 6, 8, 2048, 80),
    "small": (768, 12, 12, 3072, 80),
    "medium": (1024, 24, 16, 4096, 80),
    "large": (1280, 32, 20, 5120, 80),
    "large-v3": (1280, 32, 20, 5120, 128),
}
RATE, WINDOW, HOP = 16000, 400, 160  # samples per second, per mel frame, between two of them
BEYOND = 3  # mel frames after the end that samples or a convolution reach
LEAST = 1e-10  # floor of the power
RANGE = 8.0  # decades between the maximum and the floor
CONV_STRIDE = 2  # of the two convolutions together: mel frames per encoder frame


@dataclass(frozen=True, kw_only=True)
class WhisperConfig(PretrainedConfig):
    """Whisper's encoder (arXiv 2212.04356), e.g. weights: openai/whisper-base."""

    # of the published models; null: as the weights say
    size: Literal["tiny", "base", "small", "medium", "large", "large-v3"] | None = None
    pad_to_30s: bool = False  # attention sees zeros up to 30 s, as Whisper was trained


@ENCODERS.register("whisper", WhisperConfig)
class Whisper(PretrainedEncoder):
    """Samples (B, T) of at most 30 s -> frames (B, S, D), one every 320 samples."""

    attention_name = "self_attn"
    rate = RATE

    def __init__(
        self, config: WhisperConfig, input_dim: int, vocab_size: int, frame_shift: float
    ) -> None:
        super().__init__(config, input_dim, vocab_size, frame_shift)
        settings = self.model.config
        self.frame_shift = frame_shift * HOP * CONV_STRIDE
        self.most_frames = CONV_STRIDE * settings.max_source_positions  # mel frames of 30 s
        self.max_seconds = frame_shift * HOP * self.most_frames
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(settings.num_mel_bins), persistent=False)

    def _build(self) -> nn.Module:
        return _model(self.name, self.config)

    def _layer_list(self) -> nn.ModuleList:
        return self.model.layers

    def log_mel(self, inputs: Padded) -> Padded:
        """Samples (B, T) -> log-mel (B, F, M), with the number of each utterance's own frames (B,).

        After these come the frames that the convolutions read there, or all up to 30 s.
        """
        lengths = inputs.lengths
        counts = both(lambda n: (n // HOP).clamp(min=1).masked_fill(n == 0, 0), lengths)
        most = self.most_frames
        size = most
        if not self.config.pad_to_30s:
            size = min(longest(counts, max(1, inputs.data.shape[1] // HOP)) + BEYOND, most)
        # a full window ends at 30 s, where samples are mirrored; a shorter one reads zeros
        x = inputs.data.masked_fill(~inputs.mask, 0)
        end = most * HOP if size == most else (size + BEYOND) * HOP
        x = pad(x, (0, end - x.shape[1]))
        x = pad(x[:, None], (WINDOW // 2, WINDOW // 2), mode="reflect")[:, 0]
        spectrum = torch.stft(
            x, WINDOW, HOP, window=self.window, center=False, return_complex=True
        )[..., :size]
        power = spectrum.abs().square()  # (B, 201, M)
        mel = (self.filters @ power).clamp(min=LEAST).log10()
        # the maximum over the frames that the utterance's samples reach, so that a longer utterance
        # in the batch does not move the floor
        own = torch.arange(size, device=mel.device) < (counts + BEYOND)[:, None]
        top = mel.masked_fill(~own[:, None], -torch.inf).amax((1, 2), keepdim=True)
        return Padded((torch.maximum(mel, top - RANGE) + 4.0) / 4.0, counts)

    def _enter(self, inputs: Padded) -> Padded:
        samples, most = longest(inputs.lengths, inputs.data.shape[1]), self.most_frames * HOP
        if samples >= most + HOP:  # up to one frame more is cut off: rounding of durations
            seconds = samples * self.frame_shift / (CONV_STRIDE * HOP)
            raise ValueError(
                f"an utterance has {seconds:.1f} seconds: encoder {self.name} reads at most "
                f"{self.max_seconds:g}; cut it into windows, or lower data.max_seconds in training"
            )
        lengths = both(lambda n: n.clamp(max=most), inputs.lengths)
        inputs = Padded(inputs.data[:, : min(samples, most)], lengths)
        with torch.autocast(inputs.data.device.type, enabled=False):  # powers span 16 decades
            mel, counts = self.log_mel(inputs)
        x = gelu(self.model.conv2(gelu(self.model.conv1(mel)))).transpose(1, 2)
        lengths = both(lambda n: (n + 1) // 2, counts)
        if not self.config.pad_to_30s:
            x = x[:, : max(1, longest(lengths, x.shape[1]))]
        x = x + self.model.embed_positions.weight[: x.shape[1]]
        x = nn.functional.dropout(x, self.config.dropout, self.model.training)
        return Padded(self._mask(x, lengths), lengths)

    def _layers(self, frames: Padded) -> list[Tensor]:
        x, lengths = frames
        visible = None if self.config.pad_to_30s else visible_keys(lengths, x.shape[1])
        if visible is not None:
            visible = visible[:, None, None, :]  # (B, 1, 1, S)

        def call(index: int, layer: nn.Module, x: Tensor) -> Tensor:
            x = layer(x, visible)
            return x[0] if isinstance(x, tuple) else x

        outputs = self._run(self.model.layers, x, call)
        outputs = [*outputs[:-1], self.model.layer_norm(outputs[-1])]
        return [output[:, : max(1, longest(lengths, output.shape[1]))] for output in outputs]


def mel_filters(bins: int) -> Tensor:
    """(F, 201): triangular filters of area 1 on Slaney's mel scale, up to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        WINDOW // 2 + 1, bins, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney"
    )
    return torch.tensor(filters.T, dtype=torch.float32)


def _model(name: str, config: WhisperConfig) -> nn.Module:
    """The encoder of `transformers`."""
    transformers(name)
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    model = build_network(
        WhisperEncoder,
        config,
        _SHAPE,
        _SIZES,
        from_scratch=partial(_of_size, WhisperEncoder.config_class),
        configured=partial(_configured, config=config),
        key_mapping={r"^(model\.)?encoder\.": ""},
    )
    if isinstance(config.layer, int):
        model.layer_norm = nn.Identity()
    # the table holds sinusoids, which are never trained: a buffer instead of a parameter
    table = model.embed_positions.weight.detach()
    del model.embed_positions.weight
    model.embed_positions.register_buffer("weight", table)
    return model


def _of_size(kind: type, size: str) -> object:
    return kind(**dict(zip((*_SHAPE, "num_mel_bins"), _SIZES[size], strict=True)))


def _configured(settings: object, config: WhisperConfig) -> object:
    """Layers and dropouts as configured; the layer drop of `transformers` is switched off."""
    settings.encoder_layers = config.num_layers(settings.encoder_layers)
    settings.dropout, settings.attention_dropout = config.dropout, config.attention_dropout
    settings.activation_dropout, settings.encoder_layerdrop = config.activation_dropout, 0.0
    return settings
