"""A pre-trained encoder before a Conformer: its layers and tuning, stored frames, no chunks."""

from __future__ import annotations

import pytest
import torch

from asrtool.downsamplers import Conv2dConfig, LinearConfig
from asrtool.encoders import ENCODERS, ChunkConfig, CnnConfig, ConformerConfig, Data2vecConfig
from asrtool.tuning import EncoderTuning
from asrtool.types import Padded

SMALL = {"num_layers": 2, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 5}
MODES = ("frozen", "lora", "full")
LAYERS = (None, 1, "sum")


def build(mode: str = "frozen", layer=None, **options):
    torch.manual_seed(0)
    tuning = EncoderTuning(mode=mode)
    frontend = Data2vecConfig(size="tiny", layer=layer, tuning=tuning, dropout=0.5)
    stems = {0: LinearConfig()}
    config = ConformerConfig(**{**SMALL, "frontend": frontend, "downsamplers": stems, **options})
    return ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000)


def batch() -> Padded:
    generator = torch.Generator().manual_seed(1)
    return Padded.stack([torch.randn(size, generator=generator) for size in (9000, 5000)])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_frozen_gets_a_gradient(mode, layer):
    encoder = build(mode, layer)
    assert encoder.reads_samples and encoder.frame_shift == pytest.approx(0.02)
    assert len(encoder.frontend.model.encoder.layers) == (1 if layer == 1 else 2)
    encoder(batch()).frames.data.square().sum().backward()
    without = {key for key, value in encoder.named_parameters() if value.grad is None}
    assert without == encoder.frozen
    assert (mode == "full") == (not encoder.frozen)
    assert not any("lora" in key or "layer_weights" in key for key in encoder.frozen)


@pytest.mark.parametrize("layer", LAYERS)
def test_stored_frames_give_the_numbers_of_computed_ones(layer):
    encoder = build(layer=layer, dropout=0.0).train()  # its front end stays as in evaluation
    stored = encoder.frontend.stored(batch())
    assert stored.data.shape[2] == encoder.frontend.stored_dim == (64 if layer == "sum" else 32)
    halves = Padded(stored.data.half(), stored.lengths)
    assert torch.equal(halves.data.float(), stored.data)
    assert torch.equal(encoder(halves).frames.data, encoder(batch()).frames.data)


def test_masks_of_frozen_frames_hide_what_comes_out_in_training_alone():
    encoder = build(layer="sum", dropout=0.0)
    masked = Data2vecConfig(
        size="tiny",
        layer="sum",
        tuning=EncoderTuning(mode="frozen"),
        time_mask=0.5,
        channel_mask=0.3,
    )
    torch.manual_seed(0)
    frontend = ENCODERS.build(masked, input_dim=1, vocab_size=5, frame_shift=1 / 16000)
    plain = encoder.frontend(batch()).frames.data
    assert torch.equal(frontend.eval()(batch()).frames.data, plain)
    hidden = frontend.train()(batch()).frames.data
    assert ((hidden == plain) | (hidden == 0)).all() and not torch.equal(hidden, plain)
    assert torch.equal(frontend.stored(batch()).data, encoder.frontend.stored(batch()).data)


@pytest.mark.parametrize("layer", LAYERS)
def test_convolutions_read_stored_frames_too(layer):
    torch.manual_seed(0)
    frontend = Data2vecConfig(size="tiny", layer=layer, tuning=EncoderTuning(mode="frozen"))
    config = CnnConfig(dim=8, frontend=frontend)
    cnn = ENCODERS.build(config, input_dim=1, vocab_size=5, frame_shift=1 / 16000).eval()
    assert cnn.reads_samples and cnn.frame_shift == pytest.approx(0.02) and cnn.frozen
    stored = cnn.frontend.stored(batch())
    assert torch.equal(cnn(stored).frames.data, cnn(batch()).frames.data)
    with pytest.raises(ValueError, match="cnn cannot stream"):
        cnn(batch(), chunk=4)


def test_settings_of_convolutions_that_cannot_be_are_refused():
    frontend = Data2vecConfig(size="tiny")
    for options, message in (
        ({"kernel": 4}, "kernel must be an odd number of frames, got 4"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"frontend": frontend, "stem": Conv2dConfig()}, "conv2d reads mel bins"),
    ):
        with pytest.raises(ValueError, match=message):
            CnnConfig(**options)


def test_trained_frames_cannot_be_stored():
    with pytest.raises(ValueError, match="data2vec is trained: only frozen frames can be stored"):
        build("lora").frontend.stored(batch())


def test_frames_of_another_width_are_refused():
    with pytest.raises(ValueError, match="data2vec stores 32 numbers a frame, got 7"):
        build()(Padded(torch.zeros(1, 5, 7), torch.tensor([5])))


def test_it_does_not_stream():
    encoder = build(causal=True)
    assert "front end (Data2vec) sees the whole utterance" in encoder.obstacle
    with pytest.raises(ValueError, match="cannot stream: its front end"):
        encoder(batch(), chunk=4)
    with pytest.raises(ValueError, match="cannot stream: its front end"):
        encoder.init_cache(1, 4)
    with pytest.raises(ValueError, match="chunk: the encoder cannot stream: its front end"):
        build(causal=True, chunk=ChunkConfig())


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="the stem conv2d reads mel bins"):
        build(downsamplers={0: Conv2dConfig()})
    with pytest.raises(ValueError, match="encoder conformer reads features"):
        build(frontend=ConformerConfig(**SMALL))
    with pytest.raises(ValueError, match="layer is 3: the encoder has 2 layers"):
        build(layer=3)
    with pytest.raises(ValueError, match="layers count from 1"):
        build(layer=0)
