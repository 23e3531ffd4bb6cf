from __future__ import annotations

import torch
from torch import nn

from asrtool.nn.attention import SelfAttention


class Wrapped(nn.Linear):
    """A linear that is no plain one, as LoRA's."""


def test_queries_keys_and_values_of_one_product_are_those_of_three() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, 2)
    x = torch.randn(3, 5, 8)
    query, seen = attention.project_self(x)
    torch.testing.assert_close(query, attention.split(attention.q_proj(x)))
    torch.testing.assert_close(
        tuple(seen.__dict__.values()), tuple(attention.project(x).__dict__.values())
    )


def test_a_wrapped_projection_is_called() -> None:
    attention = SelfAttention(8, 2)
    attention.q_proj = Wrapped(8, 8)
    called = []
    attention.q_proj.register_forward_hook(lambda *_: called.append(True))
    attention.project_self(torch.randn(1, 2, 8))
    assert called
