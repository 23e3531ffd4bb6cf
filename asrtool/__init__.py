"""asrtool: recipes for end-to-end speech recognition."""

from __future__ import annotations

from asrtool.errors import UserError

__all__ = ["UserError", "load"]

__version__ = "0.1.0"


def load(path, **options):
    """A trained experiment or packed model, ready to recognise:
    `asrtool.load(path).recognize("a.wav").text`.

    options: `decode`, `device`, `weights`, `lm`, `imports`, as
    `asrtool.recognizer.Recognizer.load` explains them.
    """
    # torch takes seconds: whoever wants the version does not wait for it
    from asrtool.recognizer import Recognizer

    return Recognizer.load(path, **options)
