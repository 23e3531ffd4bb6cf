"""The error that a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """The input, a config or the machine is not what was expected.

    The message is one sentence: what is wrong and where, what was expected, and what to do.
    Commands print it without a traceback and exit with status 1. Subclasses exist only where some
    code catches them by name.
    """
