"""What pre-trained encoders of `transformers` have in common: where the weights come from, which
layers are built and come out, what of them is trained, masks and dropouts.

`layer` chooses the frames x (B, S, D) that come out:

    null    x = norm(h_L)               the last layer, with its final norm if the network has one
    n       x = h_n                     the n-th of L layers; those after it are not built
    sum     x = sum_l softmax(w)_l h_l  all of them, as SUPERB (arXiv 2105.01051) weights them; w is
                                        learned, h_L has its final norm

`tuning` says what is trained: everything (full), low-rank adapters (lora), or nothing (frozen).
What is frozen runs as in evaluation, without dropout or layer drop, in float32 and without a
gradient; masks are put on the frames that come out. Its output is rounded to float16, so that
frames that are stored give the numbers of those that are computed: `stored` is what can be written
down, `from_stored` what is left to do.
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
from asrtool.encoders.base import ENCODERS, Encoder, Source
from asrtool.encoders.echo import ATTENTIONS, NEW, wrap
from asrtool.nn.layer_drop import drops, without
from asrtool.nn.masks import span_mask, valid_mask
from asrtool.registry import OMIT
from asrtool.tuning import EncoderTuning
from asrtool.types import EncoderOutput, Padded

HALF = torch.finfo(torch.float16)


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """Weights, layers, tuning, masks and dropouts."""

    # hub name or local folder of a `transformers` model; null: from scratch
    weights: str | None = None
    revision: str | None = None  # of the hub's model: a commit, tag or branch
    size: str | None = None  # null: what the config.json of the weights says
    # which frames come out: null: the last layer's, with the final norm; n: the n-th layer's, and
    # no later one is built; sum: of all layers, with learned weights
    layer: int | Literal["sum"] | None = field(default=None, metadata=OMIT)
    # frozen, lora or full, or all settings of LoRA
    tuning: EncoderTuning = field(default=EncoderTuning(mode="full"), metadata=OMIT)
    # put around the attention of the layers; null: theirs alone
    attention: Annotated[object, ATTENTIONS] | None = None
    # share of frames in masked spans, before overlaps, of what enters the layers, or of what comes
    # out of frozen ones; 0: none
    time_mask: float = 0.0
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
        if isinstance(self.layer, int) and self.layer < 1:
            raise ValueError(f"layer is {self.layer}: layers count from 1")
        if self.attention is not None and self.tuning.mode == "frozen":
            raise ValueError(
                "attention adds weights that must be trained, and tuning: frozen trains none; take "
                "tuning: lora or full"
            )

    def num_layers(self, available: int) -> int:
        """How many of the layers that the network has are built."""
        if not isinstance(self.layer, int):
            return available
        if self.layer > available:
            raise ValueError(f"layer is {self.layer}: the encoder has {available} layers")
        return self.layer


class PretrainedEncoder(Encoder):
    """Samples (B, T) -> frames (B, S, D).

    `model` is the network of `transformers`; its parameters keep their names. A subclass builds it
    (`_build`), makes of samples what enters the layers (`_enter`), and runs them (`_layers`).
    """

    reads_samples = True
    attention_name = "attention"  # of a layer: what `attention` is put around
    rate: int | None = None  # Hz of the samples, where its filters are made for one rate

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
        if self.rate is not None and abs(frame_shift * self.rate - 1) > 1e-6:
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
        new = NEW if config.attention is not None else ()
        still = tuning.apply(config.tuning, self.model, f"encoder {self.name}", new)
        self.frozen = frozenset(f"model.{key}" for key in still)
        for key, value in self.named_parameters():
            if key in self.frozen:
                value.requires_grad_(False)
        if config.weights is not None and self.frozen:
            # buffers never change either, such as a table of sinusoids
            buffers = self.model.state_dict().keys() - dict(self.model.named_parameters()).keys()
            fixed = (f"model.{key}" for key in buffers if not tuning.is_in(key, NEW))
            self.pretrained = self.frozen | frozenset(fixed)
            self.sources = (Source("", config.weights, config.revision),)
        self.final_dropout = nn.Dropout(config.final_dropout)
        self.train(self.training)  # `transformers` gives weights in evaluation mode

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network, with its weights or random ones, and the layers that `config.layer` needs.

        Without a final norm where `config.layer` is a number.
        """

    @abstractmethod
    def _enter(self, inputs: Padded) -> Padded:
        """Samples (B, T) -> what enters the layers, (B, S, D) with any numbers in the padding."""

    @abstractmethod
    def _layers(self, frames: Padded) -> list[Tensor]:
        """(B, S, D) -> outputs (B, S, D): of each layer where `config.layer` is sum, else of the
        last one.
        """

    def _layer_list(self) -> nn.ModuleList:
        return self.model.encoder.layers

    def train(self, mode: bool = True) -> PretrainedEncoder:
        super().train(mode)
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
        with torch.autocast(inputs.data.device.type, enabled=False):
            outputs, lengths = self._outputs(inputs)
        data = torch.cat(outputs, -1)
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
        """Outputs (B, S, D) of the layers that are asked for, and lengths (B,)."""
        frames = self._enter(inputs)
        return self._layers(frames), frames.lengths

    def _leave(self, outputs: Sequence[Tensor], lengths: Tensor) -> EncoderOutput:
        """The frames that come out, 0 in the padding."""
        x = outputs[0]
        if self.layer_weights is not None:
            weights = self.layer_weights.softmax(0)
            x = sum(weight * output for weight, output in zip(weights, outputs, strict=True))
        if self.is_frozen and self.training:
            x = self._spans(x, lengths)
        x = self.final_dropout(x)
        x = x.masked_fill(~valid_mask(lengths, x.shape[1])[:, :, None], 0)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        return EncoderOutput(frames=Padded(x, lengths), positions=positions)

    # -- for the layers of a subclass ----------------------------------------

    def _mask(self, x: Tensor, lengths: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Training: spans of frames become `embedding` (D,), or 0, spans of channels 0; x (B, S,
        D).

        This is the SpecAugment of fairseq.
        """
        if not self.model.training:
            return x
        if embedding is not None:
            embedding = embedding.to(x.dtype)
            # the vector needs a gradient, even 0, where no span is drawn: DDP waits for it
            x = x + 0 * embedding.sum()
        return self._spans(x, lengths, embedding)

    def _spans(self, x: Tensor, lengths: Tensor, embedding: Tensor | None = None) -> Tensor:
        config = self.config
        if config.time_mask:
            spans = span_mask(lengths, x.shape[1], config.time_mask, config.time_mask_length)
            to = x.new_zeros(()) if embedding is None else embedding
            x = torch.where(spans[:, :, None], to, x)
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
        """x (B, S, D) through the layers, each as `call(index, layer, x)`, some left out in
        training but those of `always` -> what `_layers` gives, without a final norm.
        """
        outputs = []
        for index, layer in enumerate(layers):
            # drawn for each layer, so that `always` moves no other choice
            left_out = self.model.training and drops(self.config.layer_drop)
            x = without(layer, x) if left_out and index not in always else call(index, layer, x)
            if self.layer_weights is not None:
                outputs.append(x)
        return outputs or [x]


def longest(lengths: Tensor, size: int) -> int:
    """The length of the longest row; `size`, that of all with padding, in an exported graph, whose
    shapes cannot depend on numbers.
    """
    return size if torch.compiler.is_compiling() else int(lengths.max())


def visible_keys(lengths: Tensor, size: int) -> Tensor | None:
    """(B, size), True for keys that attention sees; None where all of them are.

    An empty row sees its first frame: softmax over no key would be NaN.
    """
    # without padding no mask is needed, and attention is faster; on a GPU the answer would have to
    # be waited for, and an exported graph cannot depend on it
    waits = lengths.device.type != "cpu" or torch.compiler.is_compiling()
    if not waits and bool((lengths >= size).all()):
        return None
    return valid_mask(lengths.clamp(min=1), size)


def transformers(name: str) -> object:
    """The package `transformers`, for the encoder of that name."""
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
    """The network of class `kind`: with the weights of `config`, with random ones of its size, or
    on the meta device its shape alone.

    shape: what the settings of `transformers` call width, layers, heads and feed-forward width,
    with which the rows of `sizes` begin. from_scratch: size -> settings. configured: settings ->
    settings, with what `config` changes. options: of `read_weights`.
    """
    if shapes_only(config):
        return kind(configured(from_scratch(config.size)))
    name = ENCODERS.name_of(config)
    settings = read_settings(kind.config_class, name, config)
    found = tuple(getattr(settings, key) for key in shape)
    if config.size is not None and found != sizes[config.size][: len(shape)]:
        raise ValueError(
            f"weights {config.weights}: width, layers, heads, feed-forward width are {found}; "
            f"size: {config.size} means {sizes[config.size][: len(shape)]}"
        )
    settings = configured(settings)
    return (
        kind(settings)
        if tuning.on_meta()
        else read_weights(kind, name, config, settings, **options)
    )


def shapes_only(config: PretrainedConfig) -> bool:
    """Whether modules are built without weights, and the size is known without looking for any:
    nothing is downloaded for shapes.
    """
    if config.weights is None:
        return True
    return tuning.on_meta() and config.size is not None and not Path(config.weights).is_dir()


def read_settings(kind: type, name: str, config: PretrainedConfig) -> object:
    """The config.json of the weights, of the class `kind`."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(config.weights, revision=config.revision or "main")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"weights {config.weights}: neither a folder with the config.json of a `transformers` "
            f"model nor a name that the hub knows ({str(error).strip().splitlines()[0]})"
        ) from error
    if not isinstance(settings, kind):
        raise ValueError(
            f"weights {config.weights} hold a model of type '{settings.model_type}', not {name}"
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
    """The network of class `kind` with the weights of the hub or a folder in float32.

    optional: names of parameters that may be missing, and get random numbers.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it lists every tensor that is not read, such as a decoder's
    try:
        model, info = kind.from_pretrained(
            config.weights,
            revision=config.revision or "main",
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
            f"weights {config.weights}: {len(missing)} tensors of {name} are missing: {missing[:5]}"
        )
    return model
