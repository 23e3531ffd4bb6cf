from __future__ import annotations

import pytest
import torch

from asrtool import torchaudio_adapter
from asrtool.nn.attention import (
    CrossAttention,
    GrowingKeyValue,
    KeyValue,
    RelativeSelfAttention,
    RotarySelfAttention,
    SelfAttention,
    attention,
)
from asrtool.nn.conformer import NewFrames
from asrtool.nn.masks import attention_mask, causal_mask
from asrtool.nn.positions import distances, rotations
from asrtool.nn.relative import RelativeAttention

POSITIONS = torch.tensor([[0, 1, 4, 5, 9], [0, 2, 3, 4, 5]])
kinds = pytest.mark.parametrize("kind", [RotarySelfAttention, RelativeSelfAttention])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_plain_products_equal_the_fused_kernel():
    query, key, value = torch.randn(3, 2, 4, 6, 8).unbind()
    mask = attention_mask(torch.arange(6) < torch.tensor([[6], [4]]))
    plain = attention(query, key, value, mask, bias=torch.zeros(2, 4, 6, 6))
    torch.testing.assert_close(plain, attention(query, key, value, mask), atol=1e-6, rtol=0)


def test_bfloat16_on_cpu_stays_within_its_precision():
    query, key, value = torch.randn(3, 2, 4, 6, 8).unbind()
    mask = attention_mask(torch.arange(6) < torch.tensor([[6], [4]]))
    coarse = attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    torch.testing.assert_close(
        coarse.float(), attention(query, key, value, mask), atol=0.05, rtol=0
    )


def test_relative_attention_is_transformer_xl_written_out():
    module = RelativeSelfAttention(16, 2)
    torch.nn.init.normal_(module.content_bias)
    torch.nn.init.normal_(module.position_bias)
    x = torch.randn(2, 5, 16)
    got, _ = module(x, None, rotations(POSITIONS, 8))

    split = lambda y: y.view(2, 5, 2, 8)  # noqa: E731
    query, key, value = split(module.q_proj(x)), split(module.k_proj(x)), split(module.v_proj(x))
    angles = (POSITIONS[:, :, None] - POSITIONS[:, None])[..., None] * 10000 ** -(
        torch.arange(8) / 8
    )
    table = module.p_proj(torch.stack([angles.cos(), -angles.sin()], dim=-1).flatten(-2)).view(
        2, 5, 5, 2, 8
    )
    content = torch.einsum("bihd,bjhd->bhij", query + module.content_bias[:, 0], key)
    position = torch.einsum("bihd,bijhd->bhij", query + module.position_bias[:, 0], table)
    weights = ((content + position) / 8**0.5).softmax(-1)
    expected = module.o_proj(torch.einsum("bhij,bjhd->bihd", weights, value).flatten(2))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [2, 3, 100])
@pytest.mark.parametrize("past", [0, 4])
@pytest.mark.parametrize("masked", ["no", "keys", "pairs"])
def test_a_table_of_distances_equals_the_products_of_all_pairs(block, past, masked, monkeypatch):
    """Values and gradients, with cached keys in front and positions two apart."""
    monkeypatch.setattr("asrtool.nn.relative.SCORES", 2 * (past + 7) * block)
    module = RelativeSelfAttention(16, 2)
    for bias in (module.content_bias, module.position_bias):
        torch.nn.init.normal_(bias)
    positions = torch.arange(past + 7).mul(2).expand(2, -1)
    angles = rotations(positions, module.num_frequencies)
    cache = None
    if past:
        _, cache = module(torch.randn(2, past, 16), None, angles[:, :, :past])
    mask = {
        "no": None,
        "keys": torch.rand(2, 1, 1, past + 7) < 0.7,
        "pairs": torch.rand(2, 1, 7, past + 7) < 0.7,
    }[masked]
    valid = torch.ones(2, 7, dtype=torch.bool)
    table = distances(7, past + 7, 2, module.num_frequencies)
    x, results = torch.randn(2, 7, 16), []
    for frames in (
        NewFrames(positions[:, past:], valid),
        NewFrames(positions[:, past:], valid, table),
    ):
        module.zero_grad()
        y, _ = module(x, mask, angles, cache, frames)
        y.square().sum().backward(retain_graph=True)
        results.append([y, *(parameter.grad.clone() for parameter in module.parameters())])
    for pairs, grid in zip(*results, strict=True):
        torch.testing.assert_close(grid, pairs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("hidden", [False, True])
def test_gradients_of_relative_attention_by_blocks(hidden, monkeypatch):
    """With dropout of the weights, and where some keys are hidden."""
    monkeypatch.setattr("asrtool.nn.relative.SCORES", 2 * 6 * 2)
    content, position = torch.randn(2, 2, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    key, value = torch.randn(2, 2, 2, 6, 3, dtype=torch.float64, requires_grad=True)
    table = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, 1, 1, 6, dtype=torch.float64)
    mask[1, :, :, 4:] = -torch.inf
    kept = torch.rand(2, 2, 5, 6, dtype=torch.float64)
    options = (mask, None) if hidden else (None, kept)
    inputs = (content, position, key, value, table)
    assert torch.autograd.gradcheck(lambda *x: RelativeAttention.apply(*x, *options), inputs)


def test_dropout_of_weights_of_relative_attention():
    """Over many draws the outputs are on average those without dropout."""
    module, x = RelativeSelfAttention(16, 2, dropout=0.25), torch.randn(1, 7, 16)
    positions = torch.arange(7)[None]
    table = distances(7, 7, 1, module.num_frequencies)
    new = NewFrames(positions, positions >= 0, table)
    expected = module.eval()(x, None, None, None, new)[0]
    drawn = module.train()(x.expand(4000, -1, -1), None, None, None, new)[0]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    torch.testing.assert_close(drawn.mean(0), expected[0], atol=0.02, rtol=0)


@kinds
def test_moving_all_positions_changes_nothing(kind):
    module, x = kind(16, 2), torch.randn(2, 5, 16)
    here, _ = module(x, None, rotations(POSITIONS, module.num_frequencies))
    there, _ = module(x, None, rotations(POSITIONS + 50, module.num_frequencies))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)  # float32 angles near 50


@kinds
def test_stretching_positions_changes_the_result(kind):
    module, x = kind(16, 2), torch.randn(2, 5, 16)
    here, _ = module(x, None, rotations(POSITIONS, module.num_frequencies))
    there, _ = module(x, None, rotations(POSITIONS * 3, module.num_frequencies))
    assert (here - there).abs().max() > 1e-3


@kinds
def test_frame_by_frame_with_a_cache_equals_the_whole_under_a_causal_mask(kind):
    module, x = kind(16, 2), torch.randn(2, 5, 16)
    whole, _ = module(
        x, causal_mask(POSITIONS, POSITIONS)[:, None], rotations(POSITIONS, module.num_frequencies)
    )
    cache, steps = None, []
    for end in range(1, 6):
        step, cache = module(
            x[:, end - 1 : end], None, rotations(POSITIONS[:, :end], module.num_frequencies), cache
        )
        steps.append(step)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-6, rtol=0)


@kinds
def test_an_utterance_without_frames_gives_no_nan_and_no_nan_gradient(kind):
    module, x = kind(16, 2), torch.randn(2, 5, 16, requires_grad=True)
    mask = attention_mask(torch.tensor([[True] * 5, [False] * 5]))
    y, _ = module(x, mask, rotations(POSITIONS, module.num_frequencies))
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


def test_beams_share_the_memory_of_their_utterance():
    module, frames = CrossAttention(16, 2), torch.randn(2, 7, 16)
    mask = attention_mask(torch.arange(7) < torch.tensor([[7], [3]]))
    beams = torch.randn(6, 1, 16)
    shared = module(beams, module.project(frames), mask)
    own = module(
        beams, module.project(frames.repeat_interleave(3, 0)), mask.repeat_interleave(3, 0)
    )
    torch.testing.assert_close(shared, own, atol=1e-6, rtol=0)


def test_rows_of_a_cache_follow_their_beams():
    cache = KeyValue(torch.arange(3.0).view(3, 1, 1, 1), torch.arange(3.0).view(3, 1, 1, 1))
    assert cache.take(torch.tensor([2, 0, 0])).key.flatten().tolist() == [2, 0, 0]


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of 2 \\* num_heads = 8"):
        SelfAttention(12, 4)


@pytest.mark.hf
def test_lora_goes_into_the_projections():
    torchaudio_adapter.load()  # before peft, which imports transformers, which imports torchaudio
    peft = pytest.importorskip("peft")
    module, x = RotarySelfAttention(16, 2), torch.randn(2, 5, 16)
    at = rotations(POSITIONS, module.num_frequencies)
    before, _ = module(x, None, at)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), module)
    # LoRA starts as nothing
    torch.testing.assert_close(module(x, None, at)[0], before, atol=1e-6, rtol=0)
    torch.nn.init.normal_(module.v_proj.lora_B["default"].weight)
    assert (module(x, None, at)[0] - before).abs().max() > 1e-3


def test_a_growing_cache_holds_what_a_copied_one_holds_and_branches():
    """Appending twice to the same cache gives two that do not disturb each other."""
    pieces = [KeyValue(torch.randn(2, 3, n, 4), torch.randn(2, 3, n, 4)) for n in (2, 1, 3, 1, 2)]
    copied, growing = pieces[0], GrowingKeyValue.empty(pieces[0]).append(pieces[0])
    for piece in pieces[1:]:
        before, copied, growing = growing, copied.append(piece), growing.append(piece)
        other = before.append(pieces[0])
        torch.testing.assert_close((growing.key, growing.value), (copied.key, copied.value))
        torch.testing.assert_close(other.key[:, :, -2:], pieces[0].key)
    rows = torch.tensor([1])
    more = growing.take(rows).append(pieces[1].take(rows))
    torch.testing.assert_close(more.value, copied.append(pieces[1]).value[1:])


@kinds
def test_dropout_of_the_weights_keeps_their_mean_and_the_seed_decides_it(kind):
    module, exact = kind(16, 2, 0.3), kind(16, 2)
    exact.load_state_dict(module.state_dict())
    x, mask = torch.randn(2, 5, 16), attention_mask(torch.arange(5) < torch.tensor([[5], [3]]))
    angles = rotations(POSITIONS, module.num_frequencies)
    expected = exact(x, mask, angles)[0]
    assert torch.equal(module.eval()(x, mask, angles)[0], expected)
    module.train()
    found = []
    for seed in [*range(400), 0]:
        torch.manual_seed(seed)
        found.append(module(x, mask, angles)[0])
    assert torch.equal(found[0], found[-1]) and not torch.allclose(found[0], found[1])
    torch.testing.assert_close(torch.stack(found[:-1]).mean(0), expected, atol=0.05, rtol=0)


@kinds
def test_padding_changes_nothing_under_dropout(kind):
    module = kind(16, 2, 0.3).train()
    valid = torch.arange(5) < torch.tensor([[5], [3]])
    angles, x = rotations(POSITIONS, module.num_frequencies), torch.randn(2, 5, 16)
    found = []
    for filler in (0.0, 7.0):
        torch.manual_seed(1)
        filled = x.masked_fill(~valid[:, :, None], filler)
        found.append(module(filled, attention_mask(valid), angles)[0][valid])
    assert torch.equal(*found)


def test_a_dropout_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="dropout 1.0 of attention is not a probability"):
        SelfAttention(16, 2, 1.0)
