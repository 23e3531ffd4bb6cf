"""The common part of pre-trained encoders from `transformers`: origin of the weights, choice of
layers, tuning, masks and dropout.

`layer` selects the frames x (B, S, D) that come out:

    null    x = norm(h_L)               the last layer, with its final norm if the network has one
    n       x = h_n                     the n-th of L layers; later ones are not built
    sum     x = sum_l softmax(w)_l h_l  all layers, weighted as in SUPERB (arXiv 2105.01051); w is
                                        learned, h_L has its final norm

`tuning` decides what is trained: everything (full), low-rank adapters (lora), or nothing (frozen).
A frozen network runs as in evaluation, in float32, without dropout, layer drop or a gradient; masks
apply to the frames that come out. Its output is rounded to float16, so that stored frames and
computed ones are the same numbers: `stored` is the part that can be written to disk, `from_stored`
the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from asrtool import torchaudio_adapter, tuning
from asrtool.encoders.base import ENCODERS, Encoder, EncoderConfig, Source
from asrtool.encoders.echo import ATTENTIONS, NEW, wrap
from asrtool.nn.layer_drop import drops, without
from asrtool.nn.masks import span_mask, valid_mask
from asrtool.nn.meta_device import on_meta
from asrtool.registry import OMIT, bounded
from asrtool.tuning import EncoderTuning
from asrtool.types import EncoderOutput, Padded, on_host

HALF = torch.finfo(torch.float16)
RATE_TOLERANCE = 1e-6  # relative; a frame shift of 1 / rate is not exact in binary


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig(EncoderConfig):
    """Weights, layers, tuning, masks and dropouts."""

    # hub name or local folder of a `transformers` model; null: from scratch
    weights: str | None = None
    revision: str | None = None  # of the hub's model: a commit, tag or branch
    size: str | None = None  # null: what the config.json of the weights says
    # null: frames of the last layer, with the final norm; n: of the n-th layer, and no later one is
    # built; sum: of all layers, with learned weights
    layer: int | Literal["sum"] | None = field(default=None, metadata=OMIT)
    # frozen, lora or full, or the full settings of LoRA
    tuning: EncoderTuning = field(default=EncoderTuning(mode="full"), metadata=OMIT)
    # wraps the attention of each layer; null: the layers as they are
    attention: Annotated[object, ATTENTIONS] | None = None
    # share of frames in masked spans, not counting overlaps: of the input of the layers, or of the
    # output of a frozen network; 0: no masks
    time_mask: float = bounded(0.0, least=0, below=1)
    time_mask_length: int = 10  # frames of a span
    channel_mask: float = bounded(0.0, least=0, below=1)  # likewise over channels
    channel_mask_length: int = 64
    # probability that a training step leaves a layer out
    layer_drop: float = bounded(0.0, least=0, below=1)
    dropout: float = bounded(0.0, least=0, below=1)  # of the residual branches
    attention_dropout: float = bounded(0.0, least=0, below=1)
    activation_dropout: float = bounded(0.0, least=0, below=1)  # inside the feed-forward network
    final_dropout: float = bounded(0.0, least=0, below=1)  # of the frames that come out

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
        if isinstance(self.layer, int) and self.layer < 1:
            raise ValueError(f"layer is {self.layer}: layers count from 1")
        if self.attention is not None and self.tuning.mode == "frozen":
            raise ValueError(
                "attention adds weights that must be trained, and tuning: frozen trains none; take "
                "tuning: lora or full"
            )

    def num_layers(self, available: int) -> int:
        """The number of layers to build. Raises `ValueError` if `layer` is not among them."""
        if not isinstance(self.layer, int):
            return available
        if self.layer > available:
            raise ValueError(f"layer is {self.layer}: the encoder has {available} layers")
        return self.layer


class PretrainedEncoder(Encoder):
    """Samples (B, T) -> frames (B, S, D).

    `model` is the network of `transformers`; its parameters keep their names. A subclass builds it
    (`_build`), computes the input of its layers from samples (`_enter`), and runs them (`_layers`).
    """

    reads_samples = True
    attention_name = "attention"  # attribute of a layer that `config.attention` wraps
    rate: int | None = None  # Hz of the samples, for networks with filters for one rate

    def __init__(
        self, config: PretrainedConfig, input_dim: int, vocab_size: int, frame_shift: float
    ) -> None:
        super().__init__()
        self.config, self.name = config, ENCODERS.name_of(config)
        if input_dim != 1:
            raise ValueError(
                f"encoder {self.name} reads samples, not {input_dim} bins of fbank: set "
                "data.input: waveform"
            )
        if self.rate is not None and abs(frame_shift * self.rate - 1) > RATE_TOLERANCE:
            raise ValueError(
                f"encoder {self.name} reads samples at {self.rate} Hz, got {1 / frame_shift:g} Hz: "
                f"set data.fbank.rate to {self.rate}; audio of other rates is resampled"
            )
        self.model = self._build()
        layers = self._layer_list()
        self.dim = self.model.config.hidden_size
        if config.attention is not None:
            wrap(layers, config.attention, self.attention_name)
        self.is_frozen = config.tuning.mode == "frozen"
        self.layer_weights = None
        if config.layer == "sum":
            self.layer_weights = nn.Parameter(torch.zeros(len(layers)))
        self.stored_dim = self.dim * (len(layers) if config.layer == "sum" else 1)
        # Echo-MSA is not pre-trained: LoRA leaves it alone, and it is trained whole
        new = NEW if config.attention is not None else ()
        frozen = tuning.apply(config.tuning, self.model, f"encoder {self.name}", new)
        self.frozen = frozenset(f"model.{key}" for key in frozen)
        for key, value in self.named_parameters():
            if key in self.frozen:
                value.requires_grad_(False)
        if config.weights is not None and self.frozen:
            # checkpoints leave out frozen parameters, and buffers such as a table of sinusoids,
            # which never change either
            buffers = self.model.state_dict().keys() - dict(self.model.named_parameters()).keys()
            fixed = (f"model.{key}" for key in buffers if not tuning.is_in(key, NEW))
            self.pretrained = self.frozen | frozenset(fixed)
            self.sources = (Source("", config.weights, config.revision),)
        self.final_dropout = nn.Dropout(config.final_dropout)
        self.train(self.training)  # `transformers` loads models in evaluation mode

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network with pre-trained or random weights and the layers that `config.layer` needs.

        If `config.layer` is a number, it has no final norm.
        """

    @abstractmethod
    def _enter(self, inputs: Padded) -> Padded:
        """Samples (B, T) -> input of the layers (B, S, D); the padding may hold any numbers."""

    @abstractmethod
    def _layers(self, frames: Padded) -> list[Tensor]:
        """(B, S, D) -> outputs (B, S, D) of every layer if `config.layer` is sum, else of the last
        one.
        """

    def _layer_list(self) -> nn.ModuleList:
        return self.model.encoder.layers

    def train(self, mode: bool = True) -> PretrainedEncoder:
        super().train(mode)
        # the trainer puts the whole model into training mode, but a frozen network stays in
        # evaluation
        if self.is_frozen:
            self.model.eval()
        return self

    def forward(self, inputs: Padded, chunk: int | None = None) -> EncoderOutput:
        if chunk is not None:
            raise ValueError(
                f"encoder {self.name} cannot stream: every frame sees the whole utterance"
            )
        if self.is_frozen:
            return self.from_stored(self.stored(inputs))
        return self._leave(*self._outputs(inputs))

    @torch.no_grad()
    def stored(self, inputs: Padded) -> Padded:
        if not self.is_frozen:
            raise ValueError(f"encoder {self.name} is trained: only frozen frames can be stored")
        # in float32 whatever the precision of training is: stored frames fit any of them
        with torch.autocast(inputs.data.device.type, enabled=False):
            outputs, lengths = self._outputs(inputs)
        data = torch.cat(outputs, -1)
        # rounded here too, so that frames from audio equal frames from disk
        data = data.clamp(HALF.min, HALF.max).half().to(data.dtype)
        return Padded(data.masked_fill(~valid_mask(lengths, data.shape[1])[:, :, None], 0), lengths)

    def from_stored(self, frames: Padded) -> EncoderOutput:
        if frames.data.shape[2] != self.stored_dim:
            raise ValueError(
                f"encoder {self.name} stores {self.stored_dim} numbers a frame, got "
                f"{frames.data.shape[2]}"
            )
        data = frames.data.to(next(self.model.parameters()).dtype)
        parts = data.split(self.dim, -1) if self.layer_weights is not None else (data,)
        return self._leave(parts, frames.lengths)

    def _outputs(self, inputs: Padded) -> tuple[list[Tensor], Tensor]:
        """Outputs (B, S, D) of the selected layers, and lengths (B,)."""
        frames = self._enter(inputs)
        return self._layers(frames), frames.lengths

    def _leave(self, outputs: Sequence[Tensor], lengths: Tensor) -> EncoderOutput:
        """Outputs (B, S, D) of the selected layers -> frames (B, S, D), 0 in the padding."""
        x = outputs[0]
        if self.layer_weights is not None:
            weights = self.layer_weights.softmax(0)
            x = sum(weight * output for weight, output in zip(weights, outputs, strict=True))
        # a trained network masks the input of its layers instead (`_mask`), as in pre-training
        if self.is_frozen and self.training:
            x = self._spans(x, lengths)
        x = self.final_dropout(x)
        x = x.masked_fill(~valid_mask(lengths, x.shape[1])[:, :, None], 0)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        return EncoderOutput(frames=Padded(x, lengths), positions=positions)

    # -- for the layers of a subclass ----------------------------------------

    def _mask(self, x: Tensor, lengths: Tensor, embedding: Tensor | None = None) -> Tensor:
        """In training, replace spans of frames of x (B, S, D) by `embedding` (D,) or 0, and spans
        of channels by 0: fairseq's form of SpecAugment.
        """
        if not self.model.training:
            return x
        if embedding is not None:
            embedding = embedding.to(x.dtype)
            # if no span is drawn, the vector still needs a gradient, of 0: DDP waits for it
            x = x + 0 * embedding.sum()
        return self._spans(x, lengths, embedding)

    def _spans(self, x: Tensor, lengths: Tensor, embedding: Tensor | None = None) -> Tensor:
        config = self.config
        if config.time_mask:
            spans = span_mask(lengths, x.shape[1], config.time_mask, config.time_mask_length)
            filler = x.new_zeros(()) if embedding is None else embedding
            x = torch.where(spans[:, :, None], filler, x)
        if config.channel_mask:
            channels = torch.full_like(lengths, x.shape[2])
            spans = span_mask(channels, x.shape[2], config.channel_mask, config.channel_mask_length)
            x = x.masked_fill(spans[:, None, :], 0)
        return x

    def _run(
        self,
        layers: Iterable[nn.Module],
        x: Tensor,
        call: Callable[[int, nn.Module, Tensor], Tensor],
        always: Container[int] = (),
    ) -> list[Tensor]:
        """x (B, S, D) -> the result of `_layers`, without a final norm.

        Each layer is called as `call(index, layer, x)`. Training leaves some out, except those in
        `always`.
        """
        outputs = []
        for index, layer in enumerate(layers):
            # drawn for every layer, so that `always` does not shift the draws of later ones
            left_out = self.model.training and drops(self.config.layer_drop)
            x = without(layer, x) if left_out and index not in always else call(index, layer, x)
            if self.layer_weights is not None:
                outputs.append(x)
        return outputs or [x]


def longest(lengths: Tensor, size: int) -> int:
    """The length of the longest row; `size`, that of all with padding, in an exported graph, whose
    shapes cannot depend on numbers.
    """
    if torch.compiler.is_compiling():
        return size
    known = on_host(lengths)
    return int((lengths if known is None else known).max())


def visible_keys(lengths: Tensor, size: int) -> Tensor | None:
    """lengths (B,) -> (B, size), True for keys that attention sees; None if it sees all.

    An empty row sees its first frame: softmax over no key would be NaN.
    """
    # Attention is faster without a mask. An exported graph cannot depend on whether there is
    # padding.
    known = None if torch.compiler.is_compiling() else on_host(lengths)
    if known is not None and bool((known >= size).all()):
        return None
    return valid_mask(lengths.clamp(min=1), size)


def transformers(name: str) -> object:
    """The package `transformers`; an `ImportError` names the encoder that needs it."""
    torchaudio_adapter.load()  # before transformers, which imports torchaudio
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"encoder {name} needs transformers: pip install 'asrtool[ssl]' ({error})"
        ) from error
    return transformers


def build_network(
    kind: type,
    config: PretrainedConfig,
    shape: Sequence[str],
    sizes: Mapping[str, tuple[int, ...]],
    *,
    from_scratch: Callable[[str], object],
    configured: Callable[[object], object],
    **options: object,
) -> nn.Module:
    """The network of class `kind` with the weights of `config`, or random ones if it has none; on
    the meta device its shape alone.

    shape: the names of width, layers, heads and feed-forward width in the settings of
    `transformers`, in the order of the first columns of `sizes`. from_scratch: size -> settings.
    configured: settings -> settings changed as `config` says. options: passed to `read_weights`.
    """
    # No weights to read, or only shapes are needed and the size tells them: no file is opened.
    if shapes_only(config):
        return kind(configured(from_scratch(config.size)))
    name = ENCODERS.name_of(config)
    settings = read_settings(kind.config_class, name, config)
    actual = tuple(getattr(settings, key) for key in shape)
    if config.size is not None and actual != sizes[config.size][: len(shape)]:
        raise ValueError(
            f"weights {config.weights}: width, layers, heads, feed-forward width are {actual}; "
            f"size: {config.size} means {sizes[config.size][: len(shape)]}; correct or remove size"
        )
    settings = configured(settings)
    return kind(settings) if on_meta() else read_weights(kind, name, config, settings, **options)


def shapes_only(config: PretrainedConfig) -> bool:
    """Whether the network can be built without reading any weights: it starts from scratch, or is
    built on the meta device with a known size, for which nothing is downloaded.
    """
    if config.weights is None:
        return True
    return on_meta() and config.size is not None and not Path(config.weights).is_dir()


def _place(config: PretrainedConfig) -> dict[str, object]:
    """Options of `from_pretrained` that say where to look: of a folder only in it."""
    return {
        "revision": config.revision or "main",
        "local_files_only": Path(config.weights).is_dir(),
    }


def read_settings(kind: type, name: str, config: PretrainedConfig) -> object:
    """The config.json of the weights. Raises `ValueError` unless it exists and is a `kind`."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(config.weights, **_place(config))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"encoder {name}: weights {config.weights} cannot be read "
            f"({str(error).strip().splitlines()[0]}); expected a folder with the config.json and "
            "the weights of a `transformers` model, or a model's name on the Hugging Face hub: "
            "correct weights, or download the model and give its folder"
        ) from error
    if not isinstance(settings, kind):
        raise ValueError(
            f"encoder {name}: weights {config.weights} hold a model of type "
            f"'{settings.model_type}'; take weights of {name}, or set the encoder's type"
        )
    return settings


def read_weights(
    kind: type,
    name: str,
    config: PretrainedConfig,
    settings: object,
    optional: tuple[str, ...] = (),
    **options: object,
) -> nn.Module:
    """The network of class `kind` with weights of the hub or of a folder, in float32.

    optional: names of parameters that may be missing; those start from random numbers. Raises
    `ValueError` for any other missing tensor.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    # by default it lists every tensor that is not used, such as all of a decoder's
    logging.set_verbosity_error()
    try:
        model, info = kind.from_pretrained(
            config.weights,
            **_place(config),
            config=settings,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(key for key in info["missing_keys"] if key not in optional)
    if missing:
        raise ValueError(
            f"encoder {name}: weights {config.weights} lack {len(missing)} of its tensors, such as "
            f"{', '.join(missing[:5])}; take the weights of a whole model"
        )
    return model
