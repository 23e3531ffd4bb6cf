"""Label-synchronous beam search over any sum of scorers, batched over utterances.

In each step, every live prefix g of an utterance is extended by its best tokens and by eos:

    s(g c) = s(g) + sum over scorers of weight * log p(c | g, x) + length_bonus                  (1)
    s(g eos) = s(g) + sum over scorers of weight * log p(eos | g, x)                             (2)

Of all extensions of an utterance, those by eos among the best `beam` are finished hypotheses, and
the best `beam` others live on. An utterance is done when no continuation of a live prefix can beat
its finished hypotheses: log-probabilities are never above 0, so s(g) with the most that length
terms may still add bounds all continuations (3). Its rows then leave the batch.

Scorers of the whole vocabulary propose `candidates` extensions, and partial scorers score only
these (Watanabe et al., IEEE JSTSP 2017). If the vocabulary is not larger than that, or all scorers
are partial, these score all tokens.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from asrtool.registry import bounded
from asrtool.searchers import fusion
from asrtool.searchers.base import SEARCHERS, Constraint, Scorer, Searcher, SearchModel
from asrtool.searchers.constraints import ConstraintsConfig
from asrtool.searchers.ctc.scorer import CtcPrefixScorer
from asrtool.searchers.fusion import NgramConfig, NgramScorer
from asrtool.types import EncoderOutput, Hypothesis

INF = float("inf")
NEVER_PROPOSED = 2  # tokens that are never candidates: blank and eos


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Beam, scorers and limits of a search."""

    beam: int = bounded(10, least=1)
    # scorer -> weight; `ctc`, `inter_ctc`: CTC prefix scorers; weight 0: not computed
    weights: dict[str, float]
    # extensions of a prefix that partial scorers score; null: 1.5 * beam
    candidates: int | None = bounded(None, least=1)
    # hypotheses that must be final before the search ends; up to `beam` are returned
    nbest: int = bounded(1, least=1)
    constraints: ConstraintsConfig = ConstraintsConfig()
    ngram: NgramConfig | None = None  # the scorer `ngram`

    def __post_init__(self) -> None:
        fusion.check_weights(self.weights, ngram=self.ngram)
        if self.beam < 1:
            raise ValueError(f"beam must be at least 1, got {self.beam}")
        if not 1 <= self.nbest <= self.beam:
            raise ValueError(f"nbest must be between 1 and beam ({self.beam}), got {self.nbest}")
        if self.candidates is not None and self.candidates < self.beam:
            raise ValueError(f"candidates ({self.candidates}) must be at least beam ({self.beam})")
        if min(self.weights.values(), default=0) < 0 or not any(self.weights.values()):
            raise ValueError(
                f"weights must not be negative, and one must be above 0; got {self.weights}"
            )


@dataclass(frozen=True, kw_only=True)
class AttentionBeamConfig(BeamConfig):
    """Beam search with the attention decoder alone."""

    weights: dict[str, float] = field(default_factory=lambda: {"attention": 1.0})


@dataclass(frozen=True, kw_only=True)
class JointBeamConfig(BeamConfig):
    """One-pass joint decoding: attention decoder and CTC prefix probabilities."""

    weights: dict[str, float] = field(default_factory=lambda: {"attention": 0.7, "ctc": 0.3})


@dataclass(frozen=True)
class Live:
    """The prefixes of the utterances that are not done; dead rows have score -inf.

    B utterances, N = B * beam rows, M scorers.
    """

    utterances: tuple[int, ...]  # their rows in the batch
    prefixes: Tensor  # (N, U + 1) incl. sos
    scores: Tensor  # (B, beam) float64, s(g)
    parts: Tensor  # (B, beam, M) float64, unweighted
    states: tuple[Any, ...]  # one per scorer
    constraints: tuple[Constraint, ...]

    def select(self, blocks: Sequence[int], rows: Tensor, scorers: Sequence[Scorer]) -> Live:
        """Keep the utterances at `blocks`, and take row i from row rows[i].

        The caller replaces scores and parts.
        """
        return replace(
            self,
            utterances=tuple(self.utterances[block] for block in blocks),
            prefixes=self.prefixes[rows],
            states=tuple(
                scorer.select(state, rows)
                for scorer, state in zip(scorers, self.states, strict=True)
            ),
            constraints=tuple(constraint.select(rows) for constraint in self.constraints),
        )


@dataclass(frozen=True)
class Extensions:
    """The best 2 * beam extensions of each utterance, best first.

    At most `beam` of them end, so that `beam` others remain. All (B, 2 * beam), parts with M
    behind.
    """

    scores: Tensor
    parts: Tensor
    parents: Tensor  # beam index of the extended prefix
    tokens: Tensor


@SEARCHERS.register("attention_beam", AttentionBeamConfig)
@SEARCHERS.register("joint_beam", JointBeamConfig)
class Beam(Searcher):
    """Beam search; beam 1 without partial scorers and length terms is greedy search.

    Hypotheses have the unweighted log-probability of each scorer in `parts`; their score is defined
    in constraints.py. An utterance without frames gets the empty hypothesis with score 0. One for
    which the constraints allow no hypothesis gets the empty one with score -inf.
    """

    def __init__(
        self,
        config: BeamConfig,
        *,
        model: SearchModel,
        tokens: Sequence[str] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        self.config = config
        self.model = model
        known = {**model.scorers(), **(scorers or {})}
        if config.ngram is not None:
            loaded = fusion.load(config.ngram, None, tokens, model.blank, model.eos)
            known["ngram"] = NgramScorer(loaded["ngram"], model.eos)
        named = {
            name: self._scorer(name, known) for name, weight in config.weights.items() if weight
        }
        # those that propose candidates first
        self.names = tuple(sorted(named, key=lambda name: named[name].partial))
        self.scorers = tuple(named[name] for name in self.names)
        self.weights = tuple(config.weights[name] for name in self.names)
        self.proposers = sum(not scorer.partial for scorer in self.scorers)
        self.candidates = config.candidates or -(-3 * config.beam // 2)

    def _scorer(self, name: str, scorers: Mapping[str, Scorer]) -> Scorer:
        if name in scorers:
            return scorers[name]
        ctc = {key for key, head in self.model.heads.items() if head.alignment == "ctc"}
        if name in ctc:
            return CtcPrefixScorer(self.model, name)
        has = ", ".join(sorted({*scorers, *ctc})) or "none"
        raise LookupError(
            f"beam search: the model has no scorer '{name}' for weights.{name} (it has: {has})"
        )

    @torch.inference_mode()
    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        lengths = encoded.frames.lengths.tolist()
        limits = self.config.constraints.limits(encoded, self.model.frame_shift)
        finished: list[list[Hypothesis]] = [[] for _ in lengths]
        live = self._start(encoded, limits) if any(lengths) else None
        while live is not None:
            extensions, live = self._extend(live)
            self._finish(live, extensions, finished)
            live = self._advance(live, extensions, limits, finished)
        return [
            hypotheses or [self._empty(-INF if length else 0.0)]
            for hypotheses, length in zip(finished, lengths, strict=True)
        ]

    def _start(self, encoded: EncoderOutput, limits: list[int]) -> Live:
        """The empty prefix of every utterance with frames, in one row; its others are dead."""
        beam, device, count = self.config.beam, encoded.frames.data.device, len(limits)
        scores = torch.full((count, beam), -INF, dtype=torch.float64, device=device)
        scores[:, 0] = 0.0
        live = Live(
            utterances=tuple(range(count)),
            prefixes=torch.full(
                (count * beam, 1), self.model.eos, dtype=torch.int64, device=device
            ),
            scores=scores,
            parts=torch.zeros((count, beam, len(self.scorers)), dtype=torch.float64, device=device),
            states=tuple(scorer.start(encoded, beam) for scorer in self.scorers),
            constraints=tuple(
                self.config.constraints.build(limits, eos=self.model.eos, beam=beam, device=device)
            ),
        )
        kept = encoded.frames.lengths.nonzero()[:, 0]
        if len(kept) == count:
            return live
        rows = (kept[:, None] * beam + torch.arange(beam, device=device)).flatten()
        # utterances without frames leave the batch at once
        moved = live.select(kept.tolist(), rows, self.scorers)
        return replace(moved, scores=live.scores[kept], parts=live.parts[kept])

    def _extend(self, live: Live) -> tuple[Extensions, Live]:
        """(1) and (2) for every live prefix; the best of them, and the scorers' new states.

        N rows are extended by K tokens each: those that `_propose` chose, and the end last.
        """
        total, shares, states = self._score_vocabulary(live)
        tokens, possible = self._propose(total, proposals_only=len(shares) < len(self.scorers))
        shares = [share.gather(1, tokens) for share in shares]  # (N, V) -> (N, K)
        for index in range(len(shares), len(self.scorers)):
            share, states[index] = self.scorers[index].score(live.prefixes, states[index], tokens)
            shares.append(share)
        parts = torch.stack([share.double() for share in shares], 2)  # (N, K, M)
        return self._best(live, tokens, parts, possible), replace(live, states=tuple(states))

    def _score_vocabulary(self, live: Live) -> tuple[Tensor, list[Tensor], list[Any]]:
        """Weighted sum (N, V) and unweighted scores (N, V) of the scorers that see every token, and
        the states of all scorers. Tokens that may not follow are -inf in the sum.

        Partial scorers come last. They are left to the proposed tokens, unless the vocabulary is no
        larger than these with blank and eos, or there is nobody to propose any.
        """
        shares: list[Tensor] = []
        states = list(live.states)
        total: Tensor | None = None
        for index, scorer in enumerate(self.scorers):
            if (
                scorer.partial
                and self.proposers
                and total.shape[1] > self.candidates + NEVER_PROPOSED
            ):
                break
            share, states[index] = scorer.score(live.prefixes, states[index], None)
            weighted = self.weights[index] * share
            total = weighted if total is None else total + weighted
            shares.append(share)
        if self.model.blank is not None:
            total[:, self.model.blank] = -INF
        for constraint in live.constraints:
            total = constraint.apply(total, live.prefixes)
        return total, shares, states

    def _propose(self, total: Tensor, proposals_only: bool) -> tuple[Tensor, Tensor]:
        """Tokens (N, K) that may extend each prefix, the end last, and which of them are possible.

        total (N, V) is changed. proposals_only: partial scorers still count, so that more tokens
        than `beam` are needed; else no others can be among the best `beam` of a prefix.
        """
        ends = total[:, self.model.eos, None].clone()
        # the end competes with finished hypotheses and not for one of the K - 1 other columns
        total[:, self.model.eos] = -INF
        width = self.candidates if proposals_only else self.config.beam
        best, tokens = total.topk(min(width, total.shape[1] - 1))
        tokens = torch.cat([tokens, torch.full_like(ends, self.model.eos, dtype=tokens.dtype)], 1)
        return tokens, torch.cat([best, ends], 1) != -INF

    def _best(self, live: Live, tokens: Tensor, parts: Tensor, possible: Tensor) -> Extensions:
        """tokens (N, K), their unweighted parts (N, K, M), which are possible (N, K)."""
        # (1) and (2): weighted sum over scorers (N, K), then (B, beam, K) with the score of the
        # prefix
        utterances, beam = live.scores.shape
        scores = (parts * parts.new_tensor(self.weights)).sum(2)
        scores = scores + self.config.constraints.length_bonus * (tokens != self.model.eos).double()
        scores = (
            scores.masked_fill(~possible, -INF).view(utterances, beam, -1) + live.scores[:, :, None]
        )
        width = scores.shape[2]
        # over all extensions of all beams of an utterance: index = beam * K + column
        scores, chosen = scores.flatten(1).topk(2 * beam)
        parts = (parts.view(utterances, beam, width, -1) + live.parts[:, :, None]).flatten(1, 2)
        return Extensions(
            scores=scores,
            parts=parts.gather(1, chosen[:, :, None].expand(-1, -1, parts.shape[2])),
            parents=chosen // width,
            tokens=tokens.view(utterances, -1).gather(1, chosen),
        )

    def _finish(self, live: Live, extensions: Extensions, finished: list[list[Hypothesis]]) -> None:
        """Collect the ends among the best `beam` extensions of each utterance."""
        beam = self.config.beam
        if extensions.scores[:, 0].isnan().any():
            raise ValueError(
                f"beam search: a scorer ({', '.join(self.names)}) gave NaN; check the model and "
                "its input"
            )
        is_end = (extensions.tokens == self.model.eos) & (extensions.scores > -INF)
        blocks, ranks = is_end[:, :beam].nonzero(as_tuple=True)
        ended = zip(
            blocks.tolist(),
            live.prefixes[blocks * beam + extensions.parents[blocks, ranks], 1:].tolist(),
            extensions.scores[blocks, ranks].tolist(),
            extensions.parts[blocks, ranks].tolist(),
            strict=True,
        )
        for block, tokens, score, parts in ended:
            hypotheses = finished[live.utterances[block]]
            hypothesis = Hypothesis(
                tokens=tuple(tokens),
                score=self.config.constraints.ranked(score, len(tokens)),
                parts=dict(zip(self.names, parts, strict=True)),
            )
            insort(hypotheses, hypothesis, key=lambda other: -other.score)
            del hypotheses[beam:]

    def _advance(
        self,
        live: Live,
        extensions: Extensions,
        limits: list[int],
        finished: list[list[Hypothesis]],
    ) -> Live | None:
        """The prefixes of the best `beam` extensions that do not end, without done utterances."""
        beam, device = self.config.beam, live.prefixes.device
        is_end = extensions.tokens == self.model.eos
        # stable: extensions by tokens come first, still best first
        kept = is_end.to(torch.int8).argsort(dim=1, stable=True)[:, :beam]
        scores = extensions.scores.masked_fill(is_end, -INF).gather(1, kept)
        num_tokens = live.prefixes.shape[1]
        going = [
            block
            for block, (utterance, best) in enumerate(
                zip(live.utterances, scores[:, 0].tolist(), strict=True)
            )
            if self._is_open(best, num_tokens, limits[utterance], finished[utterance])
        ]
        if not going:
            return None
        blocks = torch.tensor(going, dtype=torch.int64, device=device)
        kept = kept[blocks]
        rows = (blocks[:, None] * beam + extensions.parents[blocks].gather(1, kept)).flatten()
        moved = live.select(going, rows, self.scorers)
        tokens = extensions.tokens[blocks].gather(1, kept).view(-1, 1)
        parts = extensions.parts[blocks[:, None], kept]
        return replace(
            moved,
            prefixes=torch.cat([moved.prefixes, tokens], 1),
            scores=scores[blocks],
            parts=parts,
        )

    def _is_open(
        self, best: float, num_tokens: int, limit: int, hypotheses: list[Hypothesis]
    ) -> bool:
        """(3): can a continuation of the best live prefix still enter the n-best list?"""
        if best == -INF or len(hypotheses) < self.config.nbest:
            return best > -INF
        return (
            self.config.constraints.best_possible(best, num_tokens, limit)
            > hypotheses[self.config.nbest - 1].score
        )

    def _empty(self, score: float) -> Hypothesis:
        return Hypothesis(tokens=(), score=score, parts=dict.fromkeys(self.names, score))
