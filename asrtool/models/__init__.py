"""The models: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.models.base import MODELS, AsrModel, Model, default_head
from asrtool.models.causal_lm import CausalLm, CausalLmConfig
from asrtool.models.hybrid import Hybrid, HybridConfig
from asrtool.models.language_model import LanguageModel, LanguageModelConfig
from asrtool.models.llm_heads import LlmHead, LlmHeadConfig
from asrtool.models.speech_llm import SpeechLlm, SpeechLlmConfig
from asrtool.models.text import OUTPUT as LM_OUTPUT
from asrtool.models.text import TextModel

# configs of models that read text (data.input: text) and no audio
TEXT_MODELS = (CausalLmConfig, LanguageModelConfig)

__all__ = [
    "LM_OUTPUT",
    "MODELS",
    "TEXT_MODELS",
    "AsrModel",
    "CausalLm",
    "CausalLmConfig",
    "Hybrid",
    "HybridConfig",
    "LanguageModel",
    "LanguageModelConfig",
    "LlmHead",
    "LlmHeadConfig",
    "Model",
    "SpeechLlm",
    "SpeechLlmConfig",
    "TextModel",
    "default_head",
]
