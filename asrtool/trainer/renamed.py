"""Former names of tensors, for every reader of tensors and of name patterns."""

from __future__ import annotations

PARAMETERS = {  # former prefix -> current prefix
    "decoder.": "heads.attention.decoder.",
    "reverse_decoder.": "heads.reverse.decoder.",
}


def present_name(name: str) -> str:
    """The current name of a parameter, or of a pattern of names."""
    for old, new in PARAMETERS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
