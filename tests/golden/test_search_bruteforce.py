"""Searches as wide as their space against enumeration: of all paths, all label sequences, all
hypotheses.
"""

from __future__ import annotations

import random

import pytest
import torch

from asrtool.searchers import (
    AttentionBeamConfig,
    Beam,
    ConstraintsConfig,
    CtcGreedy,
    CtcGreedyConfig,
    JointBeamConfig,
)
from asrtool.searchers.beam import BeamConfig
from asrtool.searchers.ctc.scorer import CtcPrefixScorer
from tests.toy_search import (
    ToyModel,
    collapse,
    label_probabilities,
    prefix_log_probability,
    safe_log,
    utterances,
)

INF = float("inf")
LENGTHS = (1, 2, 3, 4, 5, 5, 4, 3)
EXACT = {"abs": 1e-9, "rel": 1e-9}  # everything here is float64, only the order of sums differs
WIDE = 100  # more than the extensions of all prefixes of up to five tokens out of two


def every_hypothesis(
    model: ToyModel, encoded, row: int, config: BeamConfig
) -> dict[tuple[int, ...], float]:
    """Hypothesis -> final score, for all that the constraints allow and that are possible."""
    limits = config.constraints
    frames = encoded.frames.data[row : row + 1, : encoded.frames.lengths[row]]
    single = type(encoded.frames)(frames, encoded.frames.lengths[row : row + 1])
    alone = type(encoded)(frames=single, positions=encoded.positions[row : row + 1])
    labels = label_probabilities(model.log_probs(alone).data[0])
    longest = min(frames.shape[1], limits.max_tokens or frames.shape[1])
    scores = {}
    for tokens in model.sequences(longest):
        ngrams = [
            tokens[i : i + limits.no_repeat_ngram]
            for i in range(len(tokens) - limits.no_repeat_ngram + 1)
        ]
        if len(tokens) < limits.min_tokens or (
            limits.no_repeat_ngram and len(set(ngrams)) < len(ngrams)
        ):
            continue
        parts = {"attention": model.attention.sequence(single, tokens, model.eos)}
        parts["ctc"] = safe_log(labels.get(tokens, 0))
        total = sum(weight * parts[name] for name, weight in config.weights.items() if weight)
        if total > -INF:
            scores[tokens] = (total + limits.length_bonus * len(tokens)) / (
                len(tokens) + 1
            ) ** limits.length_penalty
    return scores


def assert_same_as_enumeration(config: BeamConfig, seed: int, sharpness: float = 1.5) -> None:
    model = ToyModel(seed=seed, sharpness=sharpness)
    encoded = utterances(LENGTHS, seed=seed, padding=seed % 3)
    for row, found in enumerate(Beam(config, model=model).search(encoded)):
        expected = every_hypothesis(model, encoded, row, config)
        best = sorted(expected, key=lambda tokens: -expected[tokens])[: config.nbest]
        assert [h.tokens for h in found][: config.nbest] == best
        for hypothesis in found:
            assert hypothesis.score == pytest.approx(expected[hypothesis.tokens], **EXACT)


WEIGHTS = {
    "attention": {"attention": 1.0},
    "ctc": {"ctc": 1.0},
    "joint": {"attention": 0.7, "ctc": 0.3},
    "mostly ctc": {"ctc": 0.9, "attention": 0.2},
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_as_wide_as_the_space_finds_every_hypothesis_in_order(weights, seed):
    assert_same_as_enumeration(JointBeamConfig(beam=WIDE, nbest=WIDE, weights=weights), seed)


@pytest.mark.parametrize("seed", range(20))
def test_the_search_does_not_end_before_the_best_hypothesis_is_certain(seed):
    draw = random.Random(seed)
    constraints = ConstraintsConfig(
        length_bonus=draw.choice([0.0, 0.5, 1.5, -0.5]),
        length_penalty=draw.choice([0.0, 0.6, 1.0, 2.0]),
    )
    weights = draw.choice(list(WEIGHTS.values()))
    config = JointBeamConfig(
        beam=WIDE, nbest=draw.choice([1, 3]), weights=weights, constraints=constraints
    )
    assert_same_as_enumeration(config, seed, sharpness=draw.choice([0.5, 3.0]))


@pytest.mark.parametrize(
    "constraints",
    [
        ConstraintsConfig(max_tokens=2),
        ConstraintsConfig(min_tokens=1),
        ConstraintsConfig(no_repeat_ngram=1),
        ConstraintsConfig(no_repeat_ngram=2),
        ConstraintsConfig(no_repeat_ngram=3, max_tokens=4),
    ],
    ids=str,
)
def test_constraints_remove_the_hypotheses_that_they_forbid_and_no_other(constraints):
    assert_same_as_enumeration(
        AttentionBeamConfig(beam=WIDE, nbest=WIDE, constraints=constraints), seed=5
    )
    assert_same_as_enumeration(
        JointBeamConfig(beam=WIDE, nbest=WIDE, constraints=constraints), seed=6
    )


@pytest.mark.parametrize("collapsed", [True, False], ids=["collapsed", "as it is"])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_search_finds_the_best_of_all_paths(seed, collapsed):
    model, encoded = ToyModel(seed=seed), utterances((4, 1, 3), seed=seed)
    found = CtcGreedy(CtcGreedyConfig(collapse=collapsed), model=model).search(encoded)
    log_probs, lengths = model.log_probs(encoded)
    for (hypothesis,), rows, length in zip(
        found, log_probs.tolist(), lengths.tolist(), strict=True
    ):
        paths = torch.cartesian_prod(*[torch.arange(4)] * length).view(-1, length).tolist()
        total = {tuple(path): sum(rows[t][token] for t, token in enumerate(path)) for path in paths}
        best = max(total, key=total.get)
        assert hypothesis.tokens == (
            collapse(best) if collapsed else tuple(token for token in best if token != 0)
        )
        assert hypothesis.score == pytest.approx(total[best], **EXACT)


@pytest.mark.parametrize("full", [True, False], ids=["whole vocabulary", "candidates"])
@pytest.mark.parametrize("seed", range(5))
def test_ctc_prefix_scores_equal_the_sum_over_all_paths(seed, full):
    model, encoded = ToyModel(seed=seed), utterances((5, 2, 4), seed=seed, padding=2)
    scorer, beam = CtcPrefixScorer(model), 3
    log_probs, lengths = model.log_probs(encoded)
    labels = [
        label_probabilities(rows[:length])
        for rows, length in zip(log_probs, lengths.tolist(), strict=True)
    ]
    sequences = [(1, 1, 2), (2, 1, 1), (1, 2, 2)]
    state = scorer.start(encoded, beam)
    candidates = None if full else torch.tensor([[2, 3, 1]]).expand(9, 3)
    for length in range(4):
        prefixes = torch.tensor([[model.eos, *tokens[:length]] for tokens in sequences] * 3)
        scores, state = scorer.score(prefixes, state, candidates)
        for row in range(9):
            known, prefix = labels[row // beam], sequences[row % beam][:length]
            of_prefix = prefix_log_probability(known, prefix)
            for column, token in enumerate([0, 1, 2, 3] if full else [2, 3, 1]):
                if token == model.eos:
                    expected = safe_log(known.get(prefix, 0))
                else:
                    expected = prefix_log_probability(known, (*prefix, token))
                expected = (
                    -INF if token == model.blank or of_prefix == -INF else expected - of_prefix
                )
                assert scores[row, column].item() == pytest.approx(expected, **EXACT)
