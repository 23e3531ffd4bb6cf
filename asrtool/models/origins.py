"""The origin of pre-trained weights that a model's checkpoints leave out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from asrtool.encoders import Encoder

_SAMPLE = 1 << 20  # bytes at either end of a file of weights that enter its fingerprint


def fingerprints(encoder: Encoder) -> tuple[dict[str, str | None], ...]:
    """Fingerprints of all weights that an encoder is built on and that never change."""
    below = (source.below("encoder") for source in encoder.sources)
    return tuple(fingerprint(source.weights, source.revision, source.part) for source in below)


def fingerprint(weights: str, revision: str | None, kind: str) -> dict[str, str | None]:
    """Name, revision and a hash of a pre-trained model.

    The hash covers names, sizes and both ends of its files: reading a large model as a whole would
    take a minute at every start.
    """
    import transformers.utils as hub

    folder = Path(weights)
    if folder.is_file():
        files = [folder]
    elif folder.is_dir():
        files = sorted(
            [*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]
        )
    else:
        # All files of a snapshot of the hub are in one folder.
        cached = hub.cached_file(weights, "config.json", revision=revision or "main")
        kinds = (".safetensors", ".bin", ".json")
        files = sorted(path for path in Path(cached).parent.iterdir() if path.suffix in kinds)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(json.dumps([file.name, size]).encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(_SAMPLE))
            # The head of a file has names and shapes, the end the last layers, which any training
            # changes.
            stream.seek(max(0, size - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return {
        "part": kind,
        "weights": weights,
        "revision": revision,
        "fingerprint": digest.hexdigest(),
    }
