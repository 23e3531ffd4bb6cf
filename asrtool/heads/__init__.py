"""The heads: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.heads.base import HEADS, FrameHead, Head, Search, names_of, ranked
from asrtool.heads.frames import (
    AccentHead,
    AccentHeadConfig,
    AlignedHead,
    AlignedHeadConfig,
    CtcHead,
    CtcHeadConfig,
    ExpertCtcHead,
    ExpertCtcHeadConfig,
    InterCtcHead,
    InterCtcHeadConfig,
    LinearHead,
    TapHead,
)
from asrtool.heads.tokens import (
    AttentionHead,
    AttentionHeadConfig,
    ReverseHead,
    ReverseHeadConfig,
)
from asrtool.heads.transducer import (
    PREDICTORS,
    LstmConfig,
    StatelessConfig,
    TransducerHead,
    TransducerHeadConfig,
)

__all__ = [
    "HEADS",
    "PREDICTORS",
    "AccentHead",
    "AccentHeadConfig",
    "AlignedHead",
    "AlignedHeadConfig",
    "AttentionHead",
    "AttentionHeadConfig",
    "CtcHead",
    "CtcHeadConfig",
    "ExpertCtcHead",
    "ExpertCtcHeadConfig",
    "FrameHead",
    "Head",
    "InterCtcHead",
    "InterCtcHeadConfig",
    "LinearHead",
    "LstmConfig",
    "ReverseHead",
    "ReverseHeadConfig",
    "Search",
    "StatelessConfig",
    "TapHead",
    "TransducerHead",
    "TransducerHeadConfig",
    "names_of",
    "ranked",
]
