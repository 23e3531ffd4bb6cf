"""Constraints on hypotheses, and length terms of their scores.

Constraints forbid extensions during a label-synchronous search. Length terms rank hypotheses:

    score = (sum of weight * part + length_bonus * U) / (U + 1) ** length_penalty

for U tokens and eos. By default both terms are 0, and the score is the weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asrtool.searchers.base import Constraint
from asrtool.types import EncoderOutput

INF = float("inf")

ROUNDING = 1e-6  # slack for products of floats


@dataclass(frozen=True, kw_only=True)
class ConstraintsConfig:
    """Limits on the number of tokens, of which the smallest applies, and length terms."""

    max_tokens: int | None = None
    # per encoder frame, counted before any was dropped
    max_tokens_per_frame: float | None = 1.0
    max_tokens_per_second: float | None = None
    min_tokens: int = 0
    no_repeat_ngram: int = 0  # no sequence of n tokens occurs twice; 0: no such limit
    length_bonus: float = 0.0  # added per token
    # exponent of the length that divides the score; 1: mean per token; below 0: favours short
    # hypotheses
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        limits = (self.max_tokens, self.max_tokens_per_frame, self.max_tokens_per_second)
        if all(limit is None for limit in limits):
            raise ValueError(
                "give at least one of max_tokens, max_tokens_per_frame, max_tokens_per_second"
            )
        if any(limit is not None and limit <= 0 for limit in limits):
            raise ValueError("limits on tokens must be above 0")
        if min(self.min_tokens, self.no_repeat_ngram) < 0:
            raise ValueError("min_tokens and no_repeat_ngram must not be negative")
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"max_tokens ({self.max_tokens}) is below min_tokens ({self.min_tokens})"
            )

    def limits(self, encoded: EncoderOutput, frame_shift: float) -> list[int]:
        """The maximum number of tokens of each utterance: rates are rounded up, and min_tokens is
        always allowed.
        """
        limits = []
        # a tap from before key frames were selected still has all frames
        taps = [tap.lengths.to(encoded.frames.lengths.device) for tap in encoded.taps.values()]
        most = torch.stack([encoded.frames.lengths, *taps]).amax(0).tolist()
        rows = zip(encoded.frames.lengths.tolist(), most, encoded.positions.tolist(), strict=True)
        for frames, before, positions in rows:
            seconds = (positions[frames - 1] + 1) * frame_shift if frames else 0.0
            limit = INF if self.max_tokens is None else self.max_tokens
            if self.max_tokens_per_frame is not None:
                limit = min(limit, _round_up(self.max_tokens_per_frame * before))
            if self.max_tokens_per_second is not None:
                limit = min(limit, _round_up(self.max_tokens_per_second * seconds))
            limits.append(max(int(limit), self.min_tokens))
        return limits

    def build(
        self, limits: list[int], *, eos: int, beam: int, device: torch.device
    ) -> list[Constraint]:
        """The constraints of a search over utterances with these limits, with `beam` rows each."""
        constraints: list[Constraint] = []
        if self.no_repeat_ngram:
            constraints.append(NoRepeatNgram(self.no_repeat_ngram))
        if self.min_tokens:
            constraints.append(MinTokens(self.min_tokens, eos=eos))
        rows = torch.tensor(limits, dtype=torch.int64, device=device).repeat_interleave(beam)
        return [*constraints, MaxTokens(rows, eos=eos, smallest=min(limits, default=0))]

    def allow(self, tokens: Sequence[int], limit: int) -> bool:
        """Whether a whole text satisfies the constraints; limit: its maximum number of tokens."""
        n = self.no_repeat_ngram
        ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)] if n else []
        return self.min_tokens <= len(tokens) <= limit and len({*ngrams}) == len(ngrams)

    def ranked(self, score: float, num_tokens: int) -> float:
        """The final score of a hypothesis; `score` already includes the bonus of its tokens."""
        return score / (num_tokens + 1) ** self.length_penalty

    def best_possible(self, score: float, num_tokens: int, limit: int) -> float:
        """An upper bound on the final scores of all continuations of a prefix.

        Log-probabilities are at most 0, so a continuation to n tokens scores at most
        score + length_bonus * (n - num_tokens).
        """
        if self.length_penalty == 0:
            return score + max(0.0, self.length_bonus * (limit - num_tokens))
        # with a length penalty, the bound is not monotonic in the number of further tokens
        more = range(max(limit - num_tokens, 0) + 1)
        return max(self.ranked(score + self.length_bonus * n, num_tokens + n) for n in more)


def _round_up(value: float) -> int:
    return math.ceil(value - ROUNDING)  # 0.1 * 30 is 3, not 4


class MaxTokens:
    """Only eos may follow a prefix at the limit of its row."""

    def __init__(self, limits: Tensor, *, eos: int, smallest: int = 0) -> None:
        self.limits = limits  # (N,)
        self.eos = eos
        self.smallest = smallest  # known on the host, so that most steps launch no kernel

    def apply(self, scores: Tensor, prefixes: Tensor) -> Tensor:
        num_tokens = prefixes.shape[1] - 1
        if num_tokens < self.smallest:
            return scores
        forbidden = (self.limits <= num_tokens)[:, None] & _others(scores, self.eos)
        return scores.masked_fill_(forbidden, -INF)

    def select(self, rows: Tensor) -> MaxTokens:
        return MaxTokens(self.limits[rows], eos=self.eos, smallest=self.smallest)


class MinTokens:
    """eos may not follow a prefix with fewer tokens."""

    def __init__(self, num_tokens: int, *, eos: int) -> None:
        self.num_tokens = num_tokens
        self.eos = eos

    def apply(self, scores: Tensor, prefixes: Tensor) -> Tensor:
        if prefixes.shape[1] - 1 >= self.num_tokens:
            return scores
        scores[:, self.eos] = -INF
        return scores

    def select(self, rows: Tensor) -> MinTokens:
        return self


class NoRepeatNgram:
    """A token may not complete an n-gram that already occurs in the prefix."""

    def __init__(self, n: int) -> None:
        self.n = n

    def apply(self, scores: Tensor, prefixes: Tensor) -> Tensor:
        tokens = prefixes[:, 1:]
        if tokens.shape[1] < self.n:
            return scores
        # Among the n-grams of the prefix, those that begin with its last n - 1 tokens (the context)
        # forbid their last token.
        ngrams = tokens.unfold(1, self.n, 1)  # (N, U - n + 1, n)
        context = tokens[:, tokens.shape[1] - self.n + 1 :]
        seen = (ngrams[:, :, :-1] == context[:, None]).all(2)
        # the minimum counts: a token may end one n-gram that matches and others that do not
        penalties = torch.zeros_like(seen, dtype=scores.dtype).masked_fill_(seen, -INF)
        return scores.scatter_reduce(
            1, ngrams[:, :, -1], penalties + scores.gather(1, ngrams[:, :, -1]), "amin"
        )

    def select(self, rows: Tensor) -> NoRepeatNgram:
        return self


def _others(scores: Tensor, eos: int) -> Tensor:
    """(1, V) bool, True for every token but eos."""
    return (torch.arange(scores.shape[1], device=scores.device) != eos)[None]
