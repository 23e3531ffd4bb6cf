"""Blank-regularized CTC (arXiv 2305.11558): fewer frames repeat a token, so more are blank.

CTC lets a token last for many frames. Here each frame that repeats the one before costs
`penalty` nats (the paper's soft restriction), and a run has at most `longest` frames (its hard
one). With tokens y_1 ... y_U, frames t = 1 ... T and the penalty d,

    P_u(t) = sum over s <= t of (log p_s(y_u) - d),   E(t) = sum over s <= t of log p_s(blank)
    A_u(t): logarithm of the sum of all paths that end in token u at frame t
    Z_u(t): the same for those that end in a blank behind token u

    N_u(s) = log( e^Z_{u-1}(s) + e^A_{u-1}(s) ),       without A if y_u = y_{u-1}              (1)
    A_u(t) = P_u(t) + log sum over t - longest <= s < t of  exp( N_u(s) - P_u(s) + d )         (2)
    Z_u(t) = E(t) + log sum over s < t of  exp( A_u(s) - E(s) )                                (3)
    loss   = -log( e^Z_U(T) + e^A_U(T) )

In (2), token u begins at frame s + 1, and a run of r frames has r - 1 repeats. Z_0(t) = E(t). (2)
and (3) are cumulative sums over frames, so the loop is over tokens. Without a penalty and a limit
the loss is that of CTC. It is no longer the logarithm of a probability of the text, but an upper
bound of CTC's. The paper applies it to the CTC head that decides which frames a transducer skips;
here, to that which selects key frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from asrtool.types import Padded

# the logarithm of 0, finite because inf - inf would be NaN
IMPOSSIBLE = -1e9


def blank_regularized_ctc(
    log_probs: Tensor,
    lengths: Tensor,
    targets: Padded,
    blank: int = 0,
    penalty: float = 0.0,
    longest: int | None = None,
) -> Tensor:
    """log_probs (B, T, V), lengths (B,), targets (B, U) -> losses (B,) in nats, float64.

    penalty: nats for each frame that repeats a token; longest: frames of a run, None for any
    number. A text that needs more frames than there are costs about 1e9.
    """
    # float64: the sums of (2) and (3) are differences of numbers that grow with the frames
    log_probs = log_probs.double().clamp(min=IMPOSSIBLE)
    tokens = targets.data.masked_fill(~targets.mask, blank)
    heard = log_probs.gather(2, tokens[:, None].expand(-1, log_probs.shape[1], -1))  # (B, T, U)
    # (B, T + 1): column t belongs to the end of frame t, column 0 to the start
    runs = pad((heard - penalty).cumsum(1), (0, 0, 1, 0)).unbind(2)
    blanks = pad(log_probs[:, :, blank].cumsum(1), (1, 0))
    before_blank, before_token = blanks, torch.full_like(blanks, IMPOSSIBLE)  # Z_0, A_0
    ends = [torch.logaddexp(before_blank, before_token)]
    for u, run in enumerate(runs):
        if u:
            repeated = (tokens[:, u] == tokens[:, u - 1])[:, None]
            before_token = before_token.masked_fill(repeated, IMPOSSIBLE)
        entered = torch.logaddexp(before_blank, before_token)  # (1)
        token = run + over_earlier(entered - run + penalty, longest)  # (2)
        before_blank = blanks + over_earlier(token - blanks)  # (3)
        before_token = token
        ends.append(torch.logaddexp(before_blank, before_token))
    # (B, U + 1, T + 1), at each utterance's last token and last frame
    totals = torch.stack(ends, 1).flatten(1)
    last = targets.lengths * blanks.shape[1] + lengths
    return -totals.gather(1, last[:, None]).squeeze(1)


def over_earlier(x: Tensor, longest: int | None = None) -> Tensor:
    """x (B, T + 1) -> (B, T + 1): log-sum-exp over the columns t - longest ... t - 1 of each t."""
    if longest is None:
        return pad(x[:, :-1].logcumsumexp(1), (1, 0), value=IMPOSSIBLE)
    return pad(x, (longest, -1), value=IMPOSSIBLE).unfold(1, longest, 1).logsumexp(2)
