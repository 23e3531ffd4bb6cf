from __future__ import annotations

import torch

from asrtool.nn.masks import attention_mask, causal_mask
from asrtool.nn.transformer import TransformerDecoderLayer

FRAMES = attention_mask(torch.arange(6) < torch.tensor([[6], [2]]))


def layer() -> TransformerDecoderLayer:
    torch.manual_seed(0)
    return TransformerDecoderLayer(16, 2, 32, dropout=0.1).eval()


def test_token_by_token_equals_the_whole_under_a_causal_mask():
    module, x, memory = layer(), torch.randn(2, 4, 16), torch.randn(2, 6, 16)
    positions = torch.arange(4)[None]
    whole, _ = module(x, causal_mask(positions, positions)[:, None], FRAMES, module.init_cache(memory))
    cache, steps = module.init_cache(memory), []
    for token in range(4):
        step, cache = module(x[:, token: token + 1], None, FRAMES, cache)
        steps.append(step)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-6, rtol=0)


def test_beams_that_change_places_take_their_past_along():
    module, memory = layer(), torch.randn(2, 6, 16)
    first, second, order = torch.randn(4, 1, 16), torch.randn(4, 1, 16), torch.tensor([1, 1, 2, 3])
    _, cache = module(first, None, FRAMES, module.init_cache(memory))
    got, _ = module(second, None, FRAMES, cache.rows(order))
    _, cache = module(first[order], None, FRAMES, module.init_cache(memory))
    torch.testing.assert_close(got, module(second, None, FRAMES, cache)[0])


def test_frames_beyond_the_length_are_not_seen():
    module, x, memory = layer(), torch.randn(2, 4, 16), torch.randn(2, 6, 16)
    before, _ = module(x, None, FRAMES, module.init_cache(memory))
    memory[1, 2:] += 1
    torch.testing.assert_close(module(x, None, FRAMES, module.init_cache(memory))[0], before)
