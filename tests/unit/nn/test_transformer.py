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
    whole, _ = module(
        x, causal_mask(positions, positions)[:, None], FRAMES, module.init_cache(memory)
    )
    cache, steps = module.init_cache(memory), []
    for token in range(4):
        step, cache = module(x[:, token : token + 1], None, FRAMES, cache)
        steps.append(step)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-6, rtol=0)


def test_beams_are_a_tree_in_which_each_token_sees_its_ancestors():
    """Two beams of two utterances: both second tokens of the first utterance follow its second
    beam.
    """
    module, memory = layer(), torch.randn(2, 6, 16)
    first, second = torch.randn(2, 2, 16), torch.randn(2, 2, 16)
    alone = torch.eye(2, dtype=torch.bool)
    _, cache = module(first, alone, FRAMES, module.init_cache(memory))
    parents = torch.tensor([[[0, 1], [0, 1]], [[1, 0], [0, 1]]], dtype=torch.bool)
    seen = torch.cat([parents, alone.expand(2, -1, -1)], 2)
    got, _ = module(second, seen[:, None], FRAMES, cache)
    chosen = torch.stack([first[0, [1, 1]], first[1]])
    for beam in (0, 1):
        _, cache = module(chosen[:, beam, None], None, FRAMES, module.init_cache(memory))
        expected, _ = module(second[:, beam, None], None, FRAMES, cache)
        torch.testing.assert_close(got[:, beam, None], expected, atol=1e-6, rtol=0)


def test_a_cache_gives_its_utterances_up():
    module, x, memory = layer(), torch.randn(2, 1, 16), torch.randn(2, 6, 16)
    _, cache = module(x, None, FRAMES, module.init_cache(memory))
    both, _ = module(x, None, FRAMES, cache)
    second, _ = module(x[1:], None, FRAMES[1:], cache.take(torch.tensor([1])))
    torch.testing.assert_close(second, both[1:])


def test_frames_beyond_the_length_are_not_seen():
    module, x, memory = layer(), torch.randn(2, 4, 16), torch.randn(2, 6, 16)
    before, _ = module(x, None, FRAMES, module.init_cache(memory))
    memory[1, 2:] += 1
    torch.testing.assert_close(module(x, None, FRAMES, module.init_cache(memory))[0], before)
