from __future__ import annotations

import pytest
import torch

from asrtool.searchers import AttentionBeamConfig, Beam, ConstraintsConfig, JointBeamConfig
from tests.toy_search import (
    MemoryScorer,
    ToyModel,
    choose,
    heads,
    label_probabilities,
    safe_log,
    utterances,
)

LENGTHS = (9, 3, 14, 6)


def search(config, model=None, encoded=None):
    return Beam(config, model=model or ToyModel(vocabulary=9, seed=3)).search(
        encoded or utterances(LENGTHS)
    )


def greedy(model: ToyModel, encoded, limit: int) -> tuple[int, ...]:
    """The most probable token after each prefix, without a search."""
    state = model.attention.start(encoded, 1)
    tokens: list[int] = []
    while True:
        scores, state = model.attention.score(torch.tensor([[model.eos, *tokens]]), state, None)
        scores[:, model.blank] = -float("inf")
        token = scores.argmax().item()
        if token == model.eos or len(tokens) == limit:
            return tuple(tokens)
        tokens.append(token)


@pytest.mark.parametrize("seed", range(10))
def test_a_beam_of_one_is_greedy_search(seed):
    model, encoded = ToyModel(vocabulary=6, seed=seed), utterances(LENGTHS, seed=seed)
    found = search(AttentionBeamConfig(beam=1), model, encoded)
    assert [nbest[0].tokens for nbest in found] == [
        greedy(model, choose(encoded, [row]), length) for row, length in enumerate(LENGTHS)
    ]


def test_as_many_candidates_as_tokens_equal_the_whole_vocabulary():
    assert search(JointBeamConfig(beam=4, candidates=7)) == search(
        JointBeamConfig(beam=4, candidates=100)
    )


def test_few_candidates_are_those_that_the_attention_prefers():
    narrow = search(JointBeamConfig(beam=2, candidates=2))
    model = ToyModel(vocabulary=9, seed=3)
    state = model.attention.start(utterances(LENGTHS), 1)
    scores, _ = model.attention.score(torch.full((4, 1), model.eos), state, None)
    scores[:, [model.blank, model.eos]] = -float("inf")
    for row, nbest in enumerate(narrow):
        assert all(h.tokens[0] in scores[row].topk(2).indices.tolist() for h in nbest if h.tokens)


def test_parts_are_those_of_the_searches_with_one_scorer():
    model, encoded = ToyModel(vocabulary=9, seed=3), utterances((9,))
    for hypothesis in search(JointBeamConfig(beam=6), model, encoded)[0]:
        expected = model.attention.sequence(encoded.frames, hypothesis.tokens, model.eos)
        assert hypothesis.parts["attention"] == pytest.approx(expected, abs=1e-9)
        log_probs, targets = (
            model.log_probs(encoded).data.transpose(0, 1),
            torch.tensor([hypothesis.tokens]),
        )
        ctc = torch.nn.functional.ctc_loss(
            log_probs, targets, [9], [targets.shape[1]], reduction="sum"
        )
        assert hypothesis.parts["ctc"] == pytest.approx(-ctc.item(), abs=1e-9)


def test_a_scorer_of_weight_zero_is_not_computed():
    model = ToyModel(vocabulary=9, seed=3)
    model.heads = heads("attention")  # no CTC head at all
    found = search(JointBeamConfig(weights={"attention": 1.0, "ctc": 0.0}), model)
    assert found == search(AttentionBeamConfig(), model)
    assert set(found[0][0].parts) == {"attention"}


def test_every_row_leaves_with_its_utterance():
    model, sizes = ToyModel(vocabulary=6, seed=0), []
    score = model.attention.score

    def counted(prefixes, state, candidates):
        sizes.append(len(prefixes))
        return score(prefixes, state, candidates)

    model.attention.score = counted
    search(AttentionBeamConfig(beam=3), model, utterances((2, 20, 4)))
    assert sizes[0] == 9 and sizes[-1] == 3 and sizes == sorted(sizes, reverse=True)


def test_more_certain_hypotheses_begin_with_the_fewer():
    one, five = (search(JointBeamConfig(beam=8, nbest=nbest)) for nbest in (1, 5))
    for first, more in zip(one, five, strict=True):
        assert len(more) >= 5 and more[0] == first[0]


def test_length_terms_are_part_of_the_score():
    constraints = ConstraintsConfig(length_bonus=0.8, length_penalty=0.5)
    config = JointBeamConfig(beam=4, constraints=constraints)
    for nbest in search(config):
        for h in nbest:
            total = sum(config.weights[name] * part for name, part in h.parts.items()) + 0.8 * len(
                h.tokens
            )
            assert h.score == pytest.approx(total / (len(h.tokens) + 1) ** 0.5, abs=1e-9)


def test_a_bonus_makes_hypotheses_longer_up_to_their_limit():
    short, long = (
        search(AttentionBeamConfig(beam=4, constraints=ConstraintsConfig(length_bonus=bonus)))
        for bonus in (-9.0, 9.0)
    )
    assert [len(nbest[0].tokens) for nbest in short] == [0, 0, 0, 0]
    assert [len(nbest[0].tokens) for nbest in long] == list(LENGTHS)


def test_what_the_constraints_make_impossible_is_empty_and_minus_infinity():
    (hypothesis,) = search(
        JointBeamConfig(constraints=ConstraintsConfig(min_tokens=8)), encoded=utterances((2,))
    )[0]
    assert hypothesis.tokens == () and hypothesis.score == -float("inf")


def test_float32_models_give_the_same_tokens():
    model = ToyModel(vocabulary=9, seed=3)
    expected = search(JointBeamConfig(beam=4), model)
    exact = model.log_probs
    model.log_probs = lambda encoded, head: (lambda out: out._replace(data=out.data.float()))(
        exact(encoded, head)
    )
    for found, nbest in zip(search(JointBeamConfig(beam=4), model), expected, strict=True):
        assert found[0].tokens == nbest[0].tokens
        # float32 log-probabilities
        assert found[0].score == pytest.approx(nbest[0].score, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"beam": 0}, {"nbest": 11}, {"candidates": 9}, {"weights": {"ctc": -1.0}}, {"weights": {}}],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValueError):
        JointBeamConfig(**settings)


def test_an_unknown_scorer_is_named_with_those_there_are():
    with pytest.raises(LookupError, match="no scorer 'rnn'.*attention, ctc, llm"):
        Beam(AttentionBeamConfig(weights={"rnn": 1.0}), model=ToyModel())


def test_more_scorers_may_join_such_as_a_language_model():
    weights = {"ctc": 0.6, "lm": 0.4}
    model, lm, encoded = ToyModel(seed=1), MemoryScorer(4, seed=9), utterances((4,))
    searcher = Beam(JointBeamConfig(beam=100, weights=weights), model=model, scorers={"lm": lm})
    (found,) = searcher.search(encoded)
    labels = label_probabilities((encoded.frames.data[0].double() @ model.head).log_softmax(-1))
    expected = {
        tokens: 0.6 * safe_log(labels[tokens])
        + 0.4 * lm.sequence(encoded.frames, tokens, model.eos)
        for tokens in model.sequences(4)
        if tokens in labels
    }
    best = max(expected, key=expected.get)
    assert found[0].tokens == best and found[0].score == pytest.approx(expected[best], abs=1e-9)
