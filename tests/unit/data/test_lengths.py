"""How long the utterances of a training set were, as it is kept with the experiment."""

from __future__ import annotations

import json

import numpy as np
import pytest

from asrtool.data.lengths import NAME, Lengths
from asrtool.errors import UserError


def test_quantiles_are_kept_and_read_back(tmp_path):
    found = Lengths.of(np.linspace(1, 5, 401))
    assert (found.utterances, found.hours) == (401, 0.334)
    assert [found.quantile(share) for share in (0, 0.1, 0.5, 0.99, 1)] == [1, 1.4, 3, 4.96, 5]
    found.save(tmp_path)
    assert Lengths.load(tmp_path) == found
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_one_utterance_is_a_set(tmp_path):
    assert Lengths.of([2.5]).quantile(0.99) == 2.5


def test_a_folder_without_the_file_has_none(tmp_path):
    assert Lengths.load(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"utterances": 1}', "null"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match=f"{NAME}: expected a JSON object with utterances, hours"):
        Lengths.load(tmp_path)
    whole = {"utterances": 1, "hours": 1, "seconds": {"0.5": 1}}
    (tmp_path / NAME).write_text(json.dumps(whole))
    with pytest.raises(UserError, match="stage 3 writes it again"):
        Lengths.load(tmp_path)
