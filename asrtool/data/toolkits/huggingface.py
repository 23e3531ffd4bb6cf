"""Hugging Face `datasets`: a data set that `save_to_disk` wrote, or parquet files.

The audio lies inside these files, where wav.scp cannot name it, so it is written to a folder; only
paths of files are kept as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from asrtool.data.toolkits import entries
from asrtool.data.toolkits.entries import Entry, Item, LeftOut, Notes, Source
from asrtool.errors import UserError

# the usual names of each column, in order of preference
USUAL = {
    "audio": ("audio",),
    "text": ("text", "sentence", "transcription", "transcript"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "id": ("id", "utt_id"),
}


def open_datasets(source: str, fields: Mapping[str, str]) -> Source:
    """One split. fields: audio, text, speaker, id -> column, where it has not a usual name."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            "this needs Hugging Face datasets: pip install 'asrtool[datasets]', or pip install "
            "datasets"
        ) from None
    path = Path(source)
    if path.is_dir() and (path / "state.json").exists():
        folder = datasets.load_from_disk(source)
        files = sorted(path.glob("*.arrow"))
        return Source(
            lambda notes: _rows(source, folder, fields, notes), [path / "state.json"], files
        )
    if path.is_dir() and (path / "dataset_dict.json").exists():
        splits = ", ".join(sorted(name.parent.name for name in path.glob("*/state.json")))
        raise UserError(
            f"{source}: has several splits ({splits}); name one, such as {source}/train"
        )
    files = sorted(path.glob("*.parquet")) if path.is_dir() else entries.expanded(source)
    if not files or any(file.suffix != ".parquet" for file in files):
        raise UserError(
            f"{source}: expected a data set that save_to_disk wrote, or parquet files, got "
            f"{entries.listing(source) if path.is_dir() else files[0].name}"
        )
    # streamed: loading would copy all audio into a cache first
    stream = datasets.load_dataset(
        "parquet", data_files=list(map(str, files)), split="train", streaming=True
    )
    return Source(lambda notes: _rows(source, stream, fields, notes), [], files)


def _rows(source: str, data: object, fields: Mapping[str, str], notes: Notes) -> Iterator[Item]:
    from datasets import Audio

    columns = data.features
    names = chosen(source, list(columns), fields)
    if isinstance(columns[names["audio"]], Audio):  # its bytes, not the decoded samples
        data = data.cast_column(names["audio"], Audio(decode=False))
    classes = {name: kind for name, kind in columns.items() if hasattr(kind, "int2str")}
    for number, row in enumerate(data):
        for name, kind in classes.items():  # -1: not known
            row[name] = None if row[name] in (None, -1) else kind.int2str(row[name])
        yield entry(f"{source}: row {number}", number, row, names, notes)


def chosen(source: str, columns: list[str], fields: Mapping[str, str]) -> dict[str, str]:
    """What -> the column with it; `speaker` and `id` may be missing."""
    names = {}
    for what, usual in USUAL.items():
        named = fields.get(what)
        if named is not None and named not in columns:
            raise UserError(f"{source}: no column '{named}'; it has {', '.join(columns)}")
        column = named or next((name for name in usual if name in columns), None)
        if column is not None:
            names[what] = column
        elif what in ("audio", "text"):
            raise UserError(
                f"{source}: no column '{what}'; name it by --fields '{what}=COLUMN': "
                f"{', '.join(columns)}"
            )
    return names


def entry(
    where: str, number: int, row: Mapping[str, object], names: Mapping[str, str], notes: Notes
) -> Item:
    """A row as an entry; names: audio, text, speaker, id -> column."""
    sound = row[names["audio"]]
    path = sound.get("path") if isinstance(sound, dict) else sound
    data = sound.get("bytes") if isinstance(sound, dict) else None
    stem = os.path.splitext(os.path.basename(path or ""))[0]
    key = row[names["id"]] if "id" in names else stem or f"row-{number:08}"
    key = entries.word(key)
    if data is None and not isinstance(path, str):
        return LeftOut(where, key, "it has no audio, neither bytes nor a path")
    if row[names["text"]] is None:
        return LeftOut(where, key, "it has no transcript")
    if data is None:
        try:
            path = entries.located(path, [Path()])
        except UserError as error:
            return LeftOut(where, key, str(error))
    used = names.values()
    return Entry(
        where=where,
        id=key,
        audio=path if data is None else data,
        text=entries.transcript(row[names["text"]], where, notes),
        speaker=entries.speaker(row[names["speaker"]]) if "speaker" in names else None,
        labels=entries.labels({k: value for k, value in row.items() if k not in used}, notes),
    )
