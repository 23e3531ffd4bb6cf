"""The matching loss against a loop over tokens, and its bad inputs; the contrastive term
likewise.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from asrtool.losses import LOSSES, matching_loss
from asrtool.losses.matching import attention, monotonic
from asrtool.trainer.objective import Objective
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded

DIM = 6
TOKENS = ([4, 4, 2], [1], [])


def case(dtype=torch.float64) -> tuple[Padded, Padded]:
    """Text of 3, 1 and 0 tokens, speech of 5, 2 and 4 rows, padded with NaN."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, DIM, generator=generator, dtype=torch.float64)
    text = Padded.stack([table[row].to(dtype) for row in TOKENS], math.nan)
    rows = [
        torch.randn(n, DIM, generator=generator, dtype=torch.float64).to(dtype) for n in (5, 2, 4)
    ]
    speech = Padded.stack(rows, math.nan)
    return text, speech


def product(token: Tensor, row: Tensor, products: str) -> float:
    if products == "cosine":
        return float(token @ row / token.norm() / row.norm())
    return float(token @ row) / (math.sqrt(DIM) if products == "scaled" else 1.0)


def by_hand(
    text: Tensor,
    speech: Tensor,
    products: str,
    temperature: float,
    mse: float,
    cosine: float,
    relative: bool = True,
) -> float:
    total = 0.0
    for token in text:
        scores = [product(token, row, products) / temperature for row in speech]
        weights = [math.exp(score - max(scores)) for score in scores]
        found = sum(w * row for w, row in zip(weights, speech, strict=True)) / sum(weights)
        size = float(token.square().sum()) if relative else 1.0
        total += mse * float((found - token).square().sum()) / size
        total += cosine * (1 - float(found @ token / found.norm() / token.norm()))
    return total


@pytest.mark.parametrize(
    ("products", "temperature", "taken"),
    [("cosine", None, 0.05), ("cosine", 0.5, 0.5), ("scaled", None, 1.0), ("dot", None, 1.0)],
)
@pytest.mark.parametrize(("mse", "cosine"), [(1.0, 1.0), (100.0, 0.0), (0.0, 1.0)])
def test_it_is_the_formula(products, temperature, taken, mse, cosine):
    text, speech = case()
    loss = matching_loss(
        *text, *speech, products=products, temperature=temperature, mse=mse, cosine=cosine
    )
    expected = [
        by_hand(t, s, products, taken, mse, cosine)
        for t, s in zip(text.unpad(), speech.unpad(), strict=True)
    ]
    assert loss.shape == (3,) and loss.dtype == torch.float64
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_squared_distances_are_relative_unless_told_otherwise():
    text, speech = case()
    plain = matching_loss(*text, *speech, cosine=0.0, relative=False)
    expected = [
        by_hand(t, s, "cosine", 0.05, 1.0, 0.0, relative=False)
        for t, s in zip(text.unpad(), speech.unpad(), strict=True)
    ]
    torch.testing.assert_close(plain, torch.tensor(expected, dtype=torch.float64))
    scaled = Padded(26 * text.data, text.lengths), Padded(26 * speech.data, speech.lengths)
    torch.testing.assert_close(
        matching_loss(*scaled[0], *scaled[1]), matching_loss(*text, *speech), rtol=1e-6, atol=0
    )
    zero = torch.zeros(1, 2, DIM)
    lengths = torch.tensor([2])
    assert torch.isfinite(matching_loss(zero, lengths, zero, lengths)).all()


@pytest.mark.parametrize("band", [0.0, 0.25, 0.5, 1.0])
def test_a_band_leaves_each_token_the_rows_near_its_place(band):
    text, speech = case()
    found = attention(text, speech, "dot", band=band)
    for b, (tokens, rows) in enumerate(zip(text.unpad(), speech.unpad(), strict=True)):
        u, s = len(tokens), len(rows)
        for i, token in enumerate(tokens):
            near = [abs((j + 0.5) / s - (i + 0.5) / u) <= max(band, 1 / s) + 1e-6 for j in range(s)]
            assert any(near)
            scores = [
                math.exp(float(token @ row)) * here for row, here in zip(rows, near, strict=True)
            ]
            expected = torch.tensor(scores, dtype=torch.float64) / sum(scores)
            torch.testing.assert_close(found[b, i, :s], expected)
    assert band < 1 or torch.equal(found, attention(text, speech, "dot"))
    plain = matching_loss(*text, *speech, band=1.0)
    torch.testing.assert_close(plain, matching_loss(*text, *speech))


def test_without_a_band_the_order_of_the_rows_does_not_matter():
    text = sentence(192)
    rows = text.data.repeat_interleave(2, dim=1)
    assert cost(text, rows.flip(1)).item() == pytest.approx(cost(text, rows).item(), abs=1e-5)
    assert cost(text, rows, band=0.1) < 0.1 < 1 < cost(text, rows.flip(1), band=0.1)


# -- does it reward alignment? --------------------------------------------------

DEVIATION = 0.0166  # of the embeddings of a Llama of 7 billion parameters
WIDTHS = (192, 640, 4096)


def sentence(width: int) -> Padded:
    generator = torch.Generator().manual_seed(0)
    data = DEVIATION * torch.randn(1, 20, width, generator=generator)
    return Padded(data, torch.tensor([20]))


def cost(text: Padded, rows: Tensor, **settings: object) -> Tensor:
    """Nats a token."""
    lengths = torch.tensor([rows.shape[1]])
    return matching_loss(*text, rows, lengths, **settings).sum() / int(text.lengths.sum())


@pytest.mark.parametrize("width", WIDTHS)
def test_an_aligned_adapter_costs_at_most_half_of_a_collapsed_one(width):
    text = sentence(width)
    aligned = text.data.repeat_interleave(2, dim=1)
    collapsed = text.data.mean(1, keepdim=True).expand_as(aligned)
    assert cost(text, aligned) <= cost(text, collapsed) / 2
    # which products that are only scaled do not reward
    assert cost(text, aligned, products="scaled") > 0.9 * cost(text, collapsed, products="scaled")


@pytest.mark.parametrize(("width", "steps"), [(192, 100), (640, 100), (4096, 100)])
def test_descent_from_a_random_start_finds_the_alignment(width, steps):
    text = sentence(width)
    generator = torch.Generator().manual_seed(1)
    rows = (DEVIATION * torch.randn(1, 40, width, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=DEVIATION / 10)
    for _ in range(steps):
        optimizer.zero_grad()
        cost(text, rows).backward()
        optimizer.step()
    collapsed = text.data.mean(1, keepdim=True).expand(1, 40, width)
    assert cost(text, rows).item() <= cost(text, collapsed).item() / 2
    found = attention(text, Padded(rows, torch.tensor([40])))
    assert torch.special.entr(found).sum(2).mean() < math.log(40) - 0.5


def test_gradients_are_those_of_finite_differences_and_reach_the_speech_alone():
    text, speech = case()
    rows = torch.nan_to_num(speech.data, 3.0).requires_grad_()
    words = torch.nan_to_num(text.data, 3.0).requires_grad_()
    loss = lambda rows: matching_loss(words, text.lengths, rows, speech.lengths)  # noqa: E731
    assert torch.autograd.gradcheck(loss, rows)
    loss(rows).sum().backward()
    assert words.grad is None
    assert (
        (rows.grad[~speech.mask] == 0).all()
        and (rows.grad[2] == 0).all()
        and rows.grad[0, :5].abs().min() > 0
    )


def test_no_text_and_no_speech_are_legal():
    speech = torch.randn(2, 3, DIM, requires_grad=True)
    loss = matching_loss(torch.randn(2, 0, DIM), torch.tensor([0, 0]), speech, torch.tensor([3, 0]))
    assert loss.tolist() == [0, 0]
    loss.sum().backward()
    assert torch.isfinite(speech.grad).all()
    text = torch.randn(1, 2, DIM)
    silent = matching_loss(text, torch.tensor([2]), torch.randn(1, 3, DIM), torch.tensor([0]))
    torch.testing.assert_close(silent, torch.tensor([4.0]))  # mse and cosine of two tokens
    empty = matching_loss(text, torch.tensor([2]), torch.randn(1, 0, DIM), torch.tensor([0]))
    torch.testing.assert_close(empty, silent)
    assert matching_loss(
        text[:0], torch.tensor([]).long(), text[:0], torch.tensor([]).long()
    ).shape == (0,)


def test_speech_that_is_the_text_costs_nothing_once_attention_is_sharp():
    text = 30 * torch.eye(DIM)[None]
    lengths = torch.tensor([DIM])
    assert matching_loss(text, lengths, text, lengths).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speech": torch.zeros(3, 5, DIM + 1)}, "same B and D"),
        ({"text": torch.zeros(3, DIM)}, "same B and D"),
        ({"text_lengths": torch.tensor([3, 1])}, r"text_lengths must have shape \(3,\)"),
        ({"speech_lengths": torch.tensor([6, 1, 1])}, "between 0 and 5"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"mse": -1.0}, "must not be negative"),
        ({"mse": 0.0, "cosine": 0.0}, "one must be above 0"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    text, speech = case()
    given = {
        "text": text.data,
        "text_lengths": text.lengths,
        "speech": speech.data,
        "speech_lengths": speech.lengths,
    }
    with pytest.raises(ValueError, match=message):
        matching_loss(**{**given, **change})


def outputs() -> tuple[ModelOutput, Batch]:
    text, speech = case(torch.float32)
    encoder = EncoderOutput(frames=speech, positions=torch.zeros(3, 5))
    tokens = Padded.stack([torch.tensor(row, dtype=torch.int64) for row in TOKENS])
    batch = Batch(ids=("a", "b", "c"), inputs=speech, targets=tokens)
    return ModelOutput(encoder=encoder, heads={"speech": speech, "text": text}), batch


def test_the_entropy_of_its_attention_is_logged_beside_it():
    kind = LOSSES.config_type("matching")
    objective = Objective({"matching": LOSSES.build(kind(weight=2.0), eos=4)}, {"matching": 2.0})
    beside = ("entropy", "entropy_bound", "monotonic")
    assert objective.terms == ("matching", *(f"matching.{name}" for name in beside))
    report = objective(*outputs())
    text, speech = case()
    weights = attention(text, speech)
    entropy = report.terms["matching.entropy"]
    assert entropy[1].item() == pytest.approx(
        -(weights[1, 0, :2] * weights[1, 0, :2].log()).sum().item(), abs=1e-5
    )
    bound = torch.tensor([math.log(5), math.log(2), 0.0])
    torch.testing.assert_close(report.terms["matching.entropy_bound"], bound)
    assert entropy[2] == 0 and 0 < entropy[0] < bound[0]
    torch.testing.assert_close(report.total, 2 * report.terms["matching"].sum())


def test_learned_projections_enter_the_products_alone():
    kind = LOSSES.config_type("matching")
    config = kind(weight=1.0, projected=True)
    assert LOSSES.class_of(config).heads_of(config) == ("speech", "text_query", "speech_key")
    plain = kind(weight=1.0)
    assert LOSSES.class_of(plain).heads_of(plain) == ("speech",)
    found, batch = outputs()
    generator = torch.Generator().manual_seed(1)
    sides = {"text_query": (found.head("text"), 3), "speech_key": (found.head("speech"), 3)}
    projected = {
        name: Padded(torch.randn(*part.data.shape[:2], dim, generator=generator), part.lengths)
        for name, (part, dim) in sides.items()
    }
    loss = LOSSES.build(config, eos=4)
    both = ModelOutput(encoder=found.encoder, heads={**found.heads, **projected})
    query, key = projected["text_query"].unpad()[1], projected["speech_key"].unpad()[1]
    text, speech = (found.head(name).unpad()[1] for name in ("text", "speech"))
    cosines = torch.nn.functional.cosine_similarity(query[:, None], key[None], dim=2)
    context = (cosines / 0.05).softmax(1) @ speech
    expected = (context - text).square().sum(1) / text.square().sum(1) + 1
    expected -= torch.nn.functional.cosine_similarity(context, text, dim=1)
    assert loss(both, batch)[1].item() == pytest.approx(expected.sum().item(), rel=1e-5)
    with pytest.raises(LookupError, match="text_query"):
        loss(found, batch)


def test_the_former_key_of_products():
    for name in ("matching", "contrastive"):
        kind = LOSSES.config_type(name)
        found = [kind(weight=1.0, scaled=former).products for former in (None, True, False)]
        assert found == ["cosine", "scaled", "dot"]
        assert kind(weight=1.0, scaled=True).scaled is None  # written under its new name
        with pytest.raises(ValueError, match="scaled is the old name of products"):
            kind(weight=1.0, scaled=True, products="dot")


def test_how_monotonic_an_attention_is():
    rising = torch.eye(4)[None]
    mixed = torch.eye(4)[[0, 2, 1, 3]][None]
    weights = torch.cat([rising, rising.flip(1), mixed, rising])
    found = monotonic(weights, torch.tensor([4, 4, 4, 1]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 2 / 3, 0.5]))


def test_the_contrastive_term_is_the_formula_with_equal_tokens_as_one():
    kind = LOSSES.config_type("contrastive")
    loss = LOSSES.build(kind(weight=1.0, temperature=0.5), eos=4)(*outputs())
    text, speech = (part.unpad()[0].float() for part in case())
    products = torch.nn.functional.cosine_similarity(text[:, None], speech[None], dim=2)
    found = (products / 0.05).softmax(1) @ speech
    cosines = torch.nn.functional.cosine_similarity(found[:, None], text[None], dim=2) / 0.5
    odds = cosines.exp()
    expected = -torch.log(
        torch.stack([odds[0, :2].sum(), odds[1, :2].sum(), odds[2, 2]]) / odds.sum(1)
    ).sum()
    torch.testing.assert_close(
        loss, torch.stack([expected, torch.tensor(0.0), torch.tensor(0.0)]), atol=1e-5, rtol=0
    )


def test_the_log_does_not_compute_the_attention_again(monkeypatch):
    text, speech = case(torch.float32)
    loss = LOSSES.build(LOSSES.config_type("matching")(weight=1.0), eos=4)
    frames = Padded(torch.zeros(3, 1, 1), torch.ones(3).long())
    outputs = ModelOutput(
        encoder=EncoderOutput(frames=frames, positions=torch.zeros(3, 1)),
        heads={"speech": speech, "text": text},
    )
    batch = Batch(ids=tuple("abc"), inputs=frames, targets=frames)
    expected = loss(outputs, batch), loss.monitor(outputs, batch)
    calls = []
    monkeypatch.setattr(
        "asrtool.losses.matching.attention",
        lambda *rest: (calls.append(rest), attention(*rest))[1],
    )
    values, found = loss.measured(outputs, batch)
    assert len(calls) == 1 and torch.equal(values, expected[0])
    assert {name: part.tolist() for name, part in found.items()} == {
        name: part.tolist() for name, part in expected[1].items()
    }
