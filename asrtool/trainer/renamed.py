"""Former names of tensors; every reader of tensors and of name patterns asks here."""

from __future__ import annotations

PARAMETERS = {  # by prefix
    "decoder.": "heads.attention.decoder.",
    "reverse_decoder.": "heads.reverse.decoder.",
}


def present_name(name: str) -> str:
    """The present name of a parameter, or of a pattern of names."""
    for old, new in PARAMETERS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
