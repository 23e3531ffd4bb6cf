"""The models: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.models.base import MODELS, AsrModel
from asrtool.models.hybrid import Hybrid, HybridConfig
from asrtool.models.language_model import LanguageModel, LanguageModelConfig
from asrtool.models.speech_llm import SpeechLlm, SpeechLlmConfig

__all__ = [
    "MODELS",
    "AsrModel",
    "Hybrid",
    "HybridConfig",
    "LanguageModel",
    "LanguageModelConfig",
    "SpeechLlm",
    "SpeechLlmConfig",
]
