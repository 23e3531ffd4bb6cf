"""The models: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.models.base import MODELS, AsrModel

__all__ = ["MODELS", "AsrModel"]
