"""The searchers: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.searchers.base import (
    SEARCHERS,
    FrameSearcher,
    Searcher,
    SearcherConfig,
    StreamingSearcher,
)
from asrtool.searchers.beam import AttentionBeamConfig, Beam, JointBeamConfig
from asrtool.searchers.constraints import ConstraintsConfig
from asrtool.searchers.ctc.greedy import CtcGreedy, CtcGreedyConfig
from asrtool.searchers.ctc.prefix_beam import (
    CtcPrefixBeam,
    CtcPrefixBeamConfig,
    ctc_prefix_beam_search,
)
from asrtool.searchers.llm_beam import LlmBeam, LlmBeamConfig
from asrtool.searchers.llm_draft import LlmDraft, LlmDraftConfig
from asrtool.searchers.rescoring import Rescoring, RescoringConfig
from asrtool.searchers.transducer.beam import TransducerBeam, TransducerBeamConfig
from asrtool.searchers.transducer.greedy import TransducerGreedy, TransducerGreedyConfig

__all__ = [
    "SEARCHERS",
    "AttentionBeamConfig",
    "Beam",
    "ConstraintsConfig",
    "CtcGreedy",
    "CtcGreedyConfig",
    "CtcPrefixBeam",
    "CtcPrefixBeamConfig",
    "FrameSearcher",
    "JointBeamConfig",
    "LlmBeam",
    "LlmBeamConfig",
    "LlmDraft",
    "LlmDraftConfig",
    "Rescoring",
    "RescoringConfig",
    "Searcher",
    "SearcherConfig",
    "StreamingSearcher",
    "TransducerBeam",
    "TransducerBeamConfig",
    "TransducerGreedy",
    "TransducerGreedyConfig",
    "ctc_prefix_beam_search",
]
