"""CTC prefix probabilities as a `Scorer`, for one-pass joint CTC/attention search.

Watanabe et al., "Hybrid CTC/attention architecture for end-to-end speech recognition", IEEE JSTSP
2017, algorithm 2 (also arXiv 1609.06773). For a prefix g, with p_t(c) the CTC posterior of token c
in frame t:

    n_t(g), b_t(g)  probability that frames 1..t read g and end in its last token / in blank
    phi_t(g, c)   = b_t(g)                where c repeats the last token of g        (1)
                  = n_t(g) + b_t(g)       otherwise
    psi(g c)      = sum_t phi_{t-1}(g, c) p_t(c)               anything may follow   (2)
    n_t(g c)      = (n_{t-1}(g c) + phi_{t-1}(g, c)) p_t(c)                          (3)
    b_t(g c)      = (b_{t-1}(g c) + n_{t-1}(g c)) p_t(blank)                         (4)
    psi(g eos)    = n_S(g) + b_S(g)                            nothing follows       (5)

The score of extension c is log psi(g c) - log psi(g), so the probabilities of all extensions and
eos sum to 1. Two observations make it fast. (2) needs no recursion: it is a matrix product over
frames, so (3) and (4) are computed only for extensions that the search keeps. And (3) and (4) are
linear recurrences, which a cumulative sum in the log domain solves without a loop over frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, inf, log

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool.compiled import available, compiled, vectorised
from asrtool.searchers.base import SearchModel
from asrtool.searchers.ctc.kernel import log_add
from asrtool.types import EncoderOutput

# log 0 in cumulative sums, finite because inf - inf would be NaN; sums over real frames stay far
# above it
ZERO = -1e6
# smaller sums may have lost terms in float32: there, (2) is computed again in the log domain
SMALL = 1e-25
BLOCK = 1 << 22  # maximum number of elements of a temporary in that computation


@dataclass(frozen=True)
class CtcPrefixState:
    """The state of N prefixes. All beams share log_probs and probs, which are never copied."""

    log_probs: Tensor  # (B, V, S), -inf beyond the end
    probs: Tensor  # (B, V, S), 0 beyond the end
    lengths: Tensor  # (B,)
    utterance: Tensor  # (N,) the utterance of each row
    # (N, S) float64, log phi before each frame, for a token that differs from the last one
    other: Tensor
    repeat: Tensor  # (N, S) float64, log phi for a token that repeats it
    end: Tensor  # (N,) float64, log psi(g eos)
    score: Tensor  # (N,) float64, log psi(g)
    num_tokens: int


class CtcPrefixScorer:
    """Scores extensions by a CTC head; eos gets the probability that the prefix is the whole text.

    The head's output for the id of eos is ignored: eos is never a token of a prefix.
    """

    partial = True
    machine_code = True  # numba on CPU; otherwise torch computes the same

    def __init__(self, model: SearchModel, head: str = "ctc") -> None:
        self.model = model
        self.head = head

    def start(self, encoded: EncoderOutput, beam: int) -> CtcPrefixState:
        frames = self.model.log_probs(encoded, self.head)
        log_probs = frames.data.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        # frames of -inf add nothing to the sums of (2), which therefore need no lengths
        if bool((frames.lengths < log_probs.shape[2]).any()):
            log_probs.masked_fill_(~frames.mask[:, None], -inf)
        # The empty prefix has n_t = 0 and b_t = prod p(blank): (N, S + 1), with the value before
        # the first frame in front.
        blank = F.pad(log_probs[:, self.model.blank].double().cumsum(1), (1, 0)).repeat_interleave(
            beam, 0
        )
        utterance = torch.arange(len(log_probs), device=log_probs.device).repeat_interleave(beam)
        return CtcPrefixState(
            log_probs=log_probs,
            probs=log_probs.exp(),
            lengths=frames.lengths,
            utterance=utterance,
            other=blank[:, :-1],
            repeat=blank[:, :-1],
            end=blank.gather(1, frames.lengths[utterance][:, None])[:, 0],
            score=torch.zeros_like(blank[:, 0]),
            num_tokens=0,
        )

    def score(
        self, prefixes: Tensor, state: CtcPrefixState, candidates: Tensor | None
    ) -> tuple[Tensor, CtcPrefixState]:
        """prefixes (N, U) with sos -> float64 log-probabilities (N, K) or (N, V), state."""
        # The state is extended here and not in `select`: only now is the token of each row known.
        if prefixes.shape[1] - 1 > state.num_tokens:
            state = self._extend(prefixes, state)
        # (2) with the second line of (1) for all tokens, then with the first for the one token that
        # repeats the last
        last = prefixes[:, -1:]
        sums = _compiled_log_sums if self._compiles(last) else _log_sums
        extended = (sums if candidates is not None else _log_sums)(state, state.other, candidates)
        repeated = sums(state, state.repeat, last)
        if candidates is None:
            candidates = torch.arange(extended.shape[1], device=extended.device).expand_as(extended)
        extended = torch.where(candidates == last, repeated, extended)
        extended = torch.where(candidates == self.model.eos, state.end[:, None], extended)
        # a prefix without any path (too few frames) has no extension: -inf - -inf would be NaN
        impossible = (state.score == -inf)[:, None] | (candidates == self.model.blank)
        return (extended - state.score[:, None]).masked_fill_(impossible, -inf), state

    def select(self, state: CtcPrefixState, rows: Tensor) -> CtcPrefixState:
        return replace(
            state,
            utterance=state.utterance[rows],
            other=state.other[rows],
            repeat=state.repeat[rows],
            end=state.end[rows],
            score=state.score[rows],
        )

    def _compiles(self, rows: Tensor) -> bool:
        return self.machine_code and rows.device.type == "cpu" and available()

    def _extend(self, prefixes: Tensor, state: CtcPrefixState) -> CtcPrefixState:
        """The state of prefixes one token longer: (3), (4), (5), and (2) for that token."""
        token = prefixes[:, -1]
        if self._compiles(token):
            updated = tuple(
                torch.empty_like(part)
                for part in (state.other, state.repeat, state.end, state.score)
            )
            extend_rows(
                *_arrays(state.log_probs, state.lengths, state.utterance, token, prefixes[:, -2]),
                self.model.blank,
                *_arrays(state.other, state.repeat),
                _arrays(*updated),
            )
            other, repeat, end, score = updated
            return replace(
                state,
                other=other,
                repeat=repeat,
                end=end,
                score=score,
                num_tokens=state.num_tokens + 1,
            )
        # (3): a token that repeats the last one needs a blank in between, any other one does not.
        arrival = torch.where((token == prefixes[:, -2])[:, None], state.repeat, state.other)
        log_probs = state.log_probs[state.utterance, token].double()
        non_blank = _recurrence(log_probs, arrival)
        # A blank may follow any path of the new prefix, one frame later.
        blank = _recurrence(
            state.log_probs[state.utterance, self.model.blank].double(), non_blank[:, :-1]
        )
        either = torch.logaddexp(non_blank, blank)
        return replace(
            state,
            other=either[:, :-1],
            repeat=blank[:, :-1],
            # The end of the text: all frames of the utterance are consumed. Column t is the state
            # before frame t, so the column of the length is the one after the last frame.
            end=either.gather(1, state.lengths[state.utterance][:, None])[:, 0],
            score=torch.logsumexp(arrival + log_probs, 1),
            num_tokens=state.num_tokens + 1,
        )


def _recurrence(log_probs: Tensor, arrival: Tensor) -> Tensor:
    """y_t = (y_{t-1} + arrival_t) p_t from y_0 = 0, in the log domain: 2 * (N, S) -> (N, S + 1)."""
    log_probs = log_probs.clamp(min=ZERO)
    # Divided by P_t = p_1 ... p_t, the recurrence is a sum:
    # y_t / P_t = sum_{s <= t} arrival_s / P_{s-1}
    until = log_probs.cumsum(1)
    y = until + torch.logcumsumexp(arrival - (until - log_probs), 1)
    return F.pad(y.masked_fill_(y < ZERO / 2, -inf), (1, 0), value=-inf)


def _log_sums(state: CtcPrefixState, arrival: Tensor, candidates: Tensor | None) -> Tensor:
    """(2): log phi (N, S), candidates (N, K) or None -> float64 log psi (N, K) or (N, V)."""
    # relative to the largest phi of a row, so that exp neither overflows nor underflows everywhere
    scale = arrival.amax(1, keepdim=True)
    scale = scale.masked_fill(scale == -inf, 0.0)
    weights = (arrival - scale).exp()
    if candidates is None:
        sums = _over_vocabulary(state, weights)
    else:
        probs = state.probs[state.utterance[:, None], candidates]
        sums = torch.bmm(probs.double(), weights[:, :, None])[:, :, 0]
    log_sums = sums.log() + scale
    # rare, so these few entries are gathered and summed exactly, in portions that bound the memory
    rows, columns = ((sums < SMALL) & (weights > 0).any(1, keepdim=True)).nonzero(as_tuple=True)
    tokens = columns if candidates is None else candidates[rows, columns]
    size = max(1, BLOCK // arrival.shape[1])
    for row, column, token in zip(
        rows.split(size), columns.split(size), tokens.split(size), strict=True
    ):
        log_sums[row, column] = torch.logsumexp(
            arrival[row] + state.log_probs[state.utterance[row], token], 1
        )
    return log_sums


def _compiled_log_sums(state: CtcPrefixState, arrival: Tensor, candidates: Tensor) -> Tensor:
    """`_log_sums` in machine code, on CPU."""
    log_sums = torch.empty(candidates.shape, dtype=torch.float64)
    fill_log_sums(
        *_arrays(state.probs, state.log_probs, state.utterance, candidates, arrival),
        SMALL,
        log_sums.numpy(),
    )
    return log_sums


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def _over_vocabulary(state: CtcPrefixState, weights: Tensor) -> Tensor:
    """weights (N, S) -> (N, V): one matrix product per utterance, whose rows are adjacent."""
    utterances, counts = state.utterance.unique_consecutive(return_counts=True)
    blocks = zip(weights.split(counts.tolist()), utterances.tolist(), strict=True)
    return torch.cat([block @ state.probs[utterance].T.double() for block, utterance in blocks])


# -- the recurrences in machine code, row by row, with float64 sums ------------------------------


@compiled
def extend_rows(
    log_probs: np.ndarray,
    lengths: np.ndarray,
    utterance: np.ndarray,
    token: np.ndarray,
    previous: np.ndarray,
    blank: int,
    other: np.ndarray,
    repeat: np.ndarray,
    updated: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """(3), (4), (5), and (2) for the token that extends each row, into `updated`.

    log_probs (B, V, S), lengths (B,), utterance, token, previous (N,), other, repeat (N, S)
    float64; updated: the new other, repeat, end, score.
    """
    new_other, new_repeat, end, score = updated
    for n in range(len(token)):
        of_token, of_blank = log_probs[utterance[n], token[n]], log_probs[utterance[n], blank]
        arrival = repeat[n] if token[n] == previous[n] else other[n]  # log phi of (1)
        label, silent, either, highest, length = -inf, -inf, -inf, -inf, lengths[utterance[n]]
        new_other[n], new_repeat[n] = -inf, -inf
        # label: log n_t, silent: log b_t, either: their sum. The phi that frame t + 1 needs is that
        # of frame t, so values are stored before they are updated.
        for t in range(length):
            new_other[n, t], new_repeat[n, t] = either, silent
            highest = max(highest, arrival[t] + of_token[t])
            label, silent = log_add(label, arrival[t]) + of_token[t], either + of_blank[t]
            either = log_add(label, silent)
        end[n], score[n] = either, -inf
        if length < new_other.shape[1]:
            new_other[n, length], new_repeat[n, length] = either, silent
        # (2) for the new token, as a sum relative to its largest term
        if highest > -inf:
            total = 0.0
            for t in range(length):
                total += exp(arrival[t] + of_token[t] - highest)
            score[n] = highest + log(total)


@vectorised
def product(weights: np.ndarray, row: np.ndarray) -> float:
    """The inner product of two vectors."""
    total = 0.0
    for t in range(len(weights)):
        total += weights[t] * row[t]
    return total


@compiled
def fill_log_sums(
    probs: np.ndarray,
    log_probs: np.ndarray,
    utterance: np.ndarray,
    candidates: np.ndarray,
    arrival: np.ndarray,
    smallest: float,
    log_sums: np.ndarray,
) -> None:
    """(2) for candidates (N, K) into log_sums (N, K); arrival (N, S) float64.

    Sums below `smallest` are computed again in the log domain.
    """
    weights = np.empty(arrival.shape[1])
    for n in range(len(candidates)):
        # Scaled by the largest term, products of probabilities replace K * S log-additions. Sums
        # that underflow all the same take the slow exact path below.
        scale = arrival[n].max()
        if scale == -inf:
            log_sums[n] = -inf
            continue
        for t in range(len(weights)):
            weights[t] = exp(arrival[n, t] - scale)
        for k in range(candidates.shape[1]):
            total = product(weights, probs[utterance[n], candidates[n, k]])
            if total >= smallest:
                log_sums[n, k] = scale + log(total)
                continue
            row, value = log_probs[utterance[n], candidates[n, k]], -inf
            for t in range(len(weights)):
                value = log_add(value, arrival[n, t] + row[t])
            log_sums[n, k] = value
