"""Beam search with a language model that reads speech, equivalent to that of `transformers`.

It is the beam search of beam.py with one difference: a prefix that reaches the limit on tokens is
finished as it is, without eos and its score. So for the same limits, the tokens equal those of
`generate(num_beams=...)` with `early_stopping="never"`, which also continues while a longer text
can still win.

Against insertions (arXiv 2406.17272): no repeated n-grams, a length penalty, and limits on the
number of tokens, in total and per second of audio. They count generated tokens, not the prompt.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field, replace

from asrtool.registry import bounded
from asrtool.searchers.base import SEARCHERS
from asrtool.searchers.beam import INF, Beam, BeamConfig, Live
from asrtool.searchers.constraints import ConstraintsConfig
from asrtool.types import EncoderOutput, Hypothesis


@dataclass(frozen=True, kw_only=True)
class LlmConstraintsConfig(ConstraintsConfig):
    """Limits on generated tokens; by default an absolute one, as an adapter outputs few rows."""

    max_tokens: int | None = 256
    max_tokens_per_frame: float | None = None  # a frame is a row of the adapter

    def limits(self, encoded: EncoderOutput, frame_shift: float) -> list[int]:
        # taps are from before the adapter, with more frames
        return super().limits(replace(encoded, taps={}), frame_shift)


@dataclass(frozen=True, kw_only=True)
class LlmBeamConfig(BeamConfig):
    """Beam search with the language model of a `speech_llm`; beam 1 is greedy."""

    beam: int = bounded(5, least=1)
    weights: dict[str, float] = field(default_factory=lambda: {"llm": 1.0})
    constraints: LlmConstraintsConfig = LlmConstraintsConfig()


@SEARCHERS.register("llm_beam", LlmBeamConfig)
class LlmBeam(Beam):
    """Beam search whose hypotheses at the limit have no eos in their score."""

    def _advance(
        self, live: Live, extensions, limits: list[int], finished: list[list[Hypothesis]]
    ) -> Live | None:
        # prefixes begin with sos, so their size is the number of tokens after this extension
        beam, num_tokens = self.config.beam, live.prefixes.shape[1]
        for block, utterance in enumerate(live.utterances):
            if limits[utterance] > num_tokens:
                continue
            for rank, (score, parent, token) in enumerate(extensions.ranked[block][:beam]):
                if token == self.model.eos or score == -INF:
                    continue
                row = block * beam + parent
                hypothesis = Hypothesis(
                    tokens=(*live.prefixes[row, 1:].tolist(), token),
                    score=self.config.constraints.ranked(score, num_tokens - 1),
                    parts=dict(
                        zip(self.names, extensions.parts[block, rank].tolist(), strict=True)
                    ),
                )
                insort(finished[utterance], hypothesis, key=lambda other: -other.score)
            del finished[utterance][beam:]
        return super()._advance(live, extensions, limits, finished)

    def _is_open(
        self, best: float, num_tokens: int, limit: int, hypotheses: list[Hypothesis]
    ) -> bool:
        return num_tokens < limit and super()._is_open(best, num_tokens, limit, hypotheses)
