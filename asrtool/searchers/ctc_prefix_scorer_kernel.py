"""The recurrences of ctc_prefix_scorer.py as machine code, one row of a search after the other;
float64 sums.
"""

from __future__ import annotations

from math import exp, inf, log

import numpy as np

from asrtool.compiled import compiled, vectorised
from asrtool.searchers.ctc_prefix_kernel import log_add


@compiled
def extend(
    log_probs: np.ndarray,
    lengths: np.ndarray,
    utterance: np.ndarray,
    token: np.ndarray,
    previous: np.ndarray,
    blank: int,
    other: np.ndarray,
    repeat: np.ndarray,
    found: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """(3), (4), (5), and (2) for the token that each row was extended by; found: the new other,
    repeat, end, score.

    log_probs (B, V, S), lengths (B,), utterance, token, previous (N,), other, repeat (N, S)
    float64.
    """
    new_other, new_repeat, end, score = found
    for n in range(len(token)):
        of_token, of_blank = log_probs[utterance[n], token[n]], log_probs[utterance[n], blank]
        arrival = repeat[n] if token[n] == previous[n] else other[n]
        label, silent, either, highest, length = -inf, -inf, -inf, -inf, lengths[utterance[n]]
        new_other[n], new_repeat[n] = -inf, -inf
        for t in range(length):
            new_other[n, t], new_repeat[n, t] = either, silent
            highest = max(highest, arrival[t] + of_token[t])
            label, silent = log_add(label, arrival[t]) + of_token[t], either + of_blank[t]
            either = log_add(label, silent)
        end[n], score[n] = either, -inf
        if length < new_other.shape[1]:
            new_other[n, length], new_repeat[n, length] = either, silent
        if highest > -inf:
            total = 0.0
            for t in range(length):
                total += exp(arrival[t] + of_token[t] - highest)
            score[n] = highest + log(total)


@vectorised
def product(weights: np.ndarray, row: np.ndarray) -> float:
    total = 0.0
    for t in range(len(weights)):
        total += weights[t] * row[t]
    return total


@compiled
def log_sums(
    probs: np.ndarray,
    log_probs: np.ndarray,
    utterance: np.ndarray,
    candidates: np.ndarray,
    arrival: np.ndarray,
    smallest: float,
    found: np.ndarray,
) -> None:
    """(2) for candidates (N, K) into found (N, K); arrival (N, S) float64. Sums too small: in the
    log domain.
    """
    weights = np.empty(arrival.shape[1])
    for n in range(len(candidates)):
        scale = arrival[n].max()
        if scale == -inf:
            found[n] = -inf
            continue
        for t in range(len(weights)):
            weights[t] = exp(arrival[n, t] - scale)
        for k in range(candidates.shape[1]):
            total = product(weights, probs[utterance[n], candidates[n, k]])
            if total >= smallest:
                found[n, k] = scale + log(total)
                continue
            row, value = log_probs[utterance[n], candidates[n, k]], -inf
            for t in range(len(weights)):
                value = log_add(value, arrival[n, t] + row[t])
            found[n, k] = value
