from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from asrtool.decoders import DECODERS, TransformerDecoderConfig
from asrtool.decoders.base import Reversed, flip
from asrtool.searchers import CtcPrefixBeamConfig, Rescoring, RescoringConfig
from asrtool.searchers.rescoring import sequence_scores
from asrtool.types import EncoderOutput, Padded
from tests.toy_search import MemoryScorer, ToyModel, choose, utterances

LENGTHS = (9, 1, 14, 5)


def decoder(seed: int = 0, vocabulary: int = 9):
    torch.manual_seed(seed)
    config = TransformerDecoderConfig(num_layers=2, num_heads=2, ffn_dim=32, dropout=0.0)
    return DECODERS.build(config, dim=16, vocab_size=vocabulary).eval()


def wide(encoded: EncoderOutput) -> EncoderOutput:
    """Frames of width 16, as a decoder wants them."""
    return replace(
        encoded, frames=encoded.frames._replace(data=encoded.frames.data.repeat(1, 1, 4)[:, :, :16])
    )


def single(encoded: EncoderOutput, row: int) -> EncoderOutput:
    return choose(encoded, [row])


def test_the_scores_are_those_of_the_sequences_and_the_best_comes_first():
    model, encoded = ToyModel(vocabulary=9, seed=3), utterances(LENGTHS)
    config = RescoringConfig(weights={"ctc": 0.3, "attention": 0.7}, length_bonus=0.2)
    first = Rescoring(config, model=model).first.search(encoded)
    for row, found in enumerate(Rescoring(config, model=model).search(encoded)):
        frames = single(encoded, row).frames
        expected = {}
        for h in first[row]:
            attention = model.attention.sequence(frames, h.tokens, model.eos)
            expected[h.tokens] = 0.3 * h.score + 0.7 * attention + 0.2 * len(h.tokens)
        assert {h.tokens: pytest.approx(h.score, abs=1e-9) for h in found} == expected
        assert found[0].tokens == max(expected, key=expected.get)
        assert {h.positions for h in found} == {h.positions for h in first[row]}


def test_a_scorer_that_goes_token_by_token_gives_what_the_sequence_as_a_whole_gets():
    model, encoded = decoder(), wide(utterances(LENGTHS))
    rows = [(1, 2, 3), (), (4,), (5, 5), (1,), (2, 2), (7, 1, 1, 1), (3,)]
    targets = Padded.stack([torch.tensor(row, dtype=torch.int64) for row in rows])

    class Steps:
        start, score, select = model.start, model.score, model.select

    with torch.inference_mode():
        whole = sequence_scores(model, encoded, targets, 8)
        torch.testing.assert_close(
            sequence_scores(Steps(), encoded, targets, 8), whole, atol=1e-5, rtol=1e-5
        )
        for row, tokens in enumerate(rows):
            alone = Padded.stack([torch.tensor(tokens, dtype=torch.int64)])
            value = model.sequence_scores(single(encoded, row // 2), alone)
            torch.testing.assert_close(value[0], whole[row], atol=1e-5, rtol=1e-5)


def test_reversing_leaves_padding_where_it_is_and_undoes_itself():
    rows = Padded.stack(
        [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([], dtype=torch.int64)], padding=9
    )
    assert flip(rows).data.tolist() == [[3, 2, 1], [4, 9, 9], [9, 9, 9]]
    assert torch.equal(flip(flip(rows)).data, rows.data)


def test_the_reverse_decoder_rates_each_token_by_those_after_it():
    model, encoded = decoder(), wide(utterances((7, 4)))
    targets = Padded.stack([torch.tensor([1, 2, 3]), torch.tensor([4])])
    with torch.no_grad():
        logits = Reversed(model).logits(encoded, targets).data
        expected = model(encoded, flip(targets)).data
        later = Padded.stack([torch.tensor([1, 2, 5]), torch.tensor([4])])
        earlier = Padded.stack([torch.tensor([6, 2, 3]), torch.tensor([4])])
        torch.testing.assert_close(logits[0, [2, 1, 0, 3]], expected[0])
        torch.testing.assert_close(logits[1, :2], expected[1, :2])
        assert not torch.allclose(Reversed(model).logits(encoded, later).data[0, 1], logits[0, 1])
        torch.testing.assert_close(
            Reversed(model).logits(encoded, earlier).data[0, 1], logits[0, 1]
        )
        score = Reversed(model).sequence_scores(encoded, targets)
    picked = logits.log_softmax(-1)
    by_hand = picked[0, [0, 1, 2, 3], [1, 2, 3, 8]].sum(), picked[1, [0, 1], [4, 8]].sum()
    torch.testing.assert_close(score, torch.stack(by_hand).double(), atol=1e-5, rtol=1e-5)


def test_more_scorers_may_join_such_as_a_language_model():
    model, encoded = ToyModel(vocabulary=9, seed=3), utterances(LENGTHS)
    config = RescoringConfig(weights={"ctc": 0.5, "attention": 0.3, "lm": 0.4})
    found = Rescoring(config, model=model, scorers={"lm": MemoryScorer(9, seed=8)}).search(encoded)
    for nbest in found:
        for h in nbest:
            assert set(h.parts) == {"ctc", "attention", "lm"}
            assert h.score == pytest.approx(
                sum(config.weights[name] * value for name, value in h.parts.items())
            )
    with pytest.raises(LookupError, match="no scorer 'lm' for weights.lm .it has: attention, ctc"):
        Rescoring(config, model=model)


def test_without_a_weight_a_part_of_the_first_pass_counts_no_more():
    config = RescoringConfig(weights={"attention": 1.0}, first_pass=CtcPrefixBeamConfig(beam=3))
    for nbest in Rescoring(config, model=ToyModel(vocabulary=9)).search(utterances(LENGTHS)):
        assert len(nbest) <= 3 and all(
            h.score == pytest.approx(h.parts["attention"]) for h in nbest
        )


def test_weights_that_cannot_be_meant_are_refused():
    for weights in ({}, {"ctc": 0.0}, {"ctc": -1.0, "attention": 1.0}):
        with pytest.raises(ValueError, match="weights must not be negative"):
            RescoringConfig(weights=weights)
