"""Models of configs, built on the meta device to check that they can be built."""

from __future__ import annotations

import torch

from asrtool.experiment import TrainConfig
from asrtool.model_folder import build_model

_built: list[tuple[tuple, torch.nn.Module]] = []


def on_meta(phase: TrainConfig, vocab_size: int) -> torch.nn.Module:
    """The model of a phase, without memory for its weights.

    A model of many layers takes seconds to build, so phases with the same model share it.
    """
    what = (phase.model, phase.heads, phase.data.input, phase.data.fbank, vocab_size)
    for known, model in _built:
        if known == what:
            return model
    with torch.device("meta"):
        model = build_model(phase, vocab_size)
    _built.append((what, model))
    return model
