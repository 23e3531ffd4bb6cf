"""Details of single utterances: spectrogram, audio, token times, and internals of the model.

Fields of hyps.jsonl or taps.jsonl that are drawn if they exist (docs/report.md):

    tokens, times, confidences    the hypothesis' tokens, seconds, 0 to 1
    key_frames                    seconds of the frames that the model kept
    curves                        {name: {"step": seconds, "start": seconds, "values": [one number
                                  per frame]}}
    maps                          {name: {"step", "start", "rows": [names], "values": [[one number
                                  per frame] per row]}}
    classes                       {name: {class: probability}}
"""

from __future__ import annotations

import base64
import io
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile
import torch

from asrtool.data import audio
from asrtool.data.fbank import Fbank, FbankConfig
from asrtool.errors import UserError
from asrtool.types import Utterance

PLAYABLE = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a"}  # by browsers
COLUMNS = 1500  # maximum width of a picture; longer audio is averaged over time
RANGE = 9.0  # nats from the loudest point to the faintest shade
RATE = 16000


def link(utterance: Utterance, page: Path) -> str | None:
    """URL of the audio, relative to the page's folder; None if browsers cannot play it."""
    path = utterance.audio
    if audio.is_pipe(path) or Path(path).suffix.lower() not in PLAYABLE:
        return None
    address = quote(
        os.path.relpath(os.path.realpath(path), page.resolve().parent).replace(os.sep, "/")
    )
    start, seconds = utterance.stretch
    if start or seconds is not None:
        address += f"#t={start:.3f}" + ("" if seconds is None else f",{start + seconds:.3f}")
    return address


def samples(utterance: Utterance) -> np.ndarray:
    """(T,) float32 at 16 kHz."""
    return audio.read(utterance.audio, *utterance.stretch, RATE)


def sound(wave: np.ndarray) -> str:
    """The samples as a data URI: FLAC, 16 bits."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(wave: np.ndarray) -> dict:
    """An 80-filter log-mel spectrogram as a grey PNG, loudest white, and the seconds it spans."""
    config = FbankConfig()
    features = Fbank(config)(torch.from_numpy(np.ascontiguousarray(wave)))
    if len(features) == 0:
        return {"seconds": len(wave) / RATE}
    pool = -(-len(features) // COLUMNS)
    if pool > 1:
        features = torch.stack([block.mean(0) for block in features.split(pool)])
    top = torch.quantile(features.flatten()[:: 1 + features.numel() // 1_000_000], 0.999)
    # 32 shades compress well
    shades = ((features - top) / RANGE + 1).clamp(0, 1).mul(31).round().mul(8).to(torch.uint8)
    return {
        "seconds": round(len(wave) / RATE, 3),
        "image": "data:image/png;base64,"
        + base64.b64encode(grey_png(shades.numpy().T[::-1])).decode(),
        "first": config.frame_length_ms / 2000,  # centre of the first column
        "step": pool * config.frame_shift_ms / 1000,
    }


def grey_png(pixels: np.ndarray) -> bytes:
    """(height, width) uint8 as a PNG file."""
    height, width = pixels.shape
    # each row begins with its PNG filter: 1, the difference to the left neighbour
    rows = b"".join(b"\1" + np.diff(row, prepend=np.uint8(0)).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# -- internals of the model --------------------------------------------------


def fields_of(name: str, line: Mapping) -> dict:
    """The drawable fields of an utterance's line, checked and shortened."""
    fields: dict = {}
    tokens = line.get("tokens")
    for key in ("times", "confidences"):
        if line.get(key) is not None:
            _expect(
                name,
                key,
                tokens is not None and len(line[key]) == len(tokens),
                "as many numbers as tokens",
            )
            fields[key] = _numbers(name, key, line[key])
    if tokens is not None:
        fields["tokens"] = tokens
    if "key_frames" in line:
        fields["key_frames"] = _numbers(name, "key_frames", line["key_frames"])
    for kind, depth in (("curves", 1), ("maps", 2)):
        if line.get(kind):
            fields[kind] = {
                title: _grid(name, f"{kind}.{title}", value, depth)
                for title, value in line[kind].items()
            }
    for title, shares in line.get("classes", {}).items():
        _expect(
            name,
            f"classes.{title}",
            isinstance(shares, Mapping),
            "an object of class and probability",
        )
        numbers = _numbers(name, f"classes.{title}", list(shares.values()))
        ranked = sorted(zip(shares, numbers, strict=True), key=lambda pair: -pair[1])
        fields.setdefault("classes", {})[title] = [list(pair) for pair in ranked]
    return fields


def _grid(name: str, key: str, value: Mapping, depth: int) -> dict:
    """Check a curve (depth 1) or a map (depth 2) and return its numbers or a PNG of its values."""
    step = value.get("step") if isinstance(value, Mapping) else None
    _expect(
        name,
        key,
        isinstance(step, int | float) and step > 0,
        "an object with `step`, seconds above 0",
    )
    try:
        values = np.array(value.get("values"), dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    _expect(
        name,
        key,
        values.ndim == depth and values.size > 0 and np.isfinite(values).all(),
        "`values`, finite numbers, a list" + (" of equally long lists" if depth == 2 else ""),
    )
    grid = {"start": value.get("start", 0.0), "step": step}
    if depth == 1:
        return {**grid, "values": _rounded(values.tolist())}
    rows = value.get("rows") or [str(number + 1) for number in range(len(values))]
    _expect(name, key, len(rows) == len(values), "as many `rows` as lists of values")
    top = max(float(values.max()), 1e-12)
    shades = (values / top).clip(0, 1) * 255
    image = base64.b64encode(grey_png(shades.round().astype(np.uint8))).decode()
    return {
        **grid,
        "rows": rows,
        "columns": values.shape[1],
        "top": float(f"{top:.4g}"),
        "image": "data:image/png;base64," + image,
    }


def _numbers(name: str, key: str, values: Sequence) -> list[float]:
    good = isinstance(values, Sequence) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )
    _expect(name, key, good, "a list of finite numbers")
    return _rounded(values)


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _expect(name: str, key: str, good: bool, what: str) -> None:
    if not good:
        raise UserError(
            f"utterance {name}: field '{key}' of hyps.jsonl or taps.jsonl: expected {what}"
        )
