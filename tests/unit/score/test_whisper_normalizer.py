"""`--normalize whisper`: with the package, and without it."""

from __future__ import annotations

import sys

import pytest

from asrtool.errors import UserError
from asrtool.score import normalize, score


def test_the_package_acts_on_both_sides():
    pytest.importorskip("whisper_normalizer.english")
    report = score(
        {"u": "Mr. O'Neil didn't pay twenty dollars"},
        {"u": "mister o'neil did not pay $20"},
        metric="wer",
        normalize="whisper",
    )
    assert report.total.rate == 0
    assert (
        normalize.normalizer("whisper-basic")("\u00c9t\u00e9, (rire) oui!") == "\u00e9t\u00e9 oui"
    )


@pytest.mark.parametrize("name", normalize.WHISPER)
def test_a_missing_package_is_one_sentence(monkeypatch, name):
    normalize._whisper.cache_clear()
    for module in ("whisper_normalizer", "whisper_normalizer.basic", "whisper_normalizer.english"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="pip install whisper-normalizer"):
        normalize.normalizer(name)
