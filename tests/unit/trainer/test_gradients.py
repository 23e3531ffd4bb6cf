"""The cosine of two losses' gradients, against gradients that are known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from asrtool.errors import UserError
from asrtool.trainer.config import TrainerConfig
from asrtool.trainer.objective import Objective, cosine
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded, Trainable
from tests.toy_training import ToyLoss, toy_batch, toy_trainer, weights_of


class Pull:
    """A loss whose gradient on the shared weights is `along`, for one utterance."""

    head = "x"
    monitors = ()
    views, warmup = 1, 0.0

    def __init__(self, *along: float) -> None:
        self.along = torch.tensor(along)

    def __call__(self, outputs: ModelOutput, batch: Batch) -> torch.Tensor:
        return (outputs.head("x").data[0, 0] * self.along).sum()[None]


class Model(Trainable):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.zeros(2))
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, batch: Batch) -> ModelOutput:
        x = Padded(self.shared[None, None], torch.tensor([1]))
        return ModelOutput(
            encoder=EncoderOutput(frames=x, positions=torch.zeros(1, 1)), heads={"x": x}
        )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((3.0, 0.0), (1.0, 0.0), 1.0),
        ((3.0, 0.0), (0.0, 2.0), 0.0),
        ((1.0, 1.0), (-1.0, 0.0), -(0.5**0.5)),
    ],
)
def test_it_is_the_cosine_and_the_norms_are_weighted(first, second, expected):
    model, batch = Model(), toy_batch([0])
    objective = Objective(
        {"accent": Pull(*first), "ctc": Pull(*second)}, {"accent": 0.5, "ctc": 2.0}
    )
    found = cosine(model, objective, "accent", model, batch)
    assert found["cosine"] == pytest.approx(expected)
    assert found["norm"] == pytest.approx(0.5 * torch.tensor(first).norm().item())
    assert found["norm_others"] == pytest.approx(2.0 * torch.tensor(second).norm().item())
    assert model.shared.grad is None


def test_a_gradient_of_zero_has_no_cosine():
    model = Model()
    objective = Objective(
        {"accent": Pull(0.0, 0.0), "ctc": Pull(1.0, 0.0)}, {"accent": 1.0, "ctc": 1.0}
    )
    assert cosine(model, objective, "accent", model, toy_batch([0])) is None


def test_training_logs_it_and_ends_with_the_same_weights(tmp_path):
    weights = []
    for name, term in (("with", "classes"), ("without", None)):
        both = Objective({"classes": ToyLoss(), "again": ToyLoss()}, {"classes": 1.0, "again": 0.5})
        trainer = toy_trainer(tmp_path / name, objective=both, gradient_cosine=term, log_every=2)
        trainer.run()
        weights.append(weights_of(trainer))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    records = [
        json.loads(line) for line in (tmp_path / "with" / "log.jsonl").read_text().splitlines()
    ]
    found = [record for record in records if record["event"] == "gradients"]
    assert [record["step"] for record in found] == [2, 4, 6, 8]
    for record in found:  # the same loss twice, but for dropout's draw
        assert record["cosine"] == pytest.approx(1.0) and record["norm"] == pytest.approx(
            2 * record["norm_others"]
        )


def test_a_term_that_is_none_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="gradient_cosine: there is no loss 'clases'; did you mean 'classes'"
    ):
        toy_trainer(tmp_path, gradient_cosine="clases")


def test_it_needs_whole_gradients():
    with pytest.raises(ValueError, match="use parallel: ddp"):
        TrainerConfig(steps=1, parallel="fsdp", gradient_cosine="ctc")
