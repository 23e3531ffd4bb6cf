"""Models of text: trained as any other, they hear nothing and score what a recogniser writes."""

from __future__ import annotations

from collections.abc import Collection

from asrtool.models.base import Model

OUTPUT = "lm"  # what the loss reads


class TextModel(Model):
    """A language model: `ModelOutput.heads` has the one entry `lm`."""


def check_output(heads: Collection[str]) -> None:
    """Raise `ValueError` where losses read something else."""
    if set(heads) != {OUTPUT}:
        raise ValueError(
            f"a language model has only the output '{OUTPUT}', but the losses read: "
            f"{', '.join(sorted(heads))}"
        )
