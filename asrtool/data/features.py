"""Stored features (Kaldi archives and references), CMVN, and the names of feature sets."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO, TypeVar

import kaldiio
import numpy as np
import torch

from asrtool.data.config import DataConfig
from asrtool.data.fbank import FbankConfig
from asrtool.errors import UserError
from asrtool.system import atomic

Array = TypeVar("Array", np.ndarray, torch.Tensor)
HANDLES = 64  # archives kept open by a thread
SMALLEST_STD = 1e-3  # minimum standard deviation, for a constant feature


# -- archives --------------------------------------------------------------


class ArkWriter:
    """Writes matrices (T, F) to one Kaldi archive: float16 as float16, others as float32.

    final: the final path of the archive, used in references; a stage writes to a temporary folder
    that is renamed at the end.
    """

    def __init__(self, path: Path, final: Path | None = None) -> None:
        self._final = path if final is None else final
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - __exit__ closes it

    def __enter__(self) -> ArkWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, key: str, matrix: np.ndarray) -> str:
        """Append a matrix; returns its reference for feats.scp, `<archive>:<offset>`."""
        offset = self._file.tell() + len(key.encode()) + 1
        _save(self._file, key, matrix)
        return f"{self._final}:{offset}"


class _Handles(threading.local):
    """Open archives of one thread of one process, which must not share file positions."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.files: OrderedDict[str, BinaryIO] = OrderedDict()

    def get(self, archive: str) -> BinaryIO:
        # a forked process shares file positions with its parent: it must open its own handles
        if self.process != os.getpid():
            self.__init__()
        if archive not in self.files:
            self.files[archive] = open(archive, "rb")  # noqa: SIM115 - closed when it falls out
            if len(self.files) > HANDLES:
                self.files.popitem(last=False)[1].close()
        self.files.move_to_end(archive)
        return self.files[archive]


_handles = _Handles()


def _save(stream: BinaryIO, key: str, matrix: np.ndarray) -> None:
    """Append a matrix. Kaldi has no float16: kaldiio writes an npy record, marked `NPY`."""
    half = matrix.dtype == np.float16
    matrix = np.ascontiguousarray(matrix, dtype=np.float16 if half else np.float32)
    kaldiio.save_ark(stream, {key: matrix}, write_function="numpy" if half else None)


def read_features(reference: str) -> np.ndarray:
    """(T, F) float32 of `<archive>:<offset>`; matrices of other types are converted.

    Raises `OSError` if the archive cannot be opened, `UserError` if there is no matrix at the
    offset.
    """
    return np.asarray(read_stored(reference), dtype=np.float32)


def read_stored(reference: str) -> np.ndarray:
    """`read_features` that keeps float16 matrices in float16."""
    archive, colon, offset = reference.rpartition(":")
    if not colon or not offset.isdecimal():
        raise UserError(f"'{reference}' is not a reference <archive>:<offset>")
    return _matrix(_handles.get(archive), int(offset), reference)


def encode(matrix: np.ndarray) -> bytes:
    """A matrix (T, F) in the format of a Kaldi file of its own: float16 or else float32."""
    stream = io.BytesIO()
    _save(stream, "", matrix)
    return stream.getvalue()[1:]  # without the empty key and its space


def decode(data: bytes, name: str) -> np.ndarray:
    """The inverse of `encode`: (T, F) float16 or float32; `name` is used in error messages."""
    return _matrix(io.BytesIO(data), 0, name)


def _matrix(archive: BinaryIO, offset: int, name: str) -> np.ndarray:
    try:
        # through a file handle, because kaldiio would run a name that ends in "|" as a command
        matrix = kaldiio.load_mat(f"archive:{offset}", fd_dict={"archive": archive})
    except OSError:
        raise
    except Exception as error:  # kaldiio raises anything for a torn archive
        raise UserError(f"{name}: not a Kaldi matrix ({error}); run stage 1 again") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2:
        raise UserError(f"{name}: expected a matrix of features")
    dtype = np.float16 if matrix.dtype == np.float16 else np.float32
    return np.array(matrix, dtype=dtype, copy=None if matrix.flags.writeable else True)


# -- normalisation ---------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cmvn:
    """Global cepstral mean and variance normalisation of the training set: mean (F,), std (F,)."""

    mean: np.ndarray
    std: np.ndarray
    frames: int = 0

    def apply(self, features: Array) -> Array:
        """Normalise (..., F) to mean 0 and variance 1 over the training set."""
        if features.shape[-1] != len(self.mean):
            raise UserError(
                f"cmvn has {len(self.mean)} values, but the features have {features.shape[-1]}"
            )
        if isinstance(features, torch.Tensor):
            mean, std = (
                torch.from_numpy(self.mean).to(features),
                torch.from_numpy(self.std).to(features),
            )
            return (features - mean) / std
        return (features - self.mean) / self.std

    def save(self, path: Path) -> None:
        values = {
            name: [round(float(value), 6) for value in getattr(self, name)]
            for name in ("mean", "std")
        }
        atomic.write_text(path, json.dumps({**values, "frames": self.frames}) + "\n")

    @classmethod
    def load(cls, path: Path) -> Cmvn:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            mean, std = (np.array(content[name], dtype=np.float32) for name in ("mean", "std"))
            frames = int(content["frames"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: expected a JSON object with mean, std and frames") from None
        if (
            mean.ndim != 1
            or mean.shape != std.shape
            or not (np.isfinite(mean).all() and (std > 0).all() and np.isfinite(std).all())
        ):
            raise UserError(
                f"{path}: mean and std must be lists of equal length, std greater than 0"
            )
        return cls(mean, std, frames)


class CmvnStats:
    """Sums over frames in float64 for a `Cmvn`; partial sums can be added."""

    def __init__(self, dim: int) -> None:
        self.frames = 0
        self.sums = np.zeros((2, dim), dtype=np.float64)  # of the values and their squares

    def add(self, features: np.ndarray) -> None:
        """Add the frames (T, F) of one utterance."""
        exact = features.astype(np.float64)
        self.frames += len(exact)
        self.sums += exact.sum(axis=0), np.einsum("tf,tf->f", exact, exact)

    def __iadd__(self, other: CmvnStats) -> CmvnStats:
        self.frames += other.frames
        self.sums += other.sums
        return self

    def cmvn(self) -> Cmvn:
        if not self.frames:
            raise UserError("there are no frames, so mean and variance cannot be computed")
        mean, square = self.sums / self.frames
        # float64 sums: the difference of two large numbers would lose a small variance in float32
        std = np.sqrt(np.maximum(square - mean**2, SMALLEST_STD**2))
        return Cmvn(mean.astype(np.float32), std.astype(np.float32), self.frames)


# -- names -----------------------------------------------------------------


def are_stored(config: DataConfig) -> bool:
    """Whether stage 1 writes archives: of fbank features, or of a front end's frames."""
    return config.features == "stored_frames" or (
        config.input == "fbank" and config.features == "stored"
    )


def copies(config: DataConfig) -> tuple[float, ...]:
    """The speeds at which the training set is stored; (1.0,) if nothing is stored."""
    return config.augment.speeds if are_stored(config) else (1.0,)


def feature_id(config: DataConfig, frames: str | None = None) -> str:
    """Folder name of a feature set: `fbank80`, `fbank80-sp0.9-1.1`, `fbank80-online-shards` ...

    frames: for stored frames, the name of their front end with a digest of its weights. Other
    settings that differ from the default add a hash.
    """
    if config.features == "stored_frames":
        name, relevant = frames, ()  # its digest covers the sampling rate
    elif config.input == "waveform":
        name, relevant = "waveform", ("rate",)
    else:
        name = f"fbank{config.fbank.num_mel_bins}" + (
            "-online" if config.features == "online" else ""
        )
        relevant = tuple(
            field.name for field in fields(FbankConfig) if field.name != "num_mel_bins"
        )
    default, settings = asdict(FbankConfig()), asdict(config.fbank)
    other: dict[str, object] = {
        key: settings[key] for key in relevant if settings[key] != default[key]
    }
    speeds = copies(config)
    changed = [f"{speed:g}" for speed in sorted(set(speeds)) if not math.isclose(speed, 1.0)]
    if changed:
        name += "-sp" + "-".join(changed)
    if len(changed) == len(set(speeds)):
        other["original"] = False  # speed copies, not the original audio
    if config.shards is not None:
        name += "-shards"
    if other:
        name += "-" + hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:6]
    return name
