"""Pictures, drawn by matplotlib if it is installed; `asrtool plot <name>` runs module `name`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.system import atomic

HAN_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "SimHei",
    "PingFang SC",
)


def pyplot() -> Any:
    """matplotlib.pyplot with a backend for files. Raises `UserError` if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("drawing needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, out: Path) -> None:
    """Write a figure atomically and close it. Raises `UserError` for a format that matplotlib
    cannot write.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.replacing(out) as aside:
            figure.savefig(aside, dpi=120, format=out.suffix[1:] or "png")
    except ValueError as error:
        raise UserError(f"--out {out}: {error}") from error
    finally:
        pyplot().close(figure)


def readable(tokens: Iterable[str]) -> bool:
    """Use a font with Han characters if there is one; returns False if there is none, so that these
    tokens would be drawn as empty boxes.
    """
    if all(ord(letter) < 0x2E80 for token in tokens for letter in token):
        return True
    from matplotlib import font_manager, rcParams

    known = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in HAN_FONTS if name in known]
    if not fonts:
        logger.info("no installed font has Chinese characters: tokens are shown as numbers")
        return False
    rcParams["font.family"] = [*fonts, "DejaVu Sans"]
    return True
