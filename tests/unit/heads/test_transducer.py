"""A transducer that was written outside of the package (tests/toy_transducer.py)."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest
import torch
from torch import Tensor

from asrtool.bin import train as train_command
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.searchers import SEARCHERS
from asrtool.streaming import Session
from asrtool.trainer.parallel import gather
from asrtool.training import validation_metrics
from asrtool.types import EncoderOutput, Padded
from tests import toy_transducer
from tests.toy_conformer import double_precision
from tests.toy_corpus import CONFIG as CORPUS
from tests.toy_corpus import arguments, write_corpus
from tests.toy_ranks import spawn

BLANK = 0


@pytest.fixture(autouse=True, scope="module")
def registered():
    with toy_transducer.registered():
        yield


def by_enumeration(log_probs: Tensor, targets: list[int]) -> float:
    """-log of the sum over all alignments, log_probs (S, U + 1, V): the places of the tokens among
    S - 1 + U steps; the last step is a blank.
    """
    frames, tokens = log_probs.shape[0], len(targets)
    total = 0.0
    for places in itertools.combinations(range(frames - 1 + tokens), tokens):
        frame = token = 0
        value = 0.0
        for step in range(frames - 1 + tokens):
            if step in places:
                value += float(log_probs[frame, token, targets[token]])
                token += 1
            else:
                value += float(log_probs[frame, token, BLANK])
                frame += 1
        total += exp(value + float(log_probs[frame, token, BLANK]))
    return -log(total)


def test_the_loss_is_the_sum_over_all_alignments():
    generator = torch.Generator().manual_seed(0)
    targets = Padded.stack([torch.tensor(row) for row in ([2, 2, 1], [], [3], [1, 3])])
    lengths = torch.tensor([4, 3, 1, 5])
    log_probs = torch.randn(4, 5, 4, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    found = toy_transducer.negative_log_likelihood(log_probs, lengths, targets, BLANK)
    for row, (length, tokens) in enumerate(zip(lengths.tolist(), targets.unpad(), strict=True)):
        expected = by_enumeration(
            log_probs[row, :length, : len(tokens) + 1], [int(token) for token in tokens]
        )
        assert float(found[row]) == pytest.approx(expected, abs=1e-10)


def test_the_gradient_is_that_of_finite_differences_and_padding_gets_none():
    generator = torch.Generator().manual_seed(1)
    targets = Padded.stack([torch.tensor([2, 1]), torch.tensor([3])])
    lengths = torch.tensor([2, 3])
    logits = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(values: Tensor) -> Tensor:
        return toy_transducer.negative_log_likelihood(
            values.log_softmax(-1), lengths, targets, BLANK
        )

    assert torch.autograd.gradcheck(loss, logits)
    loss(logits).sum().backward()
    assert (logits.grad[0, 2] == 0).all() and (logits.grad[1, :, 2] == 0).all()


def test_the_model_asks_the_head_how_it_is_searched_and_measured():
    model = toy_transducer.model()
    search = {"type": "toy_transducer_greedy", "input": "transducer"}
    assert model.default_search() == model.default_streaming_search() == search
    tokenizer = type("Tokenizer", (), {"tokens": [], "eos": model.eos})
    rates = validation_metrics(model, tokenizer)
    assert rates.names == ("wer", "cer")
    with pytest.raises(LookupError, match="'transducer' has no distribution for each frame"):
        model.log_probs(model.encode(toy_transducer.batch([1]).inputs), "transducer")


def encoded(lengths=(8, 0, 11, 22)) -> tuple[object, EncoderOutput]:
    """A searcher of random weights, sharp enough to say tokens and blanks, and random frames."""
    model = toy_transducer.model().eval()
    with torch.no_grad():
        for parameter in model.heads["transducer"].parameters():
            parameter.mul_(6)
        model.heads["transducer"].embedding.weight.mul_(3)
        model.heads["transducer"].out_proj.bias[BLANK] += 4.0
    searcher = SEARCHERS.build(SEARCHERS.config_type("toy_transducer_greedy")(), model=model)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(length, model.dim, generator=generator) for length in lengths]
    frames = Padded.stack(rows)
    positions = torch.arange(frames.data.shape[1]).expand(len(rows), -1)
    return searcher, EncoderOutput(frames=frames, positions=positions)


def piece(encoded: EncoderOutput, begin: int, end: int) -> EncoderOutput:
    frames, lengths = encoded.frames
    return EncoderOutput(
        frames=Padded(frames[:, begin:end], (lengths - begin).clamp(0, end - begin)),
        positions=encoded.positions[:, begin:end],
    )


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_any_cut_gives_what_all_frames_at_once_give(cut):
    searcher, whole = encoded()
    expected = searcher.search(whole)
    state = searcher.start(len(expected))
    for begin in range(0, whole.frames.data.shape[1], cut):
        state, spoken = searcher.listen(state, piece(whole, begin, begin + cut))
        assert spoken.data.dtype == torch.bool
    found = searcher.finish(state)
    assert [n[0].tokens for n in found] == [n[0].tokens for n in expected]
    assert [n[0].positions for n in found] == [n[0].positions for n in expected]
    assert [n[0].score for n in found] == pytest.approx([n[0].score for n in expected], abs=1e-5)
    counts = [len(n[0].tokens) for n in found]
    assert sum(counts) > 10 and max(counts) < 5 * whole.frames.data.shape[1]


def test_the_score_is_that_of_the_path_in_the_lattice():
    searcher, whole = encoded((9,))
    ((best,),) = searcher.search(whole)
    tokens = torch.tensor([best.tokens], dtype=torch.int64)
    case = toy_transducer.batch([2])
    case = type(case)(
        ids=case.ids, inputs=case.inputs, targets=Padded(tokens, torch.tensor([tokens.shape[1]]))
    )
    with torch.no_grad():
        lattice = searcher.head(whole, case).data[0].log_softmax(-1)
    score, said = 0.0, 0
    for frame, position in enumerate(whole.positions[0].tolist()):
        for _ in range(best.positions.count(position)):
            score += float(lattice[frame, said, best.tokens[said]])
            said += 1
        score += float(lattice[frame, said, BLANK])
    assert best.score == pytest.approx(score, abs=1e-4)


SHARES = [[[0, 1, 2], [3]], [[4, 5]]]  # by rank and micro-batch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("transducer")
    spawn(toy_transducer.work, 2, folder, SHARES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("shared", ["ddp", "fsdp"])
def test_two_ranks_train_to_the_weights_of_one(ranks, shared):
    with double_precision():
        alone = toy_transducer.train([[group for share in SHARES for group in share]])
        before = toy_transducer.model().state_dict()
        scores = toy_transducer.validate(alone)
    expected = gather(alone.model.state_dict(), keep=True)
    for found in ranks:
        assert set(found[shared]) == set(expected)
        assert found[f"{shared} scores"] == pytest.approx(scores, abs=1e-6)
        for name, value in expected.items():
            # sums in another order, in float64: Adam makes much of little
            torch.testing.assert_close(found[shared][name], value, rtol=0, atol=1e-10)
    moved = [name for name, value in expected.items() if not torch.equal(value, before[name])]
    assert any("transducer" in name for name in moved)


def run(folder: Path, *options: str) -> Path:
    write_corpus(folder)
    config = CORPUS.replace(
        "losses:\n  ctc: {type: ctc",
        "  heads: {transducer: {type: "
        "toy_transducer}}\nlosses:\n  transducer: {type: toy_transducer",
    )
    config = config.replace(
        "kernel: 3}",
        "kernel: 3, causal: true, downsamplers: {0: {type: conv2d, channels: 4, causal: true}}}",
    )
    (folder / "config.yaml").write_text(config)
    train_command.main(arguments(folder, folder / "exp", *options))
    return folder / "exp"


def test_the_commands_train_measure_and_decode_it(tmp_path):
    exp = run(tmp_path)
    events = [json.loads(line) for line in (exp / "log.jsonl").read_text().splitlines()]
    assert all("valid/cer" in event for event in events if event["event"] == "valid")
    recognizer = Recognizer.load(exp)
    assert SEARCHERS.name_of(recognizer.settings.searcher) == "toy_transducer_greedy"
    assert (
        Experiment.open(exp).decode_config(streaming=True).searcher == recognizer.settings.searcher
    )
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, 8, generator=generator) for size in (60, 31)]
    together = recognizer.search(Padded.stack(inputs))
    alone = [recognizer.search(Padded.stack([one]))[0] for one in inputs]
    assert [n[0].tokens for n in together] == [n[0].tokens for n in alone]
    assert recognizer.timed is None
    session = Session(Recognizer.load(exp, replace(recognizer.settings, chunk_ms=80)), 1)
    whole = session.recognizer.search(Padded.stack(inputs[:1]))
    for begin in range(0, 60, 17):
        part = inputs[0][begin : begin + 17]
        session.accept(Padded.stack([part]), torch.tensor([begin + 17 >= 60]))
    (streamed,), _ = session.finish()
    assert [h.tokens for h in streamed] == [h.tokens for h in whole[0]]
