"""Which torch asrtool works with. `setup.py`, `tools/setup.sh` and `asrtool doctor` read it
here.
"""

from __future__ import annotations

OLDEST = (2, 11)  # of torch; there is no newest, so that no installation goes back
TESTED = ((2, 13),)  # releases that the tests ran with
TORCH, TORCHAUDIO = "2.13.0", "2.11.0"  # what `tools/setup.sh` installs


def release(version: str) -> tuple[int, int]:
    """2.13.0+cpu -> (2, 13)."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def dotted(*releases: tuple[int, int]) -> str:
    return ", ".join(f"{major}.{minor}" for major, minor in releases)
