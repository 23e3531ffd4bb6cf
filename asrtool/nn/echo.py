"""Echo-MSA and the dual focus gate (Echotune, arXiv 2309.07765).

Windowed attention beside a layer's own attention:

    O1 = the layer's attention over the utterance
    O2 = attention of each frame over a window W_tau around it, heads and widths as in O1
    g  = sigmoid(W2 GELU(W1 x + b1) + b2)
    y  = g O1 + (1 - g) O2

The paper draws the parts, and gives no equation for the window, the layers of the gate or its
initialisation. Our choices are explained where they are made, and each is a setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from asrtool.nn.attention import KeyValue
from asrtool.nn.conformer import Memory
from asrtool.nn.positions import rotate, rotations
from asrtool.nn.rows import PerRow
from asrtool.nn.windows import adaptive_attention, streamed_attention, windowed_attention

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
# standard deviation of weights that start near 0; exactly 0 would pass no gradient to the layers
# before
_SMALL = 1e-3
EXTREME_GATE = 0.05  # a gate closer than this to 0 or 1 counts as extreme
EXTREME_SPAN = 1.0  # frames; likewise a span closer than this to 0 or to half of the window


class RunningStatistics:
    """Mean, standard deviation and share of extreme values of a module's outputs in evaluation."""

    def __init__(self) -> None:
        self._count = self._sum = self._squares = self._extreme = 0.0

    def add(self, values: Tensor, valid: Tensor, low: float, high: float) -> None:
        """values (B, T, C), valid (B, T); extreme: below `low` or above `high`.

        Sums stay on the device, so that nothing waits for a GPU.
        """
        values = values.detach().double()
        inside = valid[:, :, None]
        self._count = self._count + valid.sum() * values.shape[-1]
        self._sum = self._sum + (values * inside).sum()
        self._squares = self._squares + (values.square() * inside).sum()
        self._extreme = self._extreme + (((values < low) | (values > high)) & inside).sum()

    def pop(self) -> dict[str, float] | None:
        """The statistics since the last call, or None without any values."""
        count = float(self._count)
        if not count:
            return None
        mean = float(self._sum) / count
        deviation = max(0.0, float(self._squares) / count - mean * mean) ** 0.5
        statistics = {"mean": mean, "deviation": deviation, "extreme": float(self._extreme) / count}
        self.__init__()
        return statistics


class DualFocusGate(nn.Module):
    """The share in (0, 1) of the layer's own attention: g (B, T, 1), or (B, T, D) per channel.

    By default one number per frame, since the paper's gate weighs two kinds of attention, not
    channels. It starts at sigmoid(2) = 0.88: close to the pre-trained model, yet with a gradient.
    `fixed` makes it a constant.
    """

    def __init__(
        self, dim: int, *, per_channel: bool, from_outputs: bool, bias: float, fixed: float | None
    ) -> None:
        super().__init__()
        self.fixed = fixed
        self.from_outputs = from_outputs
        self.statistics = RunningStatistics()
        if fixed is None:
            self.hidden = nn.Linear(2 * dim if from_outputs else dim, max(1, dim // 4))
            self.out = nn.Linear(max(1, dim // 4), dim if per_channel else 1)
            nn.init.normal_(self.out.weight, std=_SMALL)
            nn.init.constant_(self.out.bias, bias)

    def forward(self, x: Tensor, full: Tensor, windowed: Tensor, valid: Tensor) -> Tensor:
        """The layer's input x and the two outputs (B, T, D), valid (B, T) -> g."""
        if self.fixed is not None:
            gate = x.new_full((1, 1, 1), self.fixed).expand(*x.shape[:2], 1)
        else:
            seen = torch.cat([full, windowed], dim=-1) if self.from_outputs else x
            gate = torch.sigmoid(self.out(nn.functional.gelu(self.hidden(seen))))
        if not self.training:
            self.statistics.add(gate, valid, EXTREME_GATE, 1 - EXTREME_GATE)
        return gate

    def observed(self) -> dict[str, float] | None:
        return self.statistics.pop()


class Spans(nn.Module):
    """The span z of each frame and head, in frames (arXiv 1905.07799, section 2.2).

        z = (Z + R - 1) sigmoid(u x + c) - (R - 1),  Z = k / 2, or k for windows that look back only

    for the largest window k and the ramp R over which weights fade: z goes from 1 - R, the frame
    alone, to Z, the whole window. Adaptive Attention Span learns one span per head, starting at 0.
    This one depends on the frame, because Echotune's window adjusts to its input, and starts near
    the largest.
    """

    def __init__(
        self, dim: int, num_heads: int, window: int, ramp: float, bias: float, back: bool = False
    ) -> None:
        super().__init__()
        self.window, self.ramp = window, max(1.0, ramp * window)
        self.farthest = window if back else window / 2  # Z
        self.predict = nn.Linear(dim, num_heads)
        self.statistics = RunningStatistics()
        nn.init.normal_(self.predict.weight, std=_SMALL)
        nn.init.constant_(self.predict.bias, bias)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (B, T, D), valid (B, T) -> (B, H, T) in float32, also under autocast: the steps of
        bfloat16 near 64 frames are a quarter of a frame.
        """
        with torch.autocast(x.device.type, enabled=False):
            share = torch.sigmoid(self.predict(x.to(self.predict.weight.dtype)))
        spans = (self.farthest + self.ramp - 1) * share - (self.ramp - 1)
        if not self.training:
            self.statistics.add(spans, valid, EXTREME_SPAN, self.farthest - EXTREME_SPAN)
        return spans.transpose(1, 2)

    def observed(self) -> dict[str, float] | None:
        return self.statistics.pop()


@dataclass(frozen=True)
class EchoCache(PerRow):
    """The state between two pieces of a stream.

    The widest window decides how many frames `near` holds, however few chunks the layer's own
    attention sees.
    """

    full: KeyValue  # of the layer's own attention
    near: KeyValue  # of the windowed branch: right-aligned, without positions
    frames: Memory  # of `near`

    def gather(self, index: Tensor | slice) -> EchoCache:
        """Keep these keys of the layer's own attention; the windows keep what they need."""
        return replace(self, full=self.full.gather(index))


class EchoMsa(nn.Module):
    """Windowed attention with its own projections, or those of the layer's own attention.

    windows: one for all heads, or one for each group of heads; back: they end at the frame. This
    branch has no attention dropout and no relative position bias (WavLM): the window itself encodes
    distance.
    """

    def __init__(
        self,
        num_heads: int,
        windows: Sequence[int],
        *,
        own: Mapping[str, nn.Linear] | None,
        spans: Spans | None,
        back: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        # number of heads per window; sizes differ by at most one if they do not divide evenly
        self.groups = [len(part) for part in torch.arange(num_heads).tensor_split(len(windows))]
        self.windows = tuple(windows)
        self.spans = spans
        self.back = back
        self.own = own is not None
        for name in PROJECTIONS if self.own else ():
            self.add_module(name, own[name])

    def forward(
        self,
        x: Tensor,
        valid: Tensor,
        shared: Mapping[str, nn.Linear],
        rotary: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """x (B, T, D), valid (B, T) -> (B, T, D).

        shared: the projections of the layer's own attention; rotary: rotates queries and keys
        (B, H, T, D / H) by their positions.
        """
        projections = self._projections(shared)
        query, key, value = self._heads(x, projections)
        if rotary is not None:
            query, key = rotary(query).to(value.dtype), rotary(key).to(value.dtype)
        heads = self._attend(x, query, key, value, valid)
        return projections["o_proj"](heads.transpose(1, 2).flatten(2))

    def init_cache(self, full: KeyValue) -> EchoCache:
        """full: the empty cache of the layer's own attention."""
        return EchoCache(full, full, Memory.empty(len(full.key), full.key.device))

    def forward_chunk(
        self,
        x: Tensor,
        frames: Memory,
        shared: Mapping[str, nn.Linear],
        cache: EchoCache,
        num_frequencies: int | None,
    ) -> tuple[Tensor, EchoCache]:
        """The next piece x (B, S, D) of a stream -> (B, S, D), the next cache; for `back` only.

        num_frequencies: of rotary positions; None: there are none.
        """
        projections = self._projections(shared)
        query, key, value = self._heads(x, projections)
        near, known = cache.near.append(KeyValue(key, value)), cache.frames.append(frames)
        key = near.key
        if num_frequencies is not None:
            # counted from the first frame of this piece, as in the layer's own attention
            angles = rotations(known.positions - frames.positions[:, :1], num_frequencies)
            query = rotate(query, angles[:, :, angles.shape[2] - x.shape[1] :]).to(value.dtype)
            key = rotate(key, angles).to(value.dtype)
        heads = self._attend_back(x, query, key, near.value, known.valid, frames.valid)
        # all valid keys, right-aligned; the next query needs the window - 1 frames before it
        keep = known.keep(1, None, most=max(self.windows) - 1)
        cache = EchoCache(cache.full, near.gather(keep), known.gather(keep))
        return projections["o_proj"](heads.transpose(1, 2).flatten(2)), cache

    def _projections(self, shared: Mapping[str, nn.Linear]) -> Mapping[str, nn.Linear]:
        return {name: getattr(self, name) for name in PROJECTIONS} if self.own else shared

    def _heads(self, x: Tensor, projections: Mapping[str, nn.Linear]) -> tuple[Tensor, ...]:
        """x (B, T, D) -> query, key and value (B, H, T, D / H)."""
        return tuple(
            projections[name](x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for name in PROJECTIONS[:3]
        )

    def _attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, valid: Tensor
    ) -> Tensor:
        lengths = valid.sum(1)
        if self.spans is not None:
            spans = self.spans(x, valid)
            return adaptive_attention(
                query, key, value, lengths, self.windows[0], spans, self.spans.ramp, self.back
            )
        groups = self._groups(query, key, value)
        parts = [windowed_attention(q, k, v, lengths, w, self.back) for q, k, v, w in groups]
        return torch.cat(parts, dim=1)

    def _attend_back(
        self,
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        known: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """`_attend` for a piece of a stream; known (B, K): valid keys, valid (B, S): queries."""
        if self.spans is not None:
            settings = (self.windows[0], self.spans(x, valid), self.spans.ramp)
            return streamed_attention(query, key, value, known, *settings)
        groups = self._groups(query, key, value)
        return torch.cat([streamed_attention(q, k, v, known, w) for q, k, v, w in groups], dim=1)

    def _groups(self, *parts: Tensor) -> Iterator[tuple]:
        """Split parts (B, H, T, D / H) into groups of heads, each with its window."""
        return zip(*(part.split(self.groups, dim=1) for part in parts), self.windows, strict=True)
