from __future__ import annotations

import pytest
import torch

from asrtool.decoders import TransformerDecoderConfig
from asrtool.downsamplers import Conv2dConfig
from asrtool.encoders.conformer import ConformerConfig
from asrtool.losses import CrossEntropyConfig, CrossEntropyLoss
from asrtool.models import MODELS, HybridConfig
from asrtool.searchers import SEARCHERS, JointBeamConfig
from asrtool.trainer.precision import autocast
from asrtool.types import Batch, Padded

VOCABULARY = 11
ENCODER = ConformerConfig(
    num_layers=2,
    dim=16,
    num_heads=2,
    ffn_dim=32,
    kernel=5,
    downsamplers={0: Conv2dConfig(factor=4, channels=4)},
)
DECODER = TransformerDecoderConfig(num_layers=1, num_heads=2, ffn_dim=32)


def build(heads=("ctc", "attention"), decoder=DECODER, reverse=None):
    torch.manual_seed(0)
    config = HybridConfig(encoder=ENCODER, decoder=decoder, reverse_decoder=reverse)
    return MODELS.build(
        config, input_dim=20, vocab_size=VOCABULARY, frame_shift=0.01, heads=frozenset(heads)
    ).eval()


def batch(frames=(40, 17), targets=((1, 2, 3), (4,))):
    generator = torch.Generator().manual_seed(0)
    inputs = Padded.stack([torch.randn(length, 20, generator=generator) for length in frames])
    tokens = Padded.stack([torch.tensor(row) for row in targets])
    return Batch(ids=("a", "b"), inputs=inputs, targets=tokens)


def test_a_head_exists_where_a_loss_reads_it_and_nowhere_else():
    assert set(build()(batch()).heads) == {"ctc", "attention"}
    assert set(build(["attention"])(batch()).heads) == {"attention"}
    names = [name for name, _ in build(["attention"]).named_parameters()]
    assert all(name.startswith(("encoder.", "heads.attention.decoder.")) for name in names)


def test_lengths_and_times_follow_the_stem():
    model = build()
    output = model(batch())
    assert output.heads["ctc"].data.shape == (2, 10, VOCABULARY)
    assert output.heads["ctc"].lengths.tolist() == [10, 5]
    assert model.frame_shift == pytest.approx(0.04)


def test_log_probs_are_normalised_and_those_of_the_training_pass():
    model, case = build(), batch()
    log_probs = model.log_probs(model.encode(case.inputs))
    torch.testing.assert_close(log_probs.data.exp().sum(-1), torch.ones(2, 10))
    torch.testing.assert_close(log_probs.data, model(case).heads["ctc"].data.log_softmax(-1))


def test_a_head_that_no_loss_trained_is_an_error_that_lists_the_others():
    model = build(["attention"])
    with pytest.raises(
        LookupError,
        match="no loss trained the head 'ctc' .heads of this model: attention",
    ):
        model.log_probs(model.encode(batch().inputs))
    with pytest.raises(LookupError, match="no head 'ctc' .it has: attention."):
        model(batch()).head("ctc")


@pytest.mark.parametrize(
    ("heads", "decoder", "message"),
    [
        (("attention",), None, "model.decoder is not set"),
        (("ctc",), DECODER, "no loss reads its head 'attention'"),
    ],
)
def test_a_decoder_and_its_loss_come_together(heads, decoder, message):
    with pytest.raises(ValueError, match=message):
        build(heads, decoder)


def test_a_right_to_left_decoder_has_a_head_of_its_own_and_rates_sequences():
    model, case = build(["ctc", "attention", "reverse"], reverse=DECODER), batch()
    outputs = model(case).heads
    assert outputs["reverse"].data.shape == outputs["attention"].data.shape
    assert outputs["reverse"].lengths.tolist() == [4, 2]
    assert set(model.rescorers()) == {"attention", "reverse"} and set(model.scorers()) == {
        "attention"
    }
    loss = CrossEntropyLoss(
        CrossEntropyConfig(weight=1.0, input="reverse", smoothing=0.0), eos=VOCABULARY - 1
    )
    scores = model.rescorers()["reverse"].sequence_scores(model.encode(case.inputs), case.targets)
    torch.testing.assert_close(scores, -loss(model(case), case).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("heads", "reverse"),
    [(("ctc", "attention", "reverse"), None), (("ctc", "attention"), DECODER)],
)
def test_a_right_to_left_decoder_and_its_loss_come_together(heads, reverse):
    with pytest.raises(ValueError, match="reverse_decoder is (not )?set.*"):
        build(heads, reverse=reverse)


@torch.inference_mode()
def test_a_search_in_half_precision_scores_alike():
    """Encoder, decoder and its caches, and the prefix scores of CTC, in autocast."""
    model = build()
    tokens = ["<blank>", "<unk>", *"abcdefgh", "<sos/eos>"]
    searcher = SEARCHERS.build(JointBeamConfig(), model=model, tokens=tokens)
    best = {}
    for precision in ("float32", "bf16"):
        with autocast(torch.device("cpu"), precision):
            found = searcher.search(model.encode(batch().inputs))
        best[precision] = [nbest[0] for nbest in found]
    for half, exact in zip(best["bf16"], best["float32"], strict=True):
        assert half.score == pytest.approx(exact.score, rel=0.02)
        assert half.parts != exact.parts
