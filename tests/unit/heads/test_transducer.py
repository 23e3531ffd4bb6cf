"""The transducer's head: predictor, joiner and the lattice; trained by several ranks, searched,
streamed, and by the commands.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from asrtool.bin import train as train_command
from asrtool.downsamplers import Conv2dConfig, KeyframeConfig
from asrtool.encoders import ConformerConfig
from asrtool.heads import transducer
from asrtool.heads.transducer import LstmConfig, StatelessConfig, TransducerHeadConfig
from asrtool.losses import LOSSES, TransducerConfig
from asrtool.model_folder import Experiment
from asrtool.models import MODELS, HybridConfig
from asrtool.recognizer import Recognizer
from asrtool.searchers import SEARCHERS
from asrtool.streaming import Session
from asrtool.trainer.parallel import gather
from asrtool.training import validation_metrics
from asrtool.types import EncoderOutput, Lattice, Padded
from tests import toy_transducer
from tests.toy_conformer import double_precision
from tests.toy_corpus import CONFIG as CORPUS
from tests.toy_corpus import arguments, write_corpus
from tests.toy_ranks import spawn

PREDICTORS = {"stateless": toy_transducer.STATELESS, "lstm": toy_transducer.LSTM}
every_predictor = pytest.mark.parametrize("predictor", PREDICTORS.values(), ids=PREDICTORS)


# -- lattice ------------------------------------------------------------------


def whole(head: transducer.TransducerHead, encoded: EncoderOutput, targets: Padded) -> Tensor:
    """All of (1) and (2) at once: (B, S, U + 1, V)."""
    frames, said = head.frames(encoded).data, head.predictor(targets.data)
    return head.joiner((frames[:, :, None] + said[:, None]).tanh()).log_softmax(-1)


def computed(predictor: str) -> tuple[transducer.TransducerHead, Lattice, Tensor, Tensor]:
    """The lattice of a batch, the same from all logits, and where the two have numbers."""
    model, batch = toy_transducer.model(predictor).eval(), toy_transducer.batch([0, 3, 1, 5])
    encoded = model.encode(batch.inputs)
    head = model.heads["transducer"]
    lattice, log_probs = head(encoded, batch), whole(head, encoded, batch.targets)
    following = pad(batch.targets.data, (0, 1))[:, None, :, None]
    expected = torch.stack(
        [
            log_probs[..., 0],
            log_probs.gather(3, following.expand(-1, log_probs.shape[1], -1, 1))[..., 0],
        ],
        3,
    )
    return head, lattice, expected, lattice.mask[..., None]


@every_predictor
@pytest.mark.parametrize("room", [1, 300, 1 << 24])
def test_any_block_gives_the_probabilities_and_gradients_of_all_logits(
    predictor, room, monkeypatch
):
    monkeypatch.setattr(transducer, "ROOM", room)
    head, lattice, expected, mask = computed(predictor)
    assert lattice.data.shape == expected.shape and lattice.data.dtype == torch.float32
    torch.testing.assert_close(lattice.data * mask, expected * mask, atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)) * mask
    parameters = list(head.parameters())
    found, wanted = (
        torch.autograd.grad((data * weights).sum(), parameters) for data in (lattice.data, expected)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_no_more_logits_than_there_is_room_for_are_made_at_once(monkeypatch):
    monkeypatch.setattr(transducer, "ROOM", 300)
    sizes, plain = [], transducer.TransducerHead.logits

    def logits(self, frames, said):
        found = plain(self, frames, said)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(transducer.TransducerHead, "logits", logits)
    _, lattice, _, _ = computed(toy_transducer.STATELESS)
    forward = len(sizes)
    lattice.data.sum().backward()
    # a frame of the longest text takes (5 + 1) * 8
    assert max(sizes) <= 300 < sum(sizes[:forward]) and len(sizes) == 2 * forward


def test_padding_is_not_computed_where_the_host_knows_the_lengths(monkeypatch):
    sizes, plain = [], transducer.TransducerHead.logits
    monkeypatch.setattr(transducer, "ROOM", 1)
    monkeypatch.setattr(
        transducer.TransducerHead,
        "logits",
        lambda self, frames, said: (sizes.append(said.shape[2]), plain(self, frames, said))[1],
    )
    _, lattice, _, _ = computed(toy_transducer.STATELESS)
    rows = zip(lattice.lengths.tolist(), lattice.token_lengths.tolist(), strict=True)
    assert sum(sizes) == sum(frames * (tokens + 1) for frames, tokens in rows)


@every_predictor
def test_steps_of_the_predictor_are_columns_of_the_whole_text(predictor):
    model = toy_transducer.model(predictor).eval()
    tokens = torch.tensor([[3, 3, 1, 6], [5, 2, 2, 4]])
    expected = model.heads["transducer"].predictor(tokens)
    said = model.heads["transducer"].start(2)
    torch.testing.assert_close(said.output, expected[:, 0])
    for column, newest in enumerate(tokens.T, 1):
        said = model.heads["transducer"].step(said, newest)
        torch.testing.assert_close(said.output, expected[:, column])


def test_a_stateless_predictor_knows_the_last_tokens_alone_and_the_start_from_a_token():
    head = toy_transducer.model().heads["transducer"]
    one, other = head.predictor(torch.tensor([[1, 5, 3], [2, 5, 3]]))
    torch.testing.assert_close(one[3], other[3])
    assert not torch.allclose(one[2], other[2])
    assert not torch.allclose(head.start(1).output, head.predictor(torch.tensor([[1, 1]]))[:, 2])
    with pytest.raises(ValueError, match="dim is 6: expected a multiple of 4"):
        StatelessConfig(dim=6)


def test_an_lstm_predictor_knows_the_whole_text():
    head = toy_transducer.model(toy_transducer.LSTM).heads["transducer"]
    one, other = head.predictor(torch.tensor([[1, 5, 3, 3], [2, 5, 3, 3]]))
    assert not torch.allclose(one[4], other[4])
    assert LstmConfig().num_layers == 1


# -- the model ----------------------------------------------------------------


def test_the_model_asks_the_head_how_it_is_searched_and_measured():
    model = toy_transducer.model()
    search = {"type": "transducer_beam", "input": "transducer"}
    assert model.default_search() == model.default_streaming_search() == search
    tokenizer = type("Tokenizer", (), {"tokens": [], "eos": model.eos})
    rates = validation_metrics(model, tokenizer)
    assert rates.names == ("wer", "cer")
    with pytest.raises(LookupError, match="'transducer' has no distribution for each frame"):
        model.log_probs(model.encode(toy_transducer.batch([1]).inputs), "transducer")
    with pytest.raises(LookupError, match="cannot read the head 'transducer'"):
        SEARCHERS.build(SEARCHERS.config_type("ctc_greedy")(input="transducer"), model=model)


def test_key_frames_may_be_fewer_than_tokens():
    """Behind them a frame emits as many tokens as it must."""
    encoder = ConformerConfig(
        **{"num_layers": 2, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 3},
        downsamplers={0: Conv2dConfig(channels=4), 1: KeyframeConfig()},
    )
    config = HybridConfig(encoder=encoder, heads={"transducer": TransducerHeadConfig(dim=8)})
    heads = frozenset({"ctc", "inter_ctc", "transducer"})
    model = MODELS.build(config, input_dim=20, vocab_size=8, frame_shift=0.01, heads=heads)
    with torch.no_grad():
        model.encoder.downsamplers["1"].head.bias[0] += 20  # blanks alone: one frame stays
    batch = toy_transducer.batch([5, 2])
    outputs = model(batch)
    loss = LOSSES.build(TransducerConfig(weight=1.0), eos=7)(outputs, batch)
    assert outputs.head("transducer").lengths.tolist() == [1, 1]
    assert loss.isfinite().all() and (loss > 0).all()
    loss.sum().backward()
    assert model.heads["transducer"].joiner.weight.grad.isfinite().all()


def test_the_searches_agree_with_the_loss_on_what_a_text_costs():
    """One place a frame: the greedy path is a way through the lattice, and the sum is no less."""
    model = toy_transducer.model(toy_transducer.LSTM).eval()
    with torch.no_grad():
        for parameter in model.heads["transducer"].parameters():
            parameter.mul_(3)
        model.heads["transducer"].joiner.bias[0] += 2
    batch = toy_transducer.batch([5])
    encoded = model.encode(batch.inputs)
    greedy = SEARCHERS.build(SEARCHERS.config_type("transducer_greedy")(), model=model)
    ((best,),) = greedy.search(encoded)
    assert best.tokens
    targets = Padded(torch.tensor([best.tokens]), torch.tensor([len(best.tokens)]))
    log_probs = whole(model.heads["transducer"], encoded, targets)[0]
    score, said = 0.0, 0
    for frame, position in enumerate(encoded.positions[0].tolist()):
        for _ in range(best.positions.count(position)):
            score += log_probs[frame, said, best.tokens[said]].item()
            said += 1
        score += log_probs[frame, said, 0].item()
    assert best.score == pytest.approx(score, abs=1e-4)
    outputs = model(replace(batch, targets=targets))
    loss = LOSSES.build(TransducerConfig(weight=1.0), eos=model.eos)
    assert -loss(outputs, replace(batch, targets=targets)).item() > best.score


@every_predictor
def test_16_bits_change_little(predictor):
    model, batch = toy_transducer.model(predictor).eval(), toy_transducer.batch([3, 1])
    loss = LOSSES.build(TransducerConfig(weight=1.0), eos=model.eos)
    beam = SEARCHERS.build(SEARCHERS.config_type("transducer_beam")(), model=model)
    expected = loss(model(batch), batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(model(batch), batch)
        nbests = beam.search(model.encode(batch.inputs))
    found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.1)
    assert all(nbest[0].score <= 0 for nbest in nbests)


# -- training -----------------------------------------------------------------

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
        before = toy_transducer.model(toy_transducer.LSTM).state_dict()
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
        "losses:\n",
        "  heads: {transducer: {type: transducer, dim: 9, predictor: {type: stateless, dim: 8}}}\n"
        "losses:\n  transducer: {type: transducer, weight: 1.0}\n",
    )
    config = config.replace(
        "kernel: 3}",
        "kernel: 3, causal: true, downsamplers: {0: {type: conv2d, channels: 4, causal: true}}}",
    )
    (folder / "config.yaml").write_text(config)
    train_command.main(arguments(folder, folder / "exp", *options))
    return folder / "exp"


def test_the_commands_train_measure_and_decode_it_beside_ctc(tmp_path):
    exp = run(tmp_path)
    events = [json.loads(line) for line in (exp / "log.jsonl").read_text().splitlines()]
    assert all("valid/cer" in event for event in events if event["event"] == "valid")
    recognizer = Recognizer.load(exp)
    assert SEARCHERS.name_of(recognizer.settings.searcher) == "transducer_beam"
    assert (
        Experiment.open(exp).decode_config(streaming=True).searcher == recognizer.settings.searcher
    )
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, 8, generator=generator) for size in (60, 31)]
    together = recognizer.search(Padded.stack(inputs))
    alone = [recognizer.search(Padded.stack([one]))[0] for one in inputs]
    assert [n[0].tokens for n in together] == [n[0].tokens for n in alone]
    assert recognizer.timed == "ctc"
    session = Session(Recognizer.load(exp, replace(recognizer.settings, chunk_ms=80)), 1)
    whole = session.recognizer.search(Padded.stack(inputs[:1]))
    for begin in range(0, 60, 17):
        part = inputs[0][begin : begin + 17]
        session.accept(Padded.stack([part]), torch.tensor([begin + 17 >= 60]))
    (streamed,), _ = session.finish()
    assert [h.tokens for h in streamed] == [h.tokens for h in whole[0]]
