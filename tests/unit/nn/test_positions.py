from __future__ import annotations

import torch

from asrtool.nn.positions import rotate, rotations

GAPPY = torch.tensor([[0, 1, 4, 5, 40]])


def test_the_product_of_rotated_vectors_depends_on_the_distance_alone():
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    here = rotate(query, rotations(torch.tensor([[7]]), 4)) * rotate(
        key, rotations(torch.tensor([[3]]), 4)
    )
    there = rotate(query, rotations(torch.tensor([[107]]), 4)) * rotate(
        key, rotations(torch.tensor([[103]]), 4)
    )
    # float32 angles near 100
    torch.testing.assert_close(here.sum(), there.sum(), atol=1e-4, rtol=0)


def test_position_0_rotates_nothing():
    x = torch.randn(2, 3, 1, 8)
    torch.testing.assert_close(rotate(x, rotations(torch.tensor([[0]]), 4)), x)


def test_coefficients_against_places_are_cosines_and_sines_of_the_distances():
    coefficients = torch.randn(1, 1, 5, 8)
    at = rotations(GAPPY, 4)
    product = rotate(coefficients, at) @ torch.view_as_real(at).flatten(-2).transpose(-1, -2)
    distance = (GAPPY[0][:, None] - GAPPY[0]).double()[..., None] * 10000 ** -(
        torch.arange(4, dtype=torch.float64) / 4
    )
    real, imaginary = coefficients[0, 0].double().unflatten(-1, (4, 2)).unbind(-1)
    expected = (real[:, None] * distance.cos() - imaginary[:, None] * distance.sin()).sum(-1)
    # float32 against float64
    torch.testing.assert_close(product[0, 0].double(), expected, atol=1e-5, rtol=0)
