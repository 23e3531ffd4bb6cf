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

__all__ = [
    "HEADS",
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
    "ReverseHead",
    "ReverseHeadConfig",
    "Search",
    "TapHead",
    "names_of",
    "ranked",
]
