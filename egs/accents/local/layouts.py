"""Where the three corpora lie and how they are read, each in the layouts that it comes in.

    LibriSpeech/<part>/<reader>/<chapter>/{<utterance>.flac,<reader>-<chapter>.trans.txt}
    speechocean762/{WAVE/SPEAKER<speaker>/<utterance>.WAV,{train,test}/{text,wav.scp,utt2spk}}
    cv_corpus_v1/{cv-valid-dev.csv,cv-valid-dev/sample-<number>.mp3}       Common Voice of 2017
    cv-corpus-<release>/en/{train.tsv,dev.tsv,test.tsv,clips/<clip>.mp3}   later releases
    <corpus>.../<set>/{wav.scp,text,utt2spk[,utt2accent]}                  ready data directories

<corpus> is librispeech, speechocean762 or commonvoice; several folders may begin with it.

Ids are the corpora's own, with the speaker in front where they lack it: `<speaker>-<utterance>` for
speechocean762, `cv1dev-<number>` for the first release of Common Voice.
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

# what later releases of Common Voice call an accent -> what the first one calls it
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
NATIVES = "mandarin"  # the accent of everybody in speechocean762


class Layout(ABC):
    """One corpus, found in `folder`."""

    divides = False  # into sets of its own, so no list is needed

    def __init__(self, name: str, folder: Path) -> None:
        self.corpus, self.folder = name, folder

    @property
    @abstractmethod
    def inputs(self) -> list[Path]:
        """Files and folders that sets depend on."""

    @abstractmethod
    def read(self, name: str, wanted: Sequence[str]) -> corpus.CorpusSet:
        """The utterances of set `name`, measured: those of the ids `wanted` that are there, in a
        corpus that divides itself all.
        """


def find(folder: Path, name: str) -> Layout:
    """The corpus `name` below `folder`; raises UserError where none of its layouts is there."""
    ready = [
        place
        for place in sorted(folder.glob(f"{name}*"))
        if prepared.all_of(place) and not (place / "WAVE").is_dir()
    ]
    if ready:
        return Ready(name, folder, ready)
    places = {
        "librispeech": [(LibriSpeech, folder / "LibriSpeech")],
        "speechocean762": [(SpeechOcean, folder / "speechocean762")],
        "commonvoice": [
            (FirstCommonVoice, folder / "cv_corpus_v1"),
            *((CommonVoice, place / "en") for place in sorted(folder.glob("cv-corpus-*"))[-1:]),
        ],
    }[name]
    for kind, place in places:
        if place.is_dir():
            return kind(name, place)
    names = " or ".join(place.name for _, place in places)
    raise UserError(
        f"'{folder}' has no {name}: expected {names}, or ready data directories {name}*/<set>; it "
        f"contains {tree.listing(folder)}; --parts names the corpora to take"
    )


class Ready(Layout):
    """Data directories, whose ids are those of the lists."""

    def __init__(self, name: str, folder: Path, places: Sequence[Path]) -> None:
        super().__init__(name, folder)
        self.sets = [path for place in places for path in prepared.all_of(place).values()]

    @property
    def inputs(self) -> list[Path]:
        return self.sets

    def read(self, name: str, wanted: Sequence[str]) -> corpus.CorpusSet:
        ids, utterances, left_out = set(wanted), [], []
        for path in self.sets:
            found = prepared.read(path)
            left_out += found.left_out
            for row in found.utterances:
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
            places = [part / chapter.replace("-", "/") for part in self.parts]
            place = next((place for place in places if place.is_dir()), None)
            if place is None:
                continue
            audio = tree.audio_by_id(place)
            texts = tree.Table([tree.need(place / f"{chapter}.trans.txt")], r"\d+-\d+-\d+")
            own = [key for key in wanted if key.rpartition("-")[0] == chapter]
            rows += [
                spoken(key, audio[key], texts[key], chapter.split("-")[0])
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
            named = f"{speakers.get(key)}-{key}"
            path = self.folder / tree.listed(wavs.get(key, ""))
            if named in ids and path.is_file():
                rows.append(spoken(named, str(path), texts[key], speakers[key], NATIVES))
        return corpus.measured(rows)


class FirstCommonVoice(Layout):
    """The release of 2017: names of files and no speakers; the lists are of its cv-valid-dev."""

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
                    rows.append(spoken(key, str(path), plain(row["text"]), key, row["accent"]))
        return corpus.measured(rows)


class CommonVoice(Layout):
    """A later release: its own sets, which share no speaker, without clips of no one accent."""

    divides = True

    @property
    def inputs(self) -> list[Path]:
        return [*(self.folder / f"{name}.tsv" for name in ("train", "dev", "test"))]

    def read(self, name: str, wanted: Sequence[str]) -> corpus.CorpusSet:
        rows, left_out, unknown = [], [], 0
        for row in tree.rows(tree.need(self.folder / f"{name}.tsv")):
            accent = row.get("accents", row.get("accent", ""))
            speaker, text = row["client_id"][:16], plain(row["sentence"])
            key = f"{speaker}-{Path(row['path']).stem}"
            path = self.folder / "clips" / row["path"]
            if not accented(accent):
                unknown += 1
                continue
            if re.search("[^A-Z' ]", text) or not text:
                left_out.append(f"{key}: has letters or digits that are not English, '{text}'")
            elif path.is_file():
                rows.append(spoken(key, str(path), text, speaker, accent))
            else:
                left_out.append(f"{key}: there is no {path}")
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


def spoken(key: str, path: str, text: str, speaker: str, accent: str = "") -> Utterance:
    labels = accented(accent)
    return Utterance(id=key, audio=path, duration=0, text=text, speaker=speaker, labels=labels)


def accented(accent: str) -> dict[str, str]:
    """The label of a declared accent; none where nothing, or more than one thing, is declared."""
    accent = ACCENTS.get(accent, accent)
    return {"accent": accent} if accent in {*ACCENTS.values(), NATIVES} else {}


def plain(text: str) -> str:
    """A sentence as LibriSpeech writes it: upper case without punctuation."""
    return normalizer("en")(text).upper()
