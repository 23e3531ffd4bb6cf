"""A trained Qifusion-Net in seconds: two accents are two pitches of the toy experiment's tones."""

from __future__ import annotations

from pathlib import Path

from tests import toy_experiment

ACCENTS = {"high": 1.3, "low": 1.0}
CONFIG = """
data:
  fbank: {num_mel_bins: 20, rate: 8000}
  batch: {seconds: 20}
  workers: 0
model:
  type: hybrid
  encoder:
    type: qifusion
    num_layers: 2
    dim: 32
    num_heads: 2
    ffn_dim: 64
    kernel: 7
    dropout: 0.0
    chunk: {dynamic: true, max_ms: 400, left_chunks: 4}
    downsamplers:
      0: {type: conv2d, factor: 2, channels: 8, causal: true}
      1: {type: strided_conv, factor: 2, kernel: 5, causal: true}
    accent: {classes: 2, layers: [1]}
  decoder: {type: transformer, num_layers: 1, num_heads: 2, ffn_dim: 64, dropout: 0.0}
losses:
  ctc: {type: ctc, weight: 0.5}
  attention: {type: cross_entropy, weight: 0.5}
  accent: {type: accent, weight: 6.0, form: cross_entropy}
optim: {lr: 5e-3, schedule: {type: one_cycle}}
trainer: {epochs: 22, average: 1, best: valid/cer, average_by: last}
"""
DECODE = """
searcher: {type: attention_rescoring, first_pass: {beam: 4}, weights: {ctc: 0.5, attention: 0.5}}
average: 1
batch_seconds: 20
"""


def make(root: Path) -> Path:
    """Folder with data, dump, vocab, exp, train.yaml and decode_rescoring.yaml."""
    toy_experiment.make(root, CONFIG, ACCENTS)
    (root / "decode_rescoring.yaml").write_text(DECODE)
    return root
