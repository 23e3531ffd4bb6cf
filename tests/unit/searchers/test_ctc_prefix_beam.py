from __future__ import annotations

import tracemalloc
from math import log

import pytest
import torch

from asrtool.searchers import CtcPrefixBeam, CtcPrefixBeamConfig, ctc_prefix_beam_search
from asrtool.types import Hypothesis, Padded
from tests.toy_search import ToyModel, choose, utterances


def random_log_probs(
    utterances: int, frames: int, vocabulary: int, seed: int = 0, scale: float = 3.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(utterances, frames, vocabulary, generator=generator) * scale).log_softmax(
        -1
    )


def of_probabilities(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.float64).log()


def search(log_probs: torch.Tensor, beam: int = 10, **settings) -> list[Hypothesis]:
    return ctc_prefix_beam_search(log_probs, torch.tensor([log_probs.shape[1]]), beam, **settings)[
        0
    ]


def assert_same(
    found: list[Hypothesis], expected: list[Hypothesis], tolerance: float = 1e-9
) -> None:
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    assert [h.positions for h in found] == [h.positions for h in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=tolerance)
        assert one.parts == pytest.approx(other.parts, abs=tolerance)
        assert one.confidences == pytest.approx(other.confidences, abs=tolerance)


def test_the_paths_of_a_text_are_summed():
    """The best path is all blank (0.36), but the text `1` has more probability in all (0.64)."""
    first, second = search(of_probabilities((0.6, 0.4), (0.6, 0.4)))
    assert first.tokens == (1,) and first.score == pytest.approx(log(0.64))
    assert second.tokens == () and second.score == pytest.approx(log(0.36))
    assert first.parts == {"ctc": first.score}


def test_a_token_is_placed_where_the_best_path_is_most_probable():
    (best, *_) = search(
        of_probabilities(
            (0.8, 0.1, 0.1), (0.2, 0.5, 0.3), (0.1, 0.8, 0.1), (0.7, 0.2, 0.1), (0.1, 0.2, 0.7)
        )
    )
    assert (best.tokens, best.positions) == ((1, 2), (2, 4))
    assert best.confidences == pytest.approx((0.8, 0.7))


def test_a_repeated_token_needs_a_blank_between():
    tokens = [h.tokens for h in search(of_probabilities((0.1, 0.9), (0.1, 0.9), (0.1, 0.9)))]
    assert tokens == [(1,), (1, 1), ()]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_search_equals_the_plain_one(seed, dtype):
    vocabulary, beam = 3 + 7 * (seed % 4), (1, 2, 5, 16)[seed % 3]
    log_probs = random_log_probs(3, 30, vocabulary, seed, scale=(0.5, 2.0, 6.0)[seed % 3]).to(dtype)
    lengths = torch.tensor([30, 0, 17])
    settings = {
        "excluded": (vocabulary - 1,) if seed % 2 else (),
        "candidates": (None, 2)[seed // 6],
    }
    found = ctc_prefix_beam_search(log_probs, lengths, beam, **settings)
    expected = ctc_prefix_beam_search(log_probs, lengths, beam, plain=True, **settings)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_looking_at_all_tokens_changes_nothing():
    """Beam + 1 tokens of a frame are enough, as Settings.make says: with scores that add nothing,
    all are looked at.
    """

    class Nothing:
        def start(self):
            return 0

        def extend(self, state, token):
            return 0.0, 0

        def end(self, state):
            return 0.0

    for seed in range(4):
        log_probs = random_log_probs(1, 25, 60, seed, scale=1.0)
        everything = search(log_probs, 6, scores={"nothing": Nothing()}, plain=True)
        assert [h.tokens for h in everything] == [h.tokens for h in search(log_probs, 6)]
        assert [h.score for h in everything] == pytest.approx(
            [h.score for h in search(log_probs, 6)]
        )


@pytest.mark.parametrize("cut", [1, 2, 7, 13])
@pytest.mark.parametrize("name", ["ctc_prefix_beam", "ctc_greedy"])
def test_any_cut_gives_what_all_frames_at_once_give(name, cut):
    from asrtool.searchers import SEARCHERS

    model, encoded = ToyModel(vocabulary=9, seed=3), utterances((29, 1, 14, 0, 22))
    searcher = SEARCHERS.build(SEARCHERS.config_type(name)(), model=model)
    log_probs, lengths = model.log_probs(encoded)
    state = searcher.start(len(lengths))
    for begin in range(0, 29, cut):
        state = searcher.advance(
            state,
            Padded(log_probs[:, begin : begin + cut], (lengths - begin).clamp(0, cut)),
            encoded.positions[:, begin : begin + cut],
        )
        assert len(searcher.partial(state)) == len(lengths)
    partial = searcher.partial(state)
    finished = searcher.finish(state)
    assert finished == searcher.search(encoded)
    assert partial == [nbest[0] for nbest in finished]


def test_nothing_heard_is_the_empty_hypothesis():
    searcher = CtcPrefixBeam(CtcPrefixBeamConfig(), model=ToyModel())
    state = searcher.start(2)
    assert [h.tokens for h in searcher.partial(state)] == [(), ()]
    assert [nbest[0].score for nbest in searcher.finish(state)] == [0.0, 0.0]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    log_probs, lengths = random_log_probs(7, 40, 20), torch.tensor([40, 3, 22, 40, 0, 17, 31])
    assert ctc_prefix_beam_search(log_probs, lengths, 5, threads=threads) == ctc_prefix_beam_search(
        log_probs, lengths, 5, threads=1
    )


def test_an_excluded_token_is_in_no_hypothesis():
    assert all(4 not in h.tokens for h in search(random_log_probs(1, 20, 5), excluded=(4,)))


def test_another_blank():
    log_probs = random_log_probs(1, 20, 6)
    moved = search(log_probs.roll(-1, 2), blank=5)
    assert [tuple(token + 1 for token in h.tokens) for h in moved] == [
        h.tokens for h in search(log_probs)
    ]


def test_a_frame_in_which_nothing_is_possible_gives_minus_infinity():
    log_probs = torch.full((1, 3, 4), -float("inf"))
    (hypothesis,) = search(log_probs)
    assert hypothesis.tokens == () and hypothesis.score == -float("inf")


def test_a_length_bonus_is_added_per_token():
    log_probs = random_log_probs(1, 20, 6)
    for hypothesis in search(log_probs, length_bonus=0.7):
        assert hypothesis.score == pytest.approx(
            hypothesis.parts["ctc"] + 0.7 * len(hypothesis.tokens)
        )
    assert len(search(log_probs, length_bonus=8.0)[0].tokens) > len(search(log_probs)[0].tokens)


@pytest.mark.parametrize(
    "wrong",
    [
        {"beam": 0},
        {"candidates": 0},
        {"blank": 6},
        {"excluded": (9,)},
        {"weights": {"ctc": 0.0}},
        {"weights": {"lm": 1}},
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError):
        search(random_log_probs(1, 3, 6), **{"beam": 3, **wrong})


def test_shapes_that_do_not_fit_are_refused():
    log_probs = random_log_probs(2, 5, 4)
    with pytest.raises(ValueError, match="expected log_probs"):
        ctc_prefix_beam_search(log_probs, torch.tensor([5]), 3)
    with pytest.raises(ValueError, match="do not fit 5 frames"):
        ctc_prefix_beam_search(log_probs, torch.tensor([5, 6]), 3)


def test_results_do_not_depend_on_the_batch_in_float32():
    encoded = utterances((9, 1, 14, 5, 12), seed=2)
    searcher = CtcPrefixBeam(CtcPrefixBeamConfig(beam=4), model=ToyModel(vocabulary=9))
    together = searcher.search(encoded)
    for row in (3, 0, 4):
        assert_same(
            searcher.search(choose(encoded, [row, 1], padding=3))[0], together[row], tolerance=1e-5
        )


def test_memory_does_not_grow_with_utterances_and_grows_linearly_with_frames():
    def peak(utterances: int, frames: int) -> int:
        """Bytes above the input, at the highest."""
        log_probs, lengths = (
            random_log_probs(1, frames, 50).expand(utterances, -1, -1),
            torch.tensor([frames]),
        )
        tracemalloc.start()
        for row in log_probs:
            ctc_prefix_beam_search(row[None], lengths, 10, nbest=1, threads=1)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1, 400)
    assert peak(20, 400) < 1.2 * peak(2, 400)
    assert peak(1, 3200) < 2.5 * peak(1, 1600)
