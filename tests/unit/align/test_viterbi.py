"""Forced alignment against the enumeration of all paths, and against its recurrence state by
state.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from asrtool import torchaudio_adapter
from asrtool.align import viterbi
from asrtool.types import Padded
from tests.toy_search import collapse


def case(seed: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Random log-probabilities of 1 to 6 frames over 2 to 4 labels, and up to 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    frames, labels = (
        int(torch.randint(low, high, (), generator=generator)) for low, high in ((1, 7), (2, 5))
    )
    count = int(torch.randint(0, 5, (), generator=generator))
    tokens = tuple(torch.randint(1, labels, (count,), generator=generator).tolist())
    return (3 * torch.randn(frames, labels, generator=generator)).log_softmax(-1), tokens


def stack(rows: list[torch.Tensor]) -> Padded:
    """Side by side, with garbage behind their ends and for labels that a row does not have."""
    widest = max(row.shape[1] for row in rows)
    wide = [torch.nn.functional.pad(row, (0, widest - row.shape[1]), value=5.0) for row in rows]
    return Padded.stack(wide, padding=7.0)


def brute_force(
    log_probs: torch.Tensor, tokens: tuple[int, ...]
) -> tuple[float, tuple[int, ...]] | None:
    """The best path that reads the tokens, among all there are."""
    rows = log_probs.double().tolist()
    paths = itertools.product(range(log_probs.shape[1]), repeat=len(rows))
    rated = [
        (sum(row[label] for row, label in zip(rows, path, strict=True)), path)
        for path in paths
        if collapse(path) == tokens
    ]
    return max(rated) if rated else None


def labels_of(
    alignment: viterbi.Alignment, tokens: tuple[int, ...], frames: int
) -> tuple[int, ...]:
    path = [0] * frames
    for token, start, end in zip(tokens, alignment.starts, alignment.ends, strict=True):
        path[start:end] = [token] * (end - start)
    return tuple(path)


def one_by_one(log_probs: torch.Tensor, tokens: list[int]) -> tuple[int, ...]:
    """The labels of the best path: (1) of asrtool/align/viterbi.py state by state, the earlier
    candidate first.
    """
    states = [0] + [label for token in tokens for label in (token, 0)]
    rows, moves = log_probs.double().tolist(), []
    values = [rows[0][label] if place < 2 else -torch.inf for place, label in enumerate(states)]
    for row in rows[1:]:
        before, move = values, [0] * len(states)
        values = list(before)
        for place, label in enumerate(states):
            steps = (1, 2) if label and place > 2 and label != states[place - 2] else (1,)
            for step in steps:
                if place >= step and before[place - step] > values[place]:
                    values[place], move[place] = before[place - step], step
            values[place] += row[label]
        moves.append(move)
    place = len(states) - 1
    if place and not values[place] > values[place - 1]:
        place -= 1
    path = [states[place]]
    for move in reversed(moves):
        place -= move[place]
        path.append(states[place])
    return tuple(reversed(path))


def longer() -> tuple[list[torch.Tensor], list[list[int]]]:
    generator = torch.Generator().manual_seed(1)
    rows = [
        torch.randn(frames, 30, generator=generator).log_softmax(-1) for frames in (80, 33, 120, 7)
    ]
    return rows, [
        torch.randint(1, 6, (count,), generator=generator).tolist() for count in (20, 10, 0, 5)
    ]


def test_the_path_is_the_best_of_all_paths_that_read_the_text():
    cases = [case(seed) for seed in range(300)]
    found = viterbi.align(stack([rows for rows, _ in cases]), [tokens for _, tokens in cases])
    impossible = 0
    for (rows, tokens), alignment in zip(cases, found, strict=True):
        expected = brute_force(rows, tokens)
        assert (alignment is None) == (expected is None)
        if expected is None:
            impossible += 1
            continue
        assert alignment.score == pytest.approx(expected[0], abs=1e-9)
        assert labels_of(alignment, tokens, len(rows)) == expected[1]
    assert 0 < impossible < 200


def test_longer_utterances_are_the_same_alone_in_a_batch_and_state_by_state():
    rows, tokens = longer()
    together = viterbi.align(stack(rows), tokens)
    for row, wanted, alignment in zip(rows, tokens, together, strict=True):
        assert viterbi.align(Padded.stack([row]), [wanted]) == [alignment]
        assert labels_of(alignment, wanted, len(row)) == one_by_one(row, wanted)


def test_the_best_path_of_all_texts_is_that_of_the_text_that_it_spells(monkeypatch):
    """As the recurrence finds it, which is not computed then; where labels tie, it decides."""
    generator = torch.Generator().manual_seed(0)
    rows = [(3 * torch.randn(40, 7, generator=generator)).log_softmax(-1) for _ in range(3)]
    texts = [list(collapse(row.argmax(1).tolist())) for row in rows]
    wanted = viterbi._best_paths(rows, texts, 0)
    tied = torch.zeros(3, 4).log_softmax(-1)
    searched = []

    def search(some: list, tokens: list, blank: int) -> list:
        searched.append(tokens)
        return kept(some, tokens, blank)

    kept = viterbi._best_paths
    monkeypatch.setattr(viterbi, "_best_paths", search)
    found = viterbi.align(stack([*rows, tied]), [*texts, [1]])
    assert searched == [[[1]]]
    for alignment, text, labels in zip(found, texts, wanted, strict=False):
        assert labels_of(alignment, tuple(text), 40) == tuple(labels)
    viterbi.align(stack(rows), [text[1:] for text in texts])
    assert searched[1:] == [[text[1:] for text in texts]]


@pytest.mark.skipif(
    not torchaudio_adapter.extension_available(), reason="torchaudio's extension does not load here"
)
def test_torchaudio_finds_the_same_paths():
    align = torchaudio_adapter.require().functional.forced_align
    for row, wanted in zip(*longer(), strict=True):
        if wanted:  # its kernel refuses a text without tokens
            labels, _ = align(row.double()[None], torch.tensor([wanted], dtype=torch.int32))
            assert labels_of(
                viterbi.align(Padded.stack([row]), [wanted])[0], wanted, len(row)
            ) == tuple(labels[0].tolist())


def test_equal_paths_are_told_apart_by_the_earlier_candidate():
    flat = torch.zeros(6, 4).log_softmax(-1)
    alignment = viterbi.align(Padded.stack([flat]), [(1, 2, 2)])[0]
    assert labels_of(alignment, (1, 2, 2), 6) == one_by_one(flat, [1, 2, 2])


def test_what_no_frame_has_room_for_has_no_alignment():
    log_probs = Padded.stack([torch.zeros(3, 4).log_softmax(-1)] * 3)
    found = viterbi.align(log_probs, [(1, 2, 3), (1, 1, 2), ()])
    assert [alignment is None for alignment in found] == [False, True, False]
    assert found[2].starts == ()


def test_a_text_that_the_model_calls_impossible_has_no_alignment():
    log_probs = torch.zeros(4, 3).log_softmax(-1)
    log_probs[:, 2] = -torch.inf
    assert viterbi.align(Padded.stack([log_probs]), [(2,)]) == [None]


def test_the_blank_cannot_be_aligned():
    with pytest.raises(ValueError, match="contains the blank"):
        viterbi.align(Padded.stack([torch.zeros(4, 3)]), [(1, 0)])
