"""The hybrid model over Qifusion-Net's encoder: who reads which stream."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from asrtool.encoders import AccentConfig, QifusionConfig
from asrtool.losses import LOSSES, AccentLossConfig, CrossEntropyConfig, CtcConfig
from asrtool.models import MODELS, HybridConfig
from asrtool.trainer.objective import Objective
from tests.unit.models.test_hybrid import DECODER, VOCABULARY, batch

ENCODER = QifusionConfig(
    num_layers=2, dim=16, num_heads=2, ffn_dim=32, kernel=5, accent=AccentConfig(classes=3)
)
STREAMS = frozenset({"ctc", "attention", "accent"})


def build(encoder=ENCODER, **options):
    torch.manual_seed(0)
    config = HybridConfig(encoder=encoder, decoder=DECODER, **options)
    return MODELS.build(
        config, input_dim=20, vocab_size=VOCABULARY, frame_shift=0.01, heads=STREAMS
    ).eval()


def changed(model, module, case) -> dict[str, bool]:
    """Which streams change when the weights of a module do."""
    before = model(case).heads
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = model(case).heads
    return {name: not torch.allclose(before[name].data, after[name].data) for name in before}


@torch.no_grad()
def test_ctc_reads_the_acoustic_stream_and_the_decoder_the_fused_one():
    model = build()
    assert changed(model, model.encoder.accent_fusion, batch()) == {
        "ctc": False,
        "attention": True,
        "accent": False,
    }
    model = build()
    assert changed(model, model.encoder.layer_fusion, batch()) == {
        "ctc": False,
        "attention": True,
        "accent": True,
    }
    model = build()
    assert changed(model, model.encoder.accent_head, batch()) == {
        "ctc": False,
        "attention": False,
        "accent": True,
    }


@torch.no_grad()
def test_ctc_may_read_another_tap():
    model = build(ctc_input="frames")
    assert changed(model, model.encoder.accent_fusion, batch())["ctc"]
    with pytest.raises(
        LookupError,
        match="the tap 'fused', which the encoder does not have .it has: accent, accent_embed",
    ):
        build(ctc_input="fused")(batch())


@pytest.mark.parametrize(
    "accent",
    [
        ENCODER.accent,
        replace(ENCODER.accent, query="acoustic"),
        replace(ENCODER.accent, compat=True),
    ],
)
def test_every_parameter_learns_with_and_without_labels(accent):
    losses = {
        "ctc": CtcConfig(weight=0.5),
        "attention": CrossEntropyConfig(weight=0.5),
        "accent": AccentLossConfig(weight=0.3),
    }
    objective = Objective(
        {name: LOSSES.build(config, eos=VOCABULARY - 1) for name, config in losses.items()},
        {name: config.weight for name, config in losses.items()},
    )
    for labels in ({}, {"accent": torch.tensor([2, -1])}):
        model, case = (
            build(replace(ENCODER, accent=accent)).train(),
            replace(batch(), labels=labels),
        )
        report = objective(model(case), case)
        report.total.backward()
        assert torch.isfinite(report.total) and not report.skipped.any()
        assert [name for name, value in model.named_parameters() if value.grad is None] == []
        assert bool(model.encoder.accent_head.convolution.weight.grad.any()) == bool(labels)
