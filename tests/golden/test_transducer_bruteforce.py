"""The transducer's loss against enumeration of all alignments, up to 5 frames and 5 tokens, and its
searches against enumeration and against a search that is written for one utterance.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from asrtool.losses import transducer_loss
from asrtool.searchers import (
    TransducerBeam,
    TransducerBeamConfig,
    TransducerGreedy,
    TransducerGreedyConfig,
)
from asrtool.types import EncoderOutput, Hypothesis
from tests.toy_search import ToyModel, choose, utterances

MOST = 5
EXACT = {"abs": 1e-9, "rel": 1e-9}


# -- loss ---------------------------------------------------------------------


def by_enumeration(log_probs: Tensor) -> Tensor:
    """log_probs (S, U + 1, 2): the places of the tokens among S - 1 + U steps; the last step is a
    blank.
    """
    frames, columns, _ = log_probs.shape
    ways = []
    for places in itertools.combinations(range(frames + columns - 2), columns - 1):
        frame = token = 0
        steps = []
        for step in range(frames + columns - 2):
            says = step in places
            steps.append(log_probs[frame, token, int(says)])
            frame, token = frame + (not says), token + says
        ways.append(sum(steps) + log_probs[frame, token, 0])
    return -torch.stack(ways).logsumexp(0)


def cases() -> list[Tensor]:
    """Every S from 1 and U from 0 to MOST, from flat to sure."""
    generator = torch.Generator().manual_seed(0)
    sizes = itertools.product(range(1, MOST + 1), range(MOST + 1), (0.3, 3.0))
    return [
        scale * torch.randn(s, u + 1, 4, generator=generator, dtype=torch.float64)
        for s, u, scale in sizes
    ]


def test_the_loss_and_its_gradient_are_those_of_all_alignments():
    rows = [logits.log_softmax(-1)[..., :2].requires_grad_() for logits in cases()]
    lengths, said = (torch.tensor([row.shape[axis] for row in rows]) for axis in (0, 1))
    batch = torch.full((len(rows), MOST + 2, MOST + 3, 2), torch.nan, dtype=torch.float64)
    for filled, row in zip(batch, rows, strict=True):
        filled[: len(row), : row.shape[1]] = row.detach()
    batch.requires_grad_()
    found = transducer_loss(batch, lengths, said - 1)
    weights = torch.linspace(0.5, 2, len(rows), dtype=torch.float64)
    (found * weights).sum().backward()
    for number, row in enumerate(rows):
        expected = by_enumeration(row)
        (gradient,) = torch.autograd.grad(expected, row)
        inside = batch.grad[number, : len(row), : row.shape[1]]
        assert found[number].item() == pytest.approx(expected.item(), **EXACT)
        torch.testing.assert_close(inside, weights[number] * gradient, rtol=1e-9, atol=1e-12)
        assert batch.grad[number].count_nonzero() == inside.count_nonzero()


def test_the_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    lengths, said = torch.tensor([4, 1, 3]), torch.tensor([2, 3, 0])

    def loss(values: Tensor) -> Tensor:
        return transducer_loss(values.log_softmax(-1)[..., :2], lengths, said)

    assert torch.autograd.gradcheck(loss, logits)


def test_sure_symbols_and_impossible_ones_leave_the_loss_and_its_gradient_finite():
    data = torch.tensor([[[0.0, -1e4], [-1e4, 0.0]], [[-torch.inf, 0.0], [0.0, -1.0]]])[None]
    data.requires_grad_()
    loss = transducer_loss(data, torch.tensor([2]), torch.tensor([1]))
    loss.sum().backward()
    assert loss.tolist() == [0.0] and data.grad.isfinite().all()
    assert data.grad[0, 1, 0, 1] == -1 and data.grad[0, 0, 0, 0] == -1


def test_fast_emit_scales_the_gradient_of_tokens_and_leaves_the_value():
    data = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(2))
    data = (data - 2).double().requires_grad_()
    sizes = torch.tensor([3, 2]), torch.tensor([3, 1])
    plain, fast = transducer_loss(data, *sizes), transducer_loss(data, *sizes, fast_emit=0.5)
    assert fast.tolist() == plain.tolist()
    (before,), (after,) = (torch.autograd.grad(loss.sum(), data) for loss in (plain, fast))
    torch.testing.assert_close(after, before * torch.tensor([1.0, 1.5]), rtol=1e-12, atol=0)


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected log_probs \(B, S, U \+ 1, 2\), got"):
        transducer_loss(torch.zeros(1, 2, 3), torch.tensor([2]), torch.tensor([2]))
    with pytest.raises(ValueError, match="token_lengths .3. must lie between 0 and 2"):
        transducer_loss(torch.zeros(1, 2, 3, 2), torch.tensor([2]), torch.tensor([3]))


# -- search -------------------------------------------------------------------


def model(number: int, vocabulary: int = 4) -> ToyModel:
    return ToyModel(vocabulary, number, (0.3, 1.0, 3.0)[number % 3])


def symbols(model: ToyModel, encoded: EncoderOutput, frame: int, prefix: tuple[int, ...]) -> list:
    """log p(k | frame, prefix) of the first utterance, as long as there is no end in it."""
    head = model.transducer
    said = head.start(1)
    for token in prefix:
        said = head.step(said, torch.tensor([token]))
    log_probs = head.symbols(head.frames(encoded).data[:, frame].clone(), said)[0]
    return log_probs[: model.eos].tolist()


def beam_of_one(
    model: ToyModel, encoded: EncoderOutput, beam: int
) -> list[tuple[tuple[int, ...], float]]:
    """Prefix -> log of its probability, by a dictionary: every way into a prefix is added up, then
    the best `beam` prefixes stay.
    """
    held = {(): 0.0}
    for frame in range(int(encoded.frames.lengths[0])):
        ways = defaultdict(list)
        for prefix, value in held.items():
            for symbol, log_prob in enumerate(symbols(model, encoded, frame, prefix)):
                ways[prefix + (symbol,) * (symbol > 0)].append(value + log_prob)
        summed = {
            p: torch.tensor(v, dtype=torch.float64).logsumexp(0).item() for p, v in ways.items()
        }
        held = dict(sorted(summed.items(), key=lambda item: -item[1])[:beam])
    return list(held.items())


def searched(model: ToyModel, encoded: EncoderOutput, beam: int) -> list[Hypothesis]:
    return TransducerBeam(TransducerBeamConfig(beam=beam), model=model).search(encoded)[0]


@pytest.mark.parametrize("beam", [1, 2, 4, 400])
def test_the_beam_is_that_of_a_dictionary_of_prefixes(beam):
    """With 400 places it holds every text that 5 frames can emit: the sums are exact."""
    for number in range(8 if beam == 400 else 40):
        frames = 5 if beam == 400 else 1 + number % 9
        toy, encoded = model(number), utterances((frames,), number)
        expected = beam_of_one(toy, encoded, beam)
        found = searched(toy, encoded, beam)
        assert [h.tokens for h in found] == [tokens for tokens, _ in expected]
        assert [h.score for h in found] == pytest.approx([v for _, v in expected], **EXACT)


def test_the_sum_of_a_wide_beam_is_that_of_all_alignments_with_a_token_a_frame():
    toy, encoded = model(1), utterances((4,), 7)
    for hypothesis in searched(toy, encoded, 400):
        total = []
        for places in itertools.combinations(range(4), len(hypothesis.tokens)):
            said, value = (), 0.0
            for frame in range(4):
                symbol = hypothesis.tokens[len(said)] if frame in places else 0
                value += symbols(toy, encoded, frame, said)[symbol]
                said += (symbol,) * (symbol > 0)
            total.append((value, places))
        values = torch.tensor([value for value, _ in total], dtype=torch.float64)
        assert hypothesis.score == pytest.approx(values.logsumexp(0).item(), **EXACT)
        # of the best of these paths; positions of the toy's frames are two apart
        assert hypothesis.positions == tuple(2 * frame for frame in max(total)[1])


@pytest.mark.parametrize("most", [1, 2, 10])
def test_greedy_goes_step_by_step_and_counts_the_symbols_of_a_frame(most):
    said_more = 0
    for number in range(60):
        toy, encoded = model(number, 5), utterances((6,), number)
        config = TransducerGreedyConfig(max_symbols=most)
        ((found,),) = TransducerGreedy(config, model=toy).search(encoded)
        tokens, positions, score = (), [], 0.0
        for frame in range(6):
            for count in range(most + 1):
                row = symbols(toy, encoded, frame, tokens)
                symbol = 0 if count == most else max(range(len(row)), key=row.__getitem__)
                score += row[symbol]
                if not symbol:
                    break
                tokens, said_more = (*tokens, symbol), said_more + (count > 0)
                positions.append(2 * frame)
        assert found.tokens == tokens and found.positions == tuple(positions)
        assert found.score == pytest.approx(score, **EXACT)
    assert bool(said_more) == (most > 1)


@pytest.mark.parametrize("cut", [1, 3, 7])
@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_any_cut_of_the_audio_gives_what_the_whole_gives(kind, cut):
    toy, whole = ToyModel(9, 3), utterances((8, 0, 11, 22))
    made = {
        "greedy": TransducerGreedy(TransducerGreedyConfig(), model=toy),
        "beam": TransducerBeam(TransducerBeamConfig(), model=toy),
    }
    searcher = made[kind]
    expected, state = searcher.search(whole), searcher.start(4)
    for begin in range(0, 22, cut):
        frames, lengths = whole.frames
        part = EncoderOutput(
            frames=type(whole.frames)(
                frames[:, begin : begin + cut], (lengths - begin).clamp(0, cut)
            ),
            positions=whole.positions[:, begin : begin + cut],
        )
        # rows leave and enter between two pieces, as in a session
        state = state.take(torch.tensor([0, 1])).join(state.take(torch.tensor([2, 3])))
        state, spoken = searcher.listen(state, part)
        assert spoken.data.dtype == torch.bool
    assert [h.tokens for h in searcher.partial(state)] == [n[0].tokens for n in expected]
    assert searcher.finish(state) == expected
    assert sum(len(nbest[0].tokens) for nbest in expected) > 10


def test_no_end_of_the_text_is_searched_into():
    toy = ToyModel(9, 3)
    toy.transducer.mix[:, toy.eos] += 50
    encoded = choose(utterances((8, 5)), [0, 1])
    for nbest in TransducerBeam(TransducerBeamConfig(), model=toy).search(encoded):
        assert all(toy.eos not in hypothesis.tokens for hypothesis in nbest)
