"""The searchers: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.searchers.base import SEARCHERS, Searcher
from asrtool.searchers.beam import AttentionBeamConfig, Beam, JointBeamConfig
from asrtool.searchers.constraints import ConstraintsConfig
from asrtool.searchers.ctc_greedy import CtcGreedy, CtcGreedyConfig

__all__ = [
    "SEARCHERS",
    "AttentionBeamConfig",
    "Beam",
    "ConstraintsConfig",
    "CtcGreedy",
    "CtcGreedyConfig",
    "JointBeamConfig",
    "Searcher",
]
