"""Which search may read which head, where frames were dropped between them."""

from __future__ import annotations

import pytest
import torch

from asrtool.decoders import TransformerDecoderConfig
from asrtool.downsamplers import Conv2dConfig, KeyframeConfig
from asrtool.encoders import ConformerConfig
from asrtool.losses import CtcConfig, CtcLoss
from asrtool.models import MODELS, HybridConfig
from asrtool.searchers import (
    SEARCHERS,
    AttentionBeamConfig,
    ConstraintsConfig,
    CtcGreedyConfig,
    CtcPrefixBeamConfig,
    JointBeamConfig,
    RescoringConfig,
)
from asrtool.types import Batch, Padded

VOCABULARY = 7


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = ConformerConfig(
        num_layers=2,
        dim=16,
        num_heads=2,
        ffn_dim=32,
        kernel=5,
        downsamplers={0: Conv2dConfig(channels=4), 1: KeyframeConfig()},
    )
    decoder = TransformerDecoderConfig(num_layers=1, num_heads=2, ffn_dim=32)
    heads = frozenset({"inter_ctc", "aligned", "attention"})
    config = HybridConfig(encoder=encoder, decoder=decoder)
    return MODELS.build(
        config, input_dim=20, vocab_size=VOCABULARY, frame_shift=0.01, heads=heads
    ).eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    inputs = Padded.stack([torch.randn(length, 20, generator=generator) for length in (160, 70)])
    return Batch(
        ids=("a", "b"),
        inputs=inputs,
        targets=Padded.stack([torch.tensor([1, 2, 2]), torch.tensor([3])]),
    )


def test_heads_have_frames_of_their_own(model, batch):
    outputs = model(batch)
    assert outputs.heads["inter_ctc"].lengths.tolist() == [40, 18]
    assert outputs.heads["aligned"].lengths.equal(outputs.encoder.frames.lengths)
    assert (outputs.encoder.frames.lengths < torch.tensor([40, 18])).all()


@pytest.mark.parametrize(
    "config",
    [
        AttentionBeamConfig(beam=3),
        JointBeamConfig(beam=3, weights={"attention": 0.7, "inter_ctc": 0.3}),
        CtcGreedyConfig(input="aligned", collapse=False),
        CtcGreedyConfig(input="inter_ctc"),
        CtcPrefixBeamConfig(input="inter_ctc", beam=3),
        RescoringConfig(first_pass=CtcPrefixBeamConfig(input="inter_ctc", beam=3)),
    ],
    ids=lambda config: type(config).__name__,
)
def test_every_search_gives_the_same_alone_and_in_a_batch(model, batch, config):
    searcher = SEARCHERS.build(config, model=model)
    with torch.inference_mode():
        together = searcher.search(model.encode(batch.inputs))
        for row, inputs in enumerate(batch.inputs.unpad()):
            (alone,) = searcher.search(model.encode(Padded.stack([inputs])))
            assert alone[0].tokens == together[row][0].tokens
            assert alone[0].score == pytest.approx(together[row][0].score, abs=1e-3)


def test_the_joint_search_rates_by_the_head_that_sees_all_frames(model, batch):
    searcher = SEARCHERS.build(
        JointBeamConfig(beam=3, weights={"attention": 0.7, "inter_ctc": 0.3}), model=model
    )
    best = searcher.search(model.encode(batch.inputs))[0][0]
    loss = CtcLoss(CtcConfig(weight=1.0, input="inter_ctc"), eos=VOCABULARY - 1)
    outputs = model(batch)
    targets = Padded.stack([torch.tensor(best.tokens, dtype=torch.int64)] * 2)
    again = Batch(ids=batch.ids, inputs=batch.inputs, targets=targets)
    assert best.parts["inter_ctc"] == pytest.approx(-loss(outputs, again)[0].item(), abs=1e-3)


def test_no_ctc_search_takes_the_aligned_head_for_its_own(model):
    with pytest.raises(ValueError, match="'aligned' has a frame for every token"):
        SEARCHERS.build(CtcGreedyConfig(input="aligned", collapse=True), model=model)
    assert not SEARCHERS.build(CtcGreedyConfig(input="aligned"), model=model).collapse
    with pytest.raises(LookupError, match="cannot read the head 'aligned'.*can read: inter_ctc"):
        SEARCHERS.build(CtcPrefixBeamConfig(input="aligned"), model=model)


@pytest.mark.parametrize("name", ["ctc", "aligned"])
def test_the_joint_search_lists_the_ctc_heads_there_are(model, name):
    with pytest.raises(LookupError, match=rf"no scorer '{name}'.*\(it has: attention, inter_ctc\)"):
        SEARCHERS.build(JointBeamConfig(weights={"attention": 0.7, name: 0.3}), model=model)


def test_dropped_frames_do_not_limit_the_length_of_a_text(model, batch):
    encoded = model.encode(batch.inputs)
    assert ConstraintsConfig().limits(encoded, model.frame_shift) == [40, 18]


def test_the_inter_ctc_loss_tells_how_many_frames_stay(model, batch):
    outputs = model(batch)
    loss = CtcLoss(CtcConfig(weight=1.0, input="inter_ctc"), eos=VOCABULARY - 1)
    found = loss.monitor(outputs, batch)
    keys = outputs.encoder.taps["key_frames"].data.sum(1)
    torch.testing.assert_close(found["key_frames_per_token"], keys / torch.tensor([3, 1]))
    torch.testing.assert_close(
        found["frame_reduction"], 1 - outputs.encoder.frames.lengths / torch.tensor([40, 18])
    )
    assert set(found) == set(loss.monitors) and not CtcLoss(CtcConfig(weight=1.0), eos=6).monitors
