"""What goes wrong in training is counted, and ends it where nothing is learnt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asrtool.errors import UserError
from asrtool.trainer.troubles import Troubles
from tests.toy_training import toy_trainer


class Progress:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict]] = []

    def event(self, name: str, **facts: object) -> None:
        self.events.append((name, facts))


def test_an_epoch_without_a_single_loss_is_the_last(tmp_path: Path) -> None:
    troubles, progress = Troubles("train", tmp_path, limit=10), Progress()
    troubles.unscored(["d", "e"])  # of what is tried before the first step
    troubles.report(0, progress)
    troubles.trained(2, ["a", "b"])
    troubles.trained(2, ["c"])
    troubles.report(1, progress)  # one utterance had a loss
    assert [facts["ids"] for _, facts in progress.events] == [["d", "e"], ["a", "b", "c"]]
    troubles.trained(2, ["a", "b"])
    troubles.trained(2, ["c", "d"])
    with pytest.raises(UserError, match="epoch 2: none of 4 utterances has a finite loss, .*text"):
        troubles.report(2, progress)


def test_a_learning_rate_that_explodes_is_named_with_its_step(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        toy_trainer(tmp_path, optim={"lr": 1e38}, nonfinite_limit=3).run()
    said = str(caught.value)
    assert re.match(
        r"step [45]: 3 steps in a row were not finite, at a learning rate of 1e\+38; ", said
    )
    assert "the weights have grown too large: lower optim.lr, warm up longer" in said
    assert "\n" not in said
