"""The origin of pre-trained weights that a model's checkpoints leave out.

A part is the name of a submodule that such weights fill: encoder, encoder.frontend, llm.
"""

from __future__ import annotations

import dataclasses
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
    folder = folder_of(weights, revision)
    if folder.is_file():
        files = [folder]
    elif Path(weights).is_dir():
        files = sorted(
            [*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]
        )
    else:
        kinds = (".safetensors", ".bin", ".json")
        files = sorted(path for path in folder.iterdir() if path.suffix in kinds)
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


def folder_of(weights: str, revision: str | None) -> Path:
    """The file or folder of weights, or the folder in the cache of a name on the hub."""
    if Path(weights).exists():
        return Path(weights)
    import transformers.utils as hub

    # All files of a snapshot of the hub are in one folder.
    return Path(hub.cached_file(weights, "config.json", revision=revision or "main")).parent


def published(model: object, part: str = "") -> dict[str, object]:
    """Part -> config of every encoder, front end or language model with published weights. Each
    has `weights`, `revision` and `tuning`.
    """
    found = {}
    for field in dataclasses.fields(model):
        value, name = getattr(model, field.name), f"{part}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            if isinstance(getattr(value, "weights", None), str):
                found[name] = value
            found |= published(value, name)
    return found


def renamed(model: object, part: str, weights: str, revision: str | None) -> object:
    """A model's config with another name for the weights of a part."""
    first, _, rest = part.partition(".")
    inner = getattr(model, first)
    if rest:
        inner = renamed(inner, rest, weights, revision)
    else:
        inner = dataclasses.replace(inner, weights=weights, revision=revision)
    return dataclasses.replace(model, **{first: inner})


def digests(weights: str, revision: str | None) -> dict[str, str]:
    """File name -> SHA-256 of published weights."""
    folder = folder_of(weights, revision)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")] if folder.is_dir() else [folder]
    digests = {}
    for file in sorted(files):
        with open(file, "rb") as stream:
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests
