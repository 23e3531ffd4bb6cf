"""Reads the three corpora from the layouts in which they are distributed.

    LibriSpeech/<part>/<reader>/<chapter>/{<utterance>.flac,<reader>-<chapter>.trans.txt}
    speechocean762/{WAVE/SPEAKER<speaker>/<utterance>.WAV,{train,test}/{text,wav.scp,utt2spk}}
    cv_corpus_v1/{cv-valid-dev.csv,cv-valid-dev/sample-<number>.mp3}       Common Voice of 2017
    cv-corpus-<release>/en/{train.tsv,dev.tsv,test.tsv,clips/<clip>.mp3}   later releases
    <corpus>.../<set>/{wav.scp,text,utt2spk[,utt2accent]}                  ready data directories

<corpus> is librispeech, speechocean762 or commonvoice; several folder names may begin with it.

Utterance ids are those of the corpora, with the speaker in front if they lack it:
`<speaker>-<utterance>` for speechocean762, `cv1dev-<number>` for the first release of Common Voice.
"""

from __future__ import annotations

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asrtool.data import corpus, prepared, tree
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.score.normalize import normalizer
from asrtool.types import Utterance

# accent names of later releases of Common Voice -> those of the first release
ACCENTS = {
    "United States English": "us",
    "England English": "england",
    "Australian English": "australia",
    "India and South Asia (India, Pakistan, Sri Lanka)": "indian",
    "Canadian English": "canada",
    "Scottish English": "scotland",
    "New Zealand English": "newzealand",
    "Southern African (South Africa, Zimbabwe, Namibia)": "african",
    "Irish English": "ireland",
    "Filipino": "philippines",
    "Malaysian English": "malaysia",
    "Singaporean English": "singapore",
    "Hong Kong English": "hongkong",
    "Welsh English": "wales",
    "South Atlantic (Falkland Islands, Saint Helena)": "southatlandtic",
    "West Indies and Bermuda (Bahamas, Bermuda, Jamaica, Trinidad)": "bermuda",
}
NATIVES = "mandarin"  # the accent of all speakers of speechocean762


class Layout(ABC):
    """One corpus, read from `folder`."""

    has_own_sets = False  # True: the sets are those of the corpus, and need no lists

    def __init__(self, name: str, folder: Path) -> None:
        self.corpus, self.folder = name, folder

    @property
    @abstractmethod
    def inputs(self) -> list[Path]:
        """Files and folders that the sets depend on."""

    @abstractmethod
    def read(self, name: str, wanted: Sequence[str]) -> corpus.CorpusSet:
        """The utterances of set `name`, with measured durations.

        wanted: ids to read; those that the corpus lacks are skipped. A layout with `has_own_sets`
        ignores them and reads the whole set.
        """


def find(folder: Path, name: str) -> Layout:
    """The corpus `name` below `folder`; raises UserError if none of its layouts is there."""
    # speechocean762 as published has data directories, too; its folder WAVE tells it apart
    ready = [
        path
        for path in sorted(folder.glob(f"{name}*"))
        if prepared.all_of(path) and not (path / "WAVE").is_dir()
    ]
    if ready:
        return Ready(name, folder, ready)
    candidates = {
        "librispeech": [(LibriSpeech, folder / "LibriSpeech")],
        "speechocean762": [(SpeechOcean, folder / "speechocean762")],
        "commonvoice": [
            (FirstCommonVoice, folder / "cv_corpus_v1"),
            *((CommonVoice, path / "en") for path in sorted(folder.glob("cv-corpus-*"))[-1:]),
        ],
    }[name]
    for layout, path in candidates:
        if path.is_dir():
            return layout(name, path)
    names = " or ".join(path.name for _, path in candidates)
    raise UserError(
        f"'{folder}' has no {name}: expected {names}, or data directories {name}*/<set>; it "
        f"contains {tree.listing(folder)}; --parts selects the corpora to use"
    )


class Ready(Layout):
    """Existing data directories; their ids are those of the lists."""

    def __init__(self, name: str, folder: Path, folders: Sequence[Path]) -> None:
        super().__init__(name, folder)
        self.sets = [path for ready in folders for path in prepared.all_of(ready).values()]

    @property
    def inputs(self) -> list[Path]:
        return self.sets

    def read(self, name: str, wanted: Sequence[str]) -> corpus.CorpusSet:
        ids, utterances, left_out = set(wanted), [], []
        for path in self.sets:
            content = prepared.read(path)
            left_out += content.left_out
            for row in content.utterances:
                if row.id in ids:
                    accent = row.labels.get("accent", "")
                    labels = {key: value for key, value in row.labels.items() if key != "accent"}
                    utterances.append(replace(row, labels=labels | accented(accent)))
        return corpus.CorpusSet(utterances, left_out)


class LibriSpeech(Layout):
    @property
    def parts(self) -> list[Path]:
        return sorted(
            path for path in self.folder.iterdir() if re.match("train|dev|test", path.name)
        )

    @property
    def inputs(self) -> list[Path]:
        return self.parts

    def read(self, name: str, wanted: Sequence[str]) -> corpus.CorpusSet:
        rows: list[Utterance] = []
        for chapter in sorted({key.rpartition("-")[0] for key in wanted}):
            paths = [part / chapter.replace("-", "/") for part in self.parts]
            folder = next((path for path in paths if path.is_dir()), None)
            if folder is None:
                continue
            audio = tree.audio_by_id(folder)
            texts = tree.Table([tree.need(folder / f"{chapter}.trans.txt")], r"\d+-\d+-\d+")
            own = [key for key in wanted if key.rpartition("-")[0] == chapter]
            rows += [
                utterance(key, audio[key], texts[key], chapter.split("-")[0])
                for key in own
                if key in audio and key in texts
            ]
        return corpus.measured(rows)


class SpeechOcean(Layout):
    @property
    def inputs(self) -> list[Path]:
        return [self.folder / name for name in ("train", "test", "WAVE")]

    def read(self, name: str, wanted: Sequence[str]) -> corpus.CorpusSet:
        texts, wavs, speakers = (
            tree.Table([tree.need(self.folder / part / name) for part in ("train", "test")])
            for name in ("text", "wav.scp", "utt2spk")
        )
        ids, rows = set(wanted), []
        for key in sorted(texts):
            full_id = f"{speakers.get(key)}-{key}"
            path = self.folder / tree.listed(wavs.get(key, ""))
            if full_id in ids and path.is_file():
                rows.append(utterance(full_id, str(path), texts[key], speakers[key], NATIVES))
        return corpus.measured(rows)


class FirstCommonVoice(Layout):
    """The release of 2017, without speaker ids; the lists select from its cv-valid-dev."""

    @property
    def inputs(self) -> list[Path]:
        return [self.folder / "cv-valid-dev.csv", self.folder / "cv-valid-dev"]

    def read(self, name: str, wanted: Sequence[str]) -> corpus.CorpusSet:
        ids, rows = set(wanted), []
        with open(tree.need(self.inputs[0]), encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                key = f"cv1dev-{Path(row['filename']).stem.removeprefix('sample-')}"
                path = self.folder / row["filename"]
                if key in ids and path.is_file():
                    text = upper_case(row["text"])
                    rows.append(utterance(key, str(path), text, key, row["accent"]))
        return corpus.measured(rows)


class CommonVoice(Layout):
    """A later release: its own sets, which share no speaker; only clips with exactly one accent."""

    has_own_sets = True

    @property
    def inputs(self) -> list[Path]:
        return [*(self.folder / f"{name}.tsv" for name in ("train", "dev", "test"))]

    def read(self, name: str, wanted: Sequence[str]) -> corpus.CorpusSet:
        rows, left_out, unknown = [], [], 0
        for row in tree.rows(tree.need(self.folder / f"{name}.tsv")):
            accent = row.get("accents", row.get("accent", ""))
            speaker, text = row["client_id"][:16], upper_case(row["sentence"])
            key = f"{speaker}-{Path(row['path']).stem}"
            path = self.folder / "clips" / row["path"]
            if not accented(accent):
                unknown += 1
                continue
            if re.search("[^A-Z' ]", text) or not text:
                left_out.append(f"{key}: the text is not English letters only: '{text}'")
            elif path.is_file():
                rows.append(utterance(key, str(path), text, speaker, accent))
            else:
                left_out.append(f"{key}: {path} does not exist")
        if unknown:
            text = "%s: %d of %d clips declare no accent, several, or one that is not in ACCENTS"
            total = unknown + len(rows) + len(left_out)
            logger.info(text + ", and are left out", f"{name}.tsv", unknown, total)
        if tree.too_many(len(left_out), len(rows) + len(left_out)):
            raise UserError(
                f"'{self.folder}': {len(left_out)} of {len(rows) + len(left_out)} clips of "
                f"{name}.tsv cannot be used; first {left_out[0]}"
            )
        measured = corpus.measured(rows)
        return corpus.CorpusSet(measured.utterances, left_out + measured.left_out)


def utterance(key: str, path: str, text: str, speaker: str, accent: str = "") -> Utterance:
    labels = accented(accent)
    return Utterance(id=key, audio=path, duration=0, text=text, speaker=speaker, labels=labels)


def accented(accent: str) -> dict[str, str]:
    """The label of a declared accent; empty if none, several, or an unknown one are declared."""
    accent = ACCENTS.get(accent, accent)
    return {"accent": accent} if accent in {*ACCENTS.values(), NATIVES} else {}


def upper_case(text: str) -> str:
    """A sentence in LibriSpeech's style: upper case, no punctuation."""
    return normalizer("en")(text).upper()
