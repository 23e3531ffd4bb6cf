"""Two passes: networks rescore the n-best list of the CTC prefix beam search.

    s(g) = sum of weight * log p(g) over the parts of both passes + length_bonus * |g|

The second pass sees whole sequences, so it may include a right-to-left decoder (Wu et al., arXiv
2106.05642), named `reverse` in `weights`, and a language model. Frames are projected once per
utterance, and shared by its hypotheses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool.searchers.base import SEARCHERS, Scorer, Searcher, SearcherConfig, SearchModel
from asrtool.searchers.ctc.prefix_beam import CtcPrefixBeam, CtcPrefixBeamConfig
from asrtool.types import EncoderOutput, Hypothesis, Padded


class SequenceScorer(Protocol):
    """Scores whole sequences at once. A `Scorer` without this method is called token by token."""

    def sequence_scores(self, encoded: EncoderOutput, targets: Padded) -> Tensor:
        """targets (B * n, U), n adjacent rows per utterance -> log-probabilities (B * n,)."""


@dataclass(frozen=True, kw_only=True)
class RescoringConfig(SearcherConfig):
    """Attention rescoring of the CTC prefix beam's n-best."""

    first_pass: CtcPrefixBeamConfig = CtcPrefixBeamConfig()
    weights: dict[str, float] = field(default_factory=lambda: {"ctc": 0.5, "attention": 0.5})
    length_bonus: float = 0.0  # added per token

    def __post_init__(self) -> None:
        if min(self.weights.values(), default=0) < 0 or not any(self.weights.values()):
            raise ValueError(
                f"weights must not be negative, and one must be above 0; got {self.weights}"
            )


@SEARCHERS.register("attention_rescoring", RescoringConfig)
class Rescoring(Searcher):
    """Hypotheses keep positions and confidences of the first pass, and have the parts of both.

    A part of the first pass that has no weight here counts in the first pass only. An utterance
    without frames keeps the result of its first pass.
    """

    def __init__(
        self,
        config: RescoringConfig,
        *,
        model: SearchModel,
        tokens: Sequence[str] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        self.config = config
        self.model = model
        # Weights of the first pass apply to its own scores; all others are computed here.
        self.first = CtcPrefixBeam(config.first_pass, model=model, tokens=tokens)
        rescorers = model.rescorers() if hasattr(model, "rescorers") else model.scorers()
        known = {**rescorers, **(scorers or {})}
        names = [
            name
            for name, weight in config.weights.items()
            if weight and name not in config.first_pass.weights
        ]
        for name in names:
            if name not in known:
                has = ", ".join(sorted({*known, *config.first_pass.weights}))
                raise LookupError(
                    f"rescoring: the model has no scorer '{name}' for weights.{name} (it has: "
                    f"{has})"
                )
        self.scorers = {name: known[name] for name in names}

    @torch.inference_mode()
    def search(self, encoded: EncoderOutput) -> list[list[Hypothesis]]:
        return self.rescore(encoded, self.first.search(encoded))

    @torch.inference_mode()
    def rescore(
        self, encoded: EncoderOutput, nbests: list[list[Hypothesis]]
    ) -> list[list[Hypothesis]]:
        """Rescore n-best lists of the first pass."""
        # scorers need the same number of sequences per utterance: shorter lists repeat their first
        # hypothesis
        width = max(map(len, nbests), default=0)
        rows = [h.tokens for nbest in nbests for h in (*nbest, *[nbest[0]] * (width - len(nbest)))]
        device = encoded.frames.data.device
        targets = Padded.stack([torch.tensor(row, dtype=torch.int64) for row in rows]).to(device)
        parts = {}
        for name, scorer in self.scorers.items():
            scores = sequence_scores(scorer, encoded, targets, self.model.eos).double()
            if scores[(encoded.frames.lengths > 0).repeat_interleave(width)].isnan().any():
                raise ValueError(
                    f"attention_rescoring: the scorer '{name}' gave NaN; check the model and its "
                    "input"
                )
            parts[name] = scores.view(-1, width).tolist()
        return [
            self._ranked(nbest, {name: rows[row] for name, rows in parts.items()})
            if length
            else nbest
            for row, (nbest, length) in enumerate(
                zip(nbests, encoded.frames.lengths.tolist(), strict=True)
            )
        ]

    def _ranked(self, nbest: list[Hypothesis], more: Mapping[str, list[float]]) -> list[Hypothesis]:
        weights, rescored = self.config.weights, []
        for rank, hypothesis in enumerate(nbest):
            parts = {**hypothesis.parts, **{name: row[rank] for name, row in more.items()}}
            score = sum(weights[name] * value for name, value in parts.items() if weights.get(name))
            score += self.config.length_bonus * len(hypothesis.tokens)
            rescored.append(
                replace(hypothesis, score=score if hypothesis.score > -inf else -inf, parts=parts)
            )
        return sorted(rescored, key=lambda hypothesis: -hypothesis.score)


def sequence_scores(
    scorer: SequenceScorer | Scorer, encoded: EncoderOutput, targets: Padded, eos: int
) -> Tensor:
    """targets (B * n, U) -> (B * n,) log-probabilities of the sequences with eos."""
    if hasattr(scorer, "sequence_scores"):
        return scorer.sequence_scores(encoded, targets)
    prefixes = F.pad(targets.data, (1, 0), value=eos)
    following = F.pad(targets.data, (0, 1), value=eos).scatter(1, targets.lengths[:, None], eos)
    # a `Scorer` without that method is called token by token; rows that have ended add nothing
    state = scorer.start(encoded, len(prefixes) // max(len(encoded.frames.lengths), 1))
    total = prefixes.new_zeros(len(prefixes), dtype=torch.float64)
    for step in range(prefixes.shape[1]):
        wanted = following[:, step, None]
        scores, state = scorer.score(prefixes[:, : step + 1], state, wanted)
        total = torch.where(step <= targets.lengths, total + scores[:, 0].double(), total)
    return total
