"""The losses: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.losses.accent import AccentLoss, AccentLossConfig
from asrtool.losses.axe import AxeConfig, AxeLoss
from asrtool.losses.base import LOSSES, Loss
from asrtool.losses.consistency import Consistency, ConsistencyConfig
from asrtool.losses.contrastive import ContrastiveConfig, ContrastiveLoss
from asrtool.losses.cross_entropy import CrossEntropyConfig, CrossEntropyLoss
from asrtool.losses.ctc import CtcConfig, CtcLoss
from asrtool.losses.expert_ctc import ExpertCtcConfig, ExpertCtcLoss
from asrtool.losses.focal_ctc import FocalCtcConfig, FocalCtcLoss
from asrtool.losses.matching import MatchingConfig, MatchingLoss, matching_loss
from asrtool.losses.til import TilConfig, TilLoss
from asrtool.losses.transducer import TransducerConfig, TransducerLoss, transducer_loss

__all__ = [
    "LOSSES",
    "AccentLoss",
    "AccentLossConfig",
    "AxeConfig",
    "AxeLoss",
    "Consistency",
    "ConsistencyConfig",
    "ContrastiveConfig",
    "ContrastiveLoss",
    "CrossEntropyConfig",
    "CrossEntropyLoss",
    "CtcConfig",
    "CtcLoss",
    "ExpertCtcConfig",
    "ExpertCtcLoss",
    "FocalCtcConfig",
    "FocalCtcLoss",
    "Loss",
    "MatchingConfig",
    "MatchingLoss",
    "TilConfig",
    "TilLoss",
    "TransducerConfig",
    "TransducerLoss",
    "matching_loss",
    "transducer_loss",
]
