"""numba where it can be imported; elsewhere the same functions run as plain Python, slower, with the same results."""

from __future__ import annotations

from collections.abc import Callable

try:
    import numba
except ImportError:
    numba = None

AVAILABLE = numba is not None


def compiled(function: Callable) -> Callable:
    """Machine code that lets other threads run; kept in the cache of compiled files for the next process."""
    return numba.njit(cache=True, nogil=True)(function) if AVAILABLE else function


def vectorised(function: Callable) -> Callable:
    """The same, where a sum's order does not matter: it is added up in several places at once."""
    return numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})(function) if AVAILABLE else function
