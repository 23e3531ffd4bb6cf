"""A toy experiment on the stored frames of a tiny random front end."""

from __future__ import annotations

from pathlib import Path

import torch

from tests import toy_experiment, toy_ssl

FRONTEND = "{{type: hubert, weights: {weights}, layer: {layer}, tuning: frozen}}"
CONFIG = """
data:
  input: waveform
  features: {features}
  fbank: {{rate: 8000}}
  batch: {{seconds: 20}}
  workers: 0
model:
  type: hybrid
  encoder: {{type: conformer, num_layers: 1, dim: 32, num_heads: 2, ffn_dim: 64, kernel: 7,
    dropout: 0.0, downsamplers: {{0: {{type: linear}}}}, frontend: {frontend}}}
losses:
  ctc: {{type: ctc, weight: 1.0}}
optim: {{lr: 5e-3, schedule: {{type: one_cycle}}}}
trainer: {{epochs: {epochs}, average: 1, best: valid/cer, average_by: last,
  validate_every: 95}}
"""


# frames of 20 ms at 8 kHz
SHAPE = {
    "conv_dim": [32] * 4,
    "conv_kernel": [40, 3, 3, 3],
    "conv_stride": [20, 2, 2, 2],
    "hidden_size": 48,
}


def weights(folder: Path, seed: int = 0) -> Path:
    """A folder with the weights of a tiny front end."""
    model = toy_ssl.make("hubert", **SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(seed * 0.01)
    return toy_ssl.save(model, folder)


def config(
    folder: Path, features: str = "stored_frames", layer: int | str = 1, epochs: int = 10
) -> str:
    frontend = FRONTEND.format(weights=folder, layer=layer)
    return CONFIG.format(features=features, frontend=frontend, epochs=epochs)


def make(root: Path) -> Path:
    """As `toy_experiment.make`."""
    return toy_experiment.make(root, config(weights(root / "hubert")))
