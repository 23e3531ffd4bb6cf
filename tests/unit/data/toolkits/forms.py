"""One small corpus in the formats of other toolkits, written without them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from asrtool.bin import data, make_shards
from asrtool.data.kaldi import datadir
from asrtool.types import Utterance

RATE = 8000


@dataclass
class Spoken:
    """What an utterance must be after its import."""

    text: str
    samples: np.ndarray  # int16
    speaker: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


def corpus(count: int = 12) -> dict[str, Spoken]:
    rng = np.random.default_rng(0)
    return {
        f"u{n:02}.a": Spoken(
            text=f"HELLO {n} ü",
            samples=rng.integers(-9000, 9000, int(rng.integers(2000, 5000))).astype(np.int16),
            speaker=f"s{n % 3}",
            labels={"lang": "en" if n % 2 else "de"},
        )
        for n in range(count)
    }


def encoded(samples: np.ndarray, kind: str = "wav") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format=kind.upper(), subtype="PCM_16")
    return stream.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_lines(path: Path, rows: Iterable[dict | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    escaped = "\\ud" in repr(rows)  # half a pair of surrogates
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=escaped) for row in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def halves(spoken: dict[str, Spoken]) -> list[list[tuple[str, Spoken]]]:
    rows = list(spoken.items())
    return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


def write_wavs(root: Path, spoken: dict[str, Spoken]) -> dict[str, Path]:
    (root / "wav").mkdir(parents=True, exist_ok=True)
    for key, one in spoken.items():
        (root / "wav" / f"{key}.wav").write_bytes(encoded(one.samples))
    return {key: root / "wav" / f"{key}.wav" for key in spoken}


def joined(root: Path, spoken: dict[str, Spoken]) -> tuple[Path, dict[str, tuple[float, float]]]:
    """One recording of all, and start and end of each in seconds."""
    ends = np.cumsum([len(one.samples) for one in spoken.values()])
    root.mkdir(parents=True, exist_ok=True)
    (root / "long.wav").write_bytes(encoded(np.concatenate([s.samples for s in spoken.values()])))
    places = {
        key: ((end - len(one.samples)) / RATE, end / RATE)
        for (key, one), end in zip(spoken.items(), ends.tolist(), strict=True)
    }
    return root / "long.wav", places


# -- the formats: each returns the arguments of `asrtool data import` -------


def wenet_raw(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    wavs = write_wavs(root, spoken)
    rows = [
        {"key": key, "wav": str(wavs[key]), "txt": one.text, "speaker": one.speaker, **one.labels}
        for key, one in spoken.items()
    ]
    return ["--from", "wenet", str(write_lines(root / "data.list", rows))]


def wenet_segments(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    path, places = joined(root, spoken)
    rows = [
        {"key": key, "wav": path.name, "txt": one.text, "start": places[key][0]}
        | {"end": places[key][1], "speaker": one.speaker, **one.labels}
        for key, one in spoken.items()
    ]
    return ["--from", "wenet", str(write_lines(root / "data.list", rows))]


def wenet_shards(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    names = []
    for number, rows in enumerate(halves(spoken)):
        members = [
            (f"{key}.{kind}", content)
            for key, one in rows
            for kind, content in (("txt", one.text.encode()), ("wav", encoded(one.samples)))
        ]
        names.append(str(write_tar(root / f"shards_{number:09}.tar", members)))
    return ["--from", "wenet", str(write_lines(root / "shards.list", names))]


def webdataset(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    for number, rows in enumerate(halves(spoken)):
        members = []
        for place, (key, one) in enumerate(rows):
            facts = {"id": key, "text": one.text, "speaker": one.speaker, **one.labels}
            members.append((f"./{place:06}.flac", encoded(one.samples, "flac")))
            members.append((f"./{place:06}.json", json.dumps(facts).encode()))
        write_tar(root / f"{number:05}.tar", members)
    return ["--from", "webdataset", str(root / "{00000..00001}.tar")]


def own_shards(kind: str, root: Path, spoken: dict[str, Spoken]) -> list[str]:
    """The shards that asrtool writes."""
    wavs = write_wavs(root, spoken)
    rows = [
        Utterance(
            id=key,
            audio=str(wavs[key]),
            duration=len(one.samples) / RATE,
            text=one.text,
            speaker=one.speaker,
            labels=one.labels,
        )
        for key, one in spoken.items()
    ]
    datadir.write(root / "set", rows)
    options = ["--data", root / "set", "--out", root / "packed", "--size-mb", "0.05"]
    make_shards.run(make_shards.parse(list(map(str, options))))
    return ["--from", kind, str(root / "packed")]


def nemo_line(key: str, one: Spoken, path: str) -> dict:
    duration = round(len(one.samples) / RATE, 2)  # as manifests often round it
    known = {"audio_filepath": path, "duration": duration, "text": one.text}
    return known | {"speaker": one.speaker, **one.labels}


def nemo_files(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    write_wavs(root, spoken)
    rows = [nemo_line(key, one, f"wav/{key}.wav") for key, one in spoken.items()]
    return ["--from", "nemo", str(write_lines(root / "manifest.json", rows))]


def nemo_offsets(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    _, places = joined(root, spoken)
    rows = []
    for key, one in spoken.items():
        start, end = places[key]
        row = nemo_line(key, one, "long.wav") | {"offset": start, "duration": end - start}
        rows.append({"utt": key, **row})
    path = write_lines(root / "manifest.json", rows)
    return ["--from", "nemo", "--fields", "id=utt", str(path)]


def nemo_tars(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    """Archives, manifests of each of them, and the names that NeMo gives."""
    for number, rows in enumerate(halves(spoken)):
        members = [(f"{key}.wav", encoded(one.samples)) for key, one in rows]
        write_tar(root / f"audio_{number}.tar", members)
        lines = [nemo_line(key, one, f"{key}.wav") | {"shard_id": number} for key, one in rows]
        write_lines(root / "sharded_manifests" / f"manifest_{number}.json", lines)
    return ["--from", "nemo", str(root / "sharded_manifests" / "manifest__OP_0..1_CL_.json")]


def nemo_sub(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    """An archive with a recording of which all lines are parts."""
    path, places = joined(root, spoken)
    write_tar(root / "audio_0.tar", [("_long.wav", path.read_bytes())])
    rows = []
    for number, (key, one) in enumerate(spoken.items(), 1):
        start, end = places[key]
        row = nemo_line(key, one, f"_long-sub{number}.wav")
        rows.append(row | {"offset": start, "duration": end - start, "shard_id": 0, "utt": key})
    path = write_lines(root / "tarred_audio_manifest.json", rows)
    return ["--from", "nemo", "--fields", "id=utt", "--tars", str(root / "audio_0.tar"), str(path)]


def lhotse_recording(key: str, samples: np.ndarray, source: dict) -> dict:
    return {
        "id": key,
        "sources": [{"channels": [0], **source}],
        "sampling_rate": RATE,
        "num_samples": len(samples),
        "duration": len(samples) / RATE,
        "channel_ids": [0],
    }


def lhotse_supervision(key: str, one: Spoken, recording: str, start: float = 0.0) -> dict:
    return {
        "id": key,
        "recording_id": recording,
        "start": start,
        "duration": len(one.samples) / RATE,
        "channel": 0,
        "text": one.text,
        "speaker": one.speaker,
        "custom": one.labels,
    }


def lhotse_cut(key: str, one: Spoken, source: dict) -> dict:
    """A cut of the whole recording."""
    return {
        "id": f"{key}-0",
        "start": 0,
        "duration": len(one.samples) / RATE,
        "channel": 0,
        "supervisions": [lhotse_supervision(key, one, key)],
        "recording": lhotse_recording(key, one.samples, source),
        "type": "MonoCut",
    }


def lhotse_cuts(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    wavs = write_wavs(root, spoken)
    rows = [
        lhotse_cut(key, one, {"type": "file", "source": str(wavs[key])})
        for key, one in spoken.items()
    ]
    return ["--from", "lhotse", str(write_lines(root / "cuts.jsonl.gz", rows))]


def lhotse_recordings(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    """One recording, a supervision for each utterance."""
    path, places = joined(root, spoken)
    samples = np.concatenate([one.samples for one in spoken.values()])
    recording = lhotse_recording("long", samples, {"type": "file", "source": str(path)})
    write_lines(root / "x_recordings_train.jsonl.gz", [recording])
    rows = [lhotse_supervision(key, one, "long", places[key][0]) for key, one in spoken.items()]
    write_lines(root / "x_supervisions_train.jsonl.gz", rows)
    return ["--from", "lhotse", str(root)]


def lhotse_shar(root: Path, spoken: dict[str, Spoken]) -> list[str]:
    for number, rows in enumerate(halves(spoken)):
        cuts = [lhotse_cut(key, one, {"type": "shar", "source": ""}) for key, one in rows]
        members = [
            (f"{cut['id']}.{kind}", content)
            for cut, (_, one) in zip(cuts, rows, strict=True)
            for kind, content in (
                ("flac", encoded(one.samples, "flac")),
                ("json", json.dumps(cut["recording"]).encode()),
            )
        ]
        write_lines(root / f"cuts.{number:06}.jsonl.gz", cuts)
        write_tar(root / f"recording.{number:06}.tar", members)
    return ["--from", "lhotse", str(root)]


FORMS: dict[str, Callable[[Path, dict[str, Spoken]], list[str]]] = {
    "wenet raw list": wenet_raw,
    "wenet raw list of segments": wenet_segments,
    "wenet shards": wenet_shards,
    "webdataset": webdataset,
    "own shards as webdataset": partial(own_shards, "webdataset"),
    "own shards as wenet": partial(own_shards, "wenet"),
    "nemo": nemo_files,
    "nemo with offsets": nemo_offsets,
    "nemo with archives": nemo_tars,
    "nemo with parts of a member": nemo_sub,
    "lhotse cuts": lhotse_cuts,
    "lhotse recordings": lhotse_recordings,
    "lhotse shar": lhotse_shar,
}
WITHOUT_SPEAKERS = {"wenet shards"}  # nor labels
IN_SHARDS = {
    "wenet shards",
    "webdataset",
    "own shards as webdataset",
    "own shards as wenet",
    "nemo with archives",
    "lhotse shar",
}


def take(arguments: list[str], target: Path, *options: str) -> Path:
    """Run `asrtool data import`; returns the data directory."""
    args = data.parse(["import", *options, *arguments, str(target)])
    args.run(args)
    return target
