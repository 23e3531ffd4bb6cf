"""The language model: as a model that is trained, as a scorer of a search, and for rescoring."""

from __future__ import annotations

import itertools

import pytest
import torch

from asrtool.models import MODELS, AsrModel, LanguageModelConfig
from asrtool.searchers import SEARCHERS
from asrtool.types import Batch, EncoderOutput, Padded
from tests.toy_search import ToyModel, utterances

VOCABULARY = 6
SMALL = LanguageModelConfig(num_layers=2, dim=16, num_heads=2, ffn_dim=32)


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(0)
    streams = frozenset({"lm"})
    model = MODELS.build(
        SMALL, input_dim=1, vocab_size=VOCABULARY, frame_shift=1.0, heads=streams
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def batch(*rows: tuple[int, ...]) -> Batch:
    tokens = Padded.stack([torch.tensor(row, dtype=torch.int64) for row in rows])
    return Batch(ids=tuple(map(str, range(len(rows)))), inputs=tokens, targets=tokens)


def no_frames(count: int) -> EncoderOutput:
    frames = Padded(torch.zeros(count, 1, 1), torch.ones(count, dtype=torch.int64))
    return EncoderOutput(frames=frames, positions=torch.zeros(count, 1, dtype=torch.int64))


def sequence_log_prob(lm, tokens: tuple[int, ...]) -> float:
    logits = lm(batch(tokens)).heads["lm"].data[0].double().log_softmax(-1)
    return sum(logits[place, token].item() for place, token in enumerate((*tokens, lm.eos)))


def test_row_u_rates_token_u_and_sees_only_what_is_before(lm):
    one, other = (lm(batch(tokens)).heads["lm"] for tokens in ((1, 2, 3, 4), (1, 2, 4, 4)))
    assert one.data.shape == (1, 5, VOCABULARY) and one.lengths.tolist() == [5]
    torch.testing.assert_close(one.data[:, :3], other.data[:, :3])
    assert (one.data[:, 3:] - other.data[:, 3:]).abs().max() > 1e-3


def test_padding_changes_nothing(lm):
    together = lm(batch((1, 2, 3, 4, 1), (3,), ())).heads["lm"]
    for row, tokens in enumerate(((1, 2, 3, 4, 1), (3,), ())):
        alone = lm(batch(tokens)).heads["lm"].data[0]
        torch.testing.assert_close(
            together.data[row, : len(tokens) + 1], alone, atol=1e-5, rtol=1e-5
        )


def test_whole_sequences_and_single_tokens_get_the_same_scores(lm):
    sequences = [
        tokens for count in range(4) for tokens in itertools.product(range(1, 5), repeat=count)
    ]
    targets = Padded.stack([torch.tensor(tokens, dtype=torch.int64) for tokens in sequences])
    whole = lm.sequence_scores(no_frames(1), targets).tolist()
    expected = [sequence_log_prob(lm, tokens) for tokens in sequences]
    assert whole == pytest.approx(expected, abs=1e-4)
    state, total, prefix = lm.start(no_frames(1), 1), 0.0, [lm.eos]
    for token in (2, 4, 1, lm.eos):
        scores, state = lm.score(torch.tensor([prefix]), state, None)
        total += scores[0, token].item()
        prefix.append(token)
    assert total == pytest.approx(sequence_log_prob(lm, (2, 4, 1)), abs=1e-4)


def test_rows_of_the_state_can_be_chosen(lm):
    prefixes = torch.tensor([[lm.eos, 1], [lm.eos, 2], [lm.eos, 3]])
    state = lm.start(no_frames(3), 1)
    _, state = lm.score(prefixes[:, :1], state, None)
    expected, state = lm.score(prefixes, state, None)
    rows = torch.tensor([2, 0])
    longer = torch.cat([prefixes[rows], torch.tensor([[4], [4]])], 1)
    found, _ = lm.score(longer, lm.select(state, rows), torch.tensor([[1, 2], [1, 2]]))
    for place, row in enumerate(rows.tolist()):
        alone = lm(batch((int(prefixes[row, 1]), 4))).heads["lm"].data[0, 2].log_softmax(-1)
        assert found[place].tolist() == pytest.approx(alone[1:3].tolist(), abs=1e-4)


@pytest.mark.parametrize("name", ["joint_beam", "attention_beam", "attention_rescoring"])
def test_searches_take_it_as_a_scorer(lm, name):
    model = ToyModel(vocabulary=VOCABULARY, seed=3)
    weights = (
        {"attention": 1.0, "lm": 0.5}
        if name == "attention_beam"
        else {"ctc": 0.5, "attention": 0.5, "lm": 0.5}
    )
    config = SEARCHERS.config_type(name)(weights=weights)
    for nbest in SEARCHERS.build(config, model=model, scorers={"lm": lm}).search(
        utterances((6, 3, 9))
    ):
        for hypothesis in nbest:
            assert hypothesis.parts["lm"] == pytest.approx(
                sequence_log_prob(lm, hypothesis.tokens), abs=1e-4
            )
            expected = sum(weights[part] * value for part, value in hypothesis.parts.items())
            assert hypothesis.score == pytest.approx(expected, abs=1e-6)


def test_a_loss_that_reads_another_output_is_refused():
    with pytest.raises(ValueError, match="has only the output 'lm', but the losses read: a"):
        MODELS.build(
            SMALL, input_dim=1, vocab_size=5, frame_shift=1.0, heads=frozenset({"attention"})
        )


def test_it_hears_nothing(lm):
    assert not isinstance(lm, AsrModel) and not hasattr(lm, "encode")
