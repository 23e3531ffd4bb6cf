"""Models of text: trained like any other, they read no audio and score a recogniser's output."""

from __future__ import annotations

from collections.abc import Collection

from asrtool.models.base import Model

OUTPUT = "lm"  # the head that the loss reads


class TextModel(Model):
    """A language model: `ModelOutput.heads` has the single entry `lm`."""


def check_output(heads: Collection[str]) -> None:
    """Raise `ValueError` if losses read another head than `lm`."""
    if set(heads) != {OUTPUT}:
        raise ValueError(
            f"a language model has only the output '{OUTPUT}', but the losses read: "
            f"{', '.join(sorted(heads))}"
        )
