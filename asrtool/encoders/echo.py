"""`attention: {type: echo}`: Echo-MSA in the layers of pre-trained encoders and the Conformer.

The parts are in asrtool/nn/echo.py. Everything that the paper leaves open is a setting, explained
there or here:

* `mode`. adaptive: the summary of the paper says that the window adjusts to each time step, so its
  size is predicted, up to the given one. single: one size, as in the paper's ablation of kernel
  sizes. heads, layers: "multi-scale", within a layer or over depth.
* `projections`: copied from the layer's own attention, so that the branch starts as a windowed
  version of it.

Parameter names: a layer's own attention moves to `attention.full.*`; `attention.echo.*` and
`attention.gate.*` are new.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from asrtool.nn.attention import KeyValue, RotarySelfAttention, SelfAttention
from asrtool.nn.conformer import NewFrames
from asrtool.nn.echo import PROJECTIONS, DualFocusGate, EchoCache, EchoMsa, Spans
from asrtool.nn.masks import valid_mask
from asrtool.nn.positions import rotate
from asrtool.registry import Registry

ATTENTIONS: Registry[nn.Module] = Registry("attention")
NEW = ("echo", "gate")  # names of the submodules that it adds to a layer
# our name of each projection -> its names in the wrapped attention: ours, those of most models of
# `transformers`, those of wav2vec2-bert
_NAMES = {
    "q_proj": ("q_proj", "linear_q"),
    "k_proj": ("k_proj", "linear_k"),
    "v_proj": ("v_proj", "linear_v"),
    "o_proj": ("o_proj", "out_proj", "linear_out"),
}


@dataclass(frozen=True, kw_only=True)
class EchoConfig:
    """Echo-MSA and the dual focus gate (arXiv 2309.07765)."""

    mode: Literal["adaptive", "single", "heads", "layers"] = "adaptive"
    # frames; heads, layers: one for each group, e.g. [4, 16, 64, 256]
    windows: tuple[int, ...] = (64,)
    # both: the window is centred on a frame; back: it ends there, so a causal Conformer can stream
    look: Literal["both", "back"] = "both"
    projections: Literal["copy", "shared", "fresh"] = "copy"
    layers: tuple[int, ...] | None = None  # layers that get it, counted from 0; null: all
    gate: Literal["frame", "channel"] = "frame"  # one number a frame, or one for each channel
    gate_input: Literal["input", "outputs"] = "input"  # the layer's input x, or [O1; O2]
    gate_bias: float = 2.0  # initially sigmoid(2) = 0.88 of the layer's own attention
    # a constant share instead of a learned gate; 1: the layer's own attention alone, 0: windows
    # alone
    gate_fixed: float | None = None
    ramp: float = 0.125  # adaptive: weights fade over this share of the window, at least a frame
    span_bias: float = 2.0  # adaptive: initial windows are about sigmoid(2) = 0.88 of the largest

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1:
            raise ValueError(f"windows must be at least 1 frame each, got {list(self.windows)}")
        if self.mode in ("adaptive", "single") and len(self.windows) != 1:
            raise ValueError(f"mode: {self.mode} takes one window, got {list(self.windows)}")
        if self.gate_fixed is not None and not 0 <= self.gate_fixed <= 1:
            raise ValueError(f"gate_fixed must be between 0 and 1, got {self.gate_fixed}")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp must be above 0 and at most 1, got {self.ramp}")


@ATTENTIONS.register("echo", EchoConfig)
class EchoAttention(nn.Module):
    """Echo-MSA around one attention module of `transformers`, called like the module itself.

    Built by `ATTENTIONS.build(config, full=attention, index=layer, num_layers=L)`.
    """

    def __init__(self, config: EchoConfig, *, full: nn.Module, index: int, num_layers: int) -> None:
        super().__init__()
        self.full = full
        self.num_heads = full.num_heads
        projections = self._projections()
        dim = projections["q_proj"].in_features
        windows = _windows(config, self.num_heads, index, num_layers)
        own = None
        if config.projections != "shared":
            # deep copies, whether reinitialised or not: they keep the type and the device of a
            # pre-trained network's linears
            own = {name: copy.deepcopy(linear) for name, linear in projections.items()}
            for linear in own.values() if config.projections == "fresh" else ():
                nn.init.xavier_uniform_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        spans = None
        if config.mode == "adaptive":
            settings = (config.ramp, config.span_bias, config.look == "back")
            spans = Spans(dim, self.num_heads, windows[0], *settings)
        self.echo = EchoMsa(
            self.num_heads, windows, own=own, spans=spans, back=config.look == "back"
        )
        self.gate = DualFocusGate(
            dim,
            per_channel=config.gate == "channel",
            from_outputs=config.gate_input == "outputs",
            bias=config.gate_bias,
            fixed=config.gate_fixed,
        )

    def _projections(self) -> Mapping[str, nn.Linear]:
        """The projections of the wrapped attention, by our names."""
        return {
            name: next(getattr(self.full, key) for key in _NAMES[name] if hasattr(self.full, key))
            for name in PROJECTIONS
        }

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **options: object
    ) -> tuple:
        """Like the wrapped attention: (B, T, D) -> (B, T, D) and whatever else that returns."""
        full, *others = self.full(hidden_states, attention_mask=attention_mask, **options)
        valid = valid_mask(_lengths(attention_mask, hidden_states), hidden_states.shape[1])
        windowed = self.echo(hidden_states, valid, self._projections())
        return self._mix(hidden_states, full, windowed, valid), *others

    def _mix(self, x: Tensor, full: Tensor, windowed: Tensor, valid: Tensor) -> Tensor:
        """x, full, windowed (B, T, D), valid (B, T) -> g full + (1 - g) windowed (B, T, D).

        A gate of 1 gives `full` exactly.
        """
        # lerp(windowed, full, g) = windowed + g (full - windowed); torch computes it from the
        # nearer end, so g = 1 is exact
        windowed = windowed.to(full.dtype)
        return torch.lerp(windowed, full, self.gate(x, full, windowed, valid).to(full.dtype))


class EchoSelfAttention(EchoAttention):
    """Echo-MSA around an attention of the Conformer.

    With rotary positions, the windowed branch uses them too. It has no relative positions.
    """

    def __init__(
        self, config: EchoConfig, *, full: SelfAttention, index: int, num_layers: int
    ) -> None:
        super().__init__(config, full=full, index=index, num_layers=num_layers)
        self.num_frequencies = full.num_frequencies

    def split(self, x: Tensor) -> Tensor:
        return self.full.split(x)

    def init_cache(self, nothing: Tensor) -> EchoCache:
        return self.echo.init_cache(self.full.init_cache(nothing))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotations: Tensor,
        cache: EchoCache | None,
        frames: NewFrames,
    ) -> tuple[Tensor, KeyValue | EchoCache]:
        """As `SelfAttention.forward`; with a cache, windows must look back."""
        rotary = isinstance(self.full, RotarySelfAttention)
        if cache is None:
            full, seen = self.full(x, mask, rotations, None, frames)
            by_position = (lambda heads: rotate(heads, rotations)) if rotary else None
            windowed = self.echo(x, frames.valid, self._projections(), by_position)
        else:
            full, keys = self.full(x, mask, rotations, cache.full, frames)
            frequencies = self.num_frequencies if rotary else None
            windowed, seen = self.echo.forward_chunk(
                x, frames, self._projections(), replace(cache, full=keys), frequencies
            )
        return self._mix(x, full, windowed, frames.valid), seen


def echo_layers(config: EchoConfig, num_layers: int) -> tuple[int, ...]:
    """Indices of the layers that get Echo-MSA, out of `num_layers`."""
    chosen = range(num_layers) if config.layers is None else config.layers
    wrong = [index for index in chosen if not 0 <= index < num_layers]
    if wrong:
        raise ValueError(f"attention.layers: there is no layer {wrong[0]} among {num_layers}")
    return tuple(chosen)


def wrap(layers: nn.ModuleList, config: EchoConfig, name: str = "attention") -> None:
    """Wrap the attention of the layers of a `transformers` speech model in Echo-MSA, in place.

    name: the attribute of a layer that holds its attention.
    """
    for index in echo_layers(config, len(layers)):
        full = getattr(layers[index], name)
        echo = ATTENTIONS.build(config, full=full, index=index, num_layers=len(layers))
        setattr(layers[index], name, echo)


def _windows(config: EchoConfig, num_heads: int, index: int, num_layers: int) -> tuple[int, ...]:
    """The windows of layer `index`: one, or one for each group of heads."""
    if config.mode == "layers":
        return (config.windows[index * len(config.windows) // num_layers],)
    if config.mode == "heads" and len(config.windows) > num_heads:
        raise ValueError(f"mode: heads has {len(config.windows)} windows for {num_heads} heads")
    return config.windows


def _lengths(mask: Tensor | None, x: Tensor) -> Tensor:
    """Lengths (B,) from an attention mask (B, T) or (B, 1, 1 or T, T), bool or additive."""
    if mask is None:
        return torch.full(x.shape[:1], x.shape[1], device=x.device)
    # query 0 sees exactly the valid keys, since these attentions have no other structure
    keys = mask if mask.ndim == 2 else mask[:, 0, 0]
    # a (B, T) mask holds 1 for valid keys; an additive mask holds 0 for them, and negative numbers
    # elsewhere
    visible = keys if keys.dtype == torch.bool else keys > 0 if mask.ndim == 2 else keys >= 0
    return visible.sum(1).expand(len(x))
