"""Echo-MSA and the dual focus gate (Echotune, arXiv 2309.07765): windowed attention beside a
layer's own attention.

    O1 = the layer's attention over the utterance
    O2 = attention of each frame over a window W_tau around it, heads and widths as in O1
    g  = sigmoid(W2 GELU(W1 x + b1) + b2)
    y  = g O1 + (1 - g) O2

The paper names the parts and draws them; it gives no equation for the window, the gate's layers or
its start. What is read into it stands beside each choice, and each is a setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from asrtool.nn.windows import adaptive_attention, windowed_attention

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
# deviation of what must start near 0, yet not at it, where what lies before it would not learn
_SMALL = 1e-3


class RunningStatistics:
    """Mean, deviation and the share of extreme values of what a module computes in evaluation,
    since the last look.
    """

    def __init__(self) -> None:
        self._count = self._sum = self._squares = self._extreme = 0.0

    def add(self, values: Tensor, valid: Tensor, low: float, high: float) -> None:
        """values (B, T, C), valid (B, T); extreme: below `low` or above `high`. Nothing is waited
        for on a GPU.
        """
        values = values.detach().double()
        inside = valid[:, :, None]
        self._count = self._count + valid.sum() * values.shape[-1]
        self._sum = self._sum + (values * inside).sum()
        self._squares = self._squares + (values.square() * inside).sum()
        self._extreme = self._extreme + (((values < low) | (values > high)) & inside).sum()

    def pop(self) -> dict[str, float] | None:
        """The numbers so far, and begin anew; None where there are none."""
        count = float(self._count)
        if not count:
            return None
        mean = float(self._sum) / count
        deviation = max(0.0, float(self._squares) / count - mean * mean) ** 0.5
        statistics = {"mean": mean, "deviation": deviation, "extreme": float(self._extreme) / count}
        self.__init__()
        return statistics


class DualFocusGate(nn.Module):
    """g (B, T, 1), or (B, T, D) per channel, in (0, 1): how much of the layer's own attention a
    frame gets.

    One number a frame by default, for the paper's gate weighs two kinds of attention, not channels.
    It starts at sigmoid(2) = 0.88: near the pre-trained model, yet with a gradient. `fixed` puts a
    constant in its place.
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
        """Layer input and the two outputs, all (B, T, D); valid (B, T)."""
        if self.fixed is not None:
            gate = x.new_full((1, 1, 1), self.fixed).expand(*x.shape[:2], 1)
        else:
            seen = torch.cat([full, windowed], dim=-1) if self.from_outputs else x
            gate = torch.sigmoid(self.out(nn.functional.gelu(self.hidden(seen))))
        if not self.training:
            self.statistics.add(gate, valid, 0.05, 0.95)
        return gate

    def observed(self) -> dict[str, float] | None:
        return self.statistics.pop()


class Spans(nn.Module):
    """Each frame's and head's half-width z, in frames (Adaptive Attention Span, arXiv 1905.07799,
    section 2.2):

        z = (k / 2 + R - 1) sigmoid(u x + c) - (R - 1),  k the largest window, R the ramp over which
            weights fade

    from the frame alone to the whole window. The relative starts at 0 and learns one span a head;
    this one depends on the frame, as the paper's window adjusts to its input, and starts wide, near
    the fixed window.
    """

    def __init__(self, dim: int, num_heads: int, window: int, ramp: float, bias: float) -> None:
        super().__init__()
        self.window, self.ramp = window, max(1.0, ramp * window)
        self.predict = nn.Linear(dim, num_heads)
        self.statistics = RunningStatistics()
        nn.init.normal_(self.predict.weight, std=_SMALL)
        nn.init.constant_(self.predict.bias, bias)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (B, T, D) -> (B, H, T)."""
        spans = (self.window / 2 + self.ramp - 1) * torch.sigmoid(self.predict(x)) - (self.ramp - 1)
        if not self.training:
            self.statistics.add(spans, valid, 1.0, self.window / 2 - 1.0)
        return spans.transpose(1, 2)

    def observed(self) -> dict[str, float] | None:
        return self.statistics.pop()


class EchoMsa(nn.Module):
    """Windowed attention with projections of its own, or those of the attention it stands beside.

    windows: one for all heads, or one for each group of heads. Attention dropout and relative
    position biases (WavLM) are left out of this branch: a window says itself what is near.
    """

    def __init__(
        self,
        num_heads: int,
        windows: Sequence[int],
        *,
        own: Mapping[str, nn.Linear] | None,
        spans: Spans | None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.groups = [len(part) for part in torch.arange(num_heads).tensor_split(len(windows))]
        self.windows = tuple(windows)
        self.spans = spans
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
        """x (B, T, D) -> (B, T, D); `shared`: the other attention's projections; `place` turns
        queries and keys.
        """
        projections = {name: getattr(self, name) for name in PROJECTIONS} if self.own else shared
        query, key, value = (
            projections[name](x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for name in PROJECTIONS[:3]
        )
        if rotary is not None:
            query, key = rotary(query).to(value.dtype), rotary(key).to(value.dtype)
        heads = self._attend(x, query, key, value, valid)
        return projections["o_proj"](heads.transpose(1, 2).flatten(2))

    def _attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, valid: Tensor
    ) -> Tensor:
        lengths = valid.sum(1)
        if self.spans is not None:
            spans = self.spans(x, valid)
            return adaptive_attention(
                query, key, value, lengths, self.windows[0], spans, self.spans.ramp
            )
        groups = zip(
            *(part.split(self.groups, dim=1) for part in (query, key, value)),
            self.windows,
            strict=True,
        )
        return torch.cat(
            [windowed_attention(q, k, v, lengths, window) for q, k, v, window in groups], dim=1
        )
