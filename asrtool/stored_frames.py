"""Frames of a frozen front end that stage 1 stores (`data.features: stored_frames`): their
identity, their computation, and the check that a folder's frames match a model.

`frames.json` of a folder identifies the front end of its frames:

    {"name": "whisper-layer4-5b0c5a31", "digest": "...", "dim": 512, "frame_shift": 0.02, "long": 0}

`long` counts utterances without frames, because they are longer than the front end accepts.

The digest covers everything that the values depend on: the type of the front end, its weights, the
layer and the sampling rate, but neither settings of training (masks, dropout) nor the path of the
weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from asrtool import config
from asrtool.data.config import DataConfig
from asrtool.data.shapes import SECONDS, recurring
from asrtool.encoders import ENCODERS, Encoder
from asrtool.errors import UserError
from asrtool.experiment import TrainConfig
from asrtool.nn.meta_device import without_weights
from asrtool.system import atomic
from asrtool.types import Padded

FILE = "frames.json"
VERSION = 1  # increase it if the same weights yield different frames
GPU_SECONDS = 240.0  # seconds of audio in one batch on a GPU
# settings of a front end that do not change its output in evaluation, or that the digest of the
# weights covers
_WITHOUT = (
    *("weights", "revision", "size", "tuning", "layer_drop", "time_mask", "time_mask_length"),
    *("channel_mask", "channel_mask_length", "dropout", "attention_dropout", "activation_dropout"),
    "final_dropout",
)

_built: dict[tuple[str, str], Encoder] = {}  # of this process, by digest and device


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """A frozen front end whose frames are stored."""

    config: object  # model.encoder.frontend
    rate: int  # Hz of the samples that it reads

    @classmethod
    def of(cls, phase: TrainConfig) -> FrontEnd | None:
        """The front end of a phase; None if the phase reads no stored frames."""
        if phase.data.features != "stored_frames":
            return None
        return cls(config=phase.model.encoder.frontend, rate=phase.data.fbank.rate)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that the frames depend on; reads the files of the weights."""
        settings = config.encode(type(self.config), self.config)
        decisive = {key: value for key, value in settings.items() if key not in _WITHOUT}
        decisive |= {
            "type": ENCODERS.name_of(self.config),
            "weights": weights_digest(self.config.weights, self.config.revision),
            "rate": self.rate,
            "version": VERSION,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """As in `whisper-layer4-5b0c5a31`."""
        layer = self.config.layer
        suffix = f"layer{layer}" if isinstance(layer, int) else layer or "last"
        return f"{ENCODERS.name_of(self.config)}-{suffix}-{self.digest[:8]}"

    def build(self) -> Encoder:
        """The front end with its weights; on the meta device without them, for its shapes."""
        return ENCODERS.build(
            self.config, input_dim=1, vocab_size=1, frame_shift=1 / self.rate
        ).eval()


@dataclass
class Maker:
    """Computes frames in stage 1. Every process builds its own network, at its first utterance."""

    front_end: FrontEnd
    device: str
    dim: int = field(init=False)  # numbers of a frame
    frame_shift: float = field(init=False)  # seconds
    max_seconds: float | None = field(init=False)
    batch_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        with without_weights():
            shape = self.front_end.build()
        self.dim, self.frame_shift = shape.stored_dim, shape.frame_shift
        self.max_seconds = shape.max_seconds
        self.batch_seconds = GPU_SECONDS if self.device != "cpu" else 0.0

    def __call__(self, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Samples (T,) of several utterances -> frames (S, dim), float16."""
        rows = [torch.from_numpy(np.ascontiguousarray(one)) for one in samples]
        # as the loader pads them: recurring shapes reuse cached kernels
        unit = round(SECONDS * self.front_end.rate)
        size = unit * recurring(-(-max(map(len, rows)) // unit))
        with torch.inference_mode():
            frames = self._network().stored(Padded.stack(rows, size=size).to(self.device))
        return [row.half().cpu().numpy() for row in frames.unpad()]

    def size(self, seconds: float) -> int:
        """Bytes of the frames of `seconds` of audio."""
        return round(seconds / self.frame_shift) * self.dim * np.dtype(np.float16).itemsize

    def note(self, folder: Path, long: int) -> None:
        """Write frames.json; long: utterances without frames."""
        facts = {
            "name": self.front_end.name,
            "digest": self.front_end.digest,
            "dim": self.dim,
            "frame_shift": self.frame_shift,
            "long": long,
        }
        atomic.write_text(folder / FILE, json.dumps(facts) + "\n")

    def _network(self) -> Encoder:
        key = self.front_end.digest, self.device
        if key not in _built:
            _built.clear()
            _built[key] = self.front_end.build().to(self.device)
        return _built[key]


class Origin(NamedTuple):
    """The front end that the frames of a folder come from."""

    name: str
    digest: str
    long: int  # utterances without frames


def origin(folder: Path) -> Origin | None:
    """The content of a folder's `frames.json`; None without one."""
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Origin(str(facts["name"]), str(facts["digest"]), int(facts["long"]))
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: expected a JSON object with name, digest and long; run stage 1 again"
        ) from None


def check(folder: Path, front_end: FrontEnd) -> None:
    """Raise `UserError` if the frames in a folder of stage 1 are not of `front_end`."""
    found = origin(folder)
    if found is None:
        raise UserError(
            f"{folder} holds no stored frames ({FILE} is missing), which data.features: "
            "stored_frames reads; run stage 1 with this config"
        )
    if found.digest != front_end.digest:
        raise UserError(
            f"{folder} holds frames of {found.name}, and model.encoder.frontend gives those of "
            f"{front_end.name}; run stage 1 with this config"
        )


def from_audio(data: DataConfig) -> DataConfig:
    """The config with audio instead of stored frames as the model's input."""
    return replace(data, features="stored") if data.features == "stored_frames" else data


def weights_digest(weights: str, revision: str | None) -> str:
    """SHA-256 of the files of a folder, or of a hub name and its commit.

    Raises `UserError` if it is neither.
    """
    folder = Path(weights)
    if not folder.is_dir():
        return hashlib.sha256(f"{weights}@{_commit(weights, revision)}".encode()).hexdigest()
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.json")])
    kept = [file for file in files if file.suffix != ".json" or file.name in _SETTINGS]
    digest = hashlib.sha256()
    for file in kept:
        with open(file, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


# JSON files that the values depend on; others belong to tokenizers
_SETTINGS = ("config.json", "preprocessor_config.json")


def _commit(weights: str, revision: str | None) -> str:
    """The commit of a model of the hub, from the cache or by a download."""
    try:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(weights, "config.json", revision=revision or "main")
    except Exception as error:  # of the package, the network or the name
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"weights {weights} cannot be found ({reason}); expected a folder, or the name of a "
            "model of the Hugging Face hub: correct weights, or download the model first"
        ) from None
    return Path(path).parent.name  # snapshots/<commit>/config.json
