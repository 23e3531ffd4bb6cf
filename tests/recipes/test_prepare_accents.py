"""Stage 0 of accents: three corpora in their layouts, and the committed lists."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.types import Utterance
from tests.recipes.preparation import ROOT, content, load, real
from tests.recipes.trees import silence

RECIPE = ROOT / "egs" / "accents"
CORPORA = ("librispeech", "speechocean762", "commonvoice")
# of the toy lists; the last utterance of each corpus is in no list
READERS = {"train": "11", "dev": "12", "test": "13", "test_other": "14"}
NATIVES = {"train": "0001", "dev": "0003", "test": "0005"}
CLIPS = {"train": (0, 1), "dev": (2,), "test": (3,)}
ACCENTS = ("us", "england", "", "indian", "other")


def record(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(silence(0.2))
    return path


def lines(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    for name, reader in READERS.items():
        lines(folder / f"librispeech/{name}.txt", [f"{reader}-7-{n:04d}" for n in range(2)])
    for name, speaker in NATIVES.items():
        ids = [f"{speaker}-{speaker}000{n}" for n in range(2)]
        lines(folder / f"speechocean762/{name}.txt", ids)
    for name, numbers in CLIPS.items():
        lines(folder / f"commonvoice/{name}.txt", [f"cv1dev-{n:06d}" for n in numbers])
    return folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """All corpora in official layouts: Common Voice in that of its first release."""
    folder = tmp_path / "corpora"
    parts = ("train-clean-100", "dev-clean", "dev-clean", "test-other")
    for part, reader in zip(parts, READERS.values(), strict=True):
        place = folder / "LibriSpeech" / part / reader / "7"
        ids = [f"{reader}-7-{n:04d}" for n in range(3)]
        for key in ids:
            record(place / f"{key}.flac")
        lines(place / f"{reader}-7.trans.txt", [f"{key} THE WORDS" for key in ids])
    ocean = folder / "speechocean762"
    for part, speakers in {"train": ("0001", "0003"), "test": ("0005",)}.items():
        pairs = [(speaker, f"{speaker}000{n}") for speaker in speakers for n in range(3)]
        for speaker, key in pairs:
            record(ocean / f"WAVE/SPEAKER{speaker}/{key}.WAV")
        lines(ocean / part / "text", [f"{key}\tWE CALL IT BEAR" for _, key in pairs])
        lines(ocean / part / "utt2spk", [f"{key}\t{speaker}" for speaker, key in pairs])
        lines(
            ocean / part / "wav.scp",
            [f"{key}\tWAVE/SPEAKER{speaker}/{key}.WAV" for speaker, key in pairs],
        )
    voices = folder / "cv_corpus_v1"
    rows = ["filename,text,up_votes,down_votes,age,gender,accent,duration"]
    for number, accent in enumerate(ACCENTS):
        name = f"cv-valid-dev/sample-{number:06d}.mp3"
        record(voices / name)
        rows.append(f'{name},"well, it\'s {"here" * (number + 1)}",1,0,,,{accent},')
    lines(voices / "cv-valid-dev.csv", rows)
    return folder


def prepare(source: Path, out: Path, lists: Path, *options: str) -> dict[str, list[Utterance]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPE / "local")
        arguments = ["--corpus", str(source), "--out", str(out), *options]
        patch.setattr(sys, "argv", ["prepare_data.py", *arguments])
        module = load("accents", "prepare_data")
        module.LISTS = lists
        module.main()
    return {path.name: datadir.read(path) for path in out.iterdir() if path.is_dir()}


def accents(rows: list[Utterance]) -> dict[str, str | None]:
    return {row.id: row.labels.get("accent") for row in rows}


def test_sets_hold_what_the_lists_name_and_accents_where_they_are_declared(
    official: Path, lists: Path, tmp_path: Path
) -> None:
    found = prepare(official, tmp_path / "out", lists)
    assert found.keys() == {
        "train", "dev", "test_librispeech", "test_librispeech_other", "test_speechocean762",
        "test_commonvoice",
    }  # fmt: skip
    assert (tmp_path / "out/test_sets").read_text().split() == [
        "test_librispeech", "test_librispeech_other", "test_speechocean762", "test_commonvoice"
    ]  # fmt: skip
    assert accents(found["train"]) == {
        "0001-00010000": "mandarin", "0001-00010001": "mandarin", "11-7-0000": None,
        "11-7-0001": None, "cv1dev-000000": "us", "cv1dev-000001": "england",
    }  # fmt: skip
    assert accents(found["dev"])["cv1dev-000002"] is None
    assert accents(found["test_commonvoice"]) == {"cv1dev-000003": "indian"}
    labels = {row.labels["corpus"] for row in found["train"]}
    assert labels == set(CORPORA)
    texts = {row.id: row.text for row in found["train"]}
    assert texts["cv1dev-000001"] == "WELL IT'S HEREHERE" and texts["11-7-0000"] == "THE WORDS"
    speakers = {row.id: row.speaker for row in found["train"]}
    assert speakers["0001-00010000"] == "0001" and speakers["11-7-0000"] == "11"
    assert not datadir.check(tmp_path / "out/train")


def test_ready_data_directories_give_the_same(official: Path, lists: Path, tmp_path: Path) -> None:
    expected = prepare(official, tmp_path / "one", lists)
    ready = tmp_path / "ready"
    for name in CORPORA:
        for split, rows in expected.items():
            own = [row for row in rows if row.labels["corpus"] == name]
            if own:
                (ready / f"{name}_mine" / split).mkdir(parents=True)
                datadir.write(ready / f"{name}_mine" / split, own)
    found = prepare(ready, tmp_path / "two", lists)
    assert {key: accents(rows) for key, rows in found.items()} == {
        key: accents(rows) for key, rows in expected.items()
    }


def test_a_later_common_voice_keeps_its_own_sets(lists: Path, tmp_path: Path) -> None:
    place = tmp_path / "corpora/cv-corpus-17.0-2024-03-15/en"
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale"
    said = {
        "train": [("a" * 64, "United States English"), ("b" * 64, "")],
        "dev": [("c" * 64, "Scottish English")],
        "test": [("d" * 64, "Irish English"), ("e" * 64, "Irish English|England English")],
    }
    for name, rows in said.items():
        table = [header]
        for number, (speaker, accent) in enumerate(rows):
            clip = f"common_voice_en_{name}{number}.mp3"
            record(place / "clips" / clip)
            table.append(f"{speaker}\t{clip}\tHow “are” you?\t2\t0\t\t\t{accent}\ten")
        lines(place / f"{name}.tsv", table)
    found = prepare(tmp_path / "corpora", tmp_path / "out", lists, "--parts", "commonvoice")
    assert {key: accents(rows) for key, rows in found.items()} == {
        "train": {"aaaaaaaaaaaaaaaa-common_voice_en_train0": "us"},
        "dev": {"cccccccccccccccc-common_voice_en_dev0": "scotland"},
        "test_commonvoice": {"dddddddddddddddd-common_voice_en_test0": "ireland"},
    }
    assert found["train"][0].text == "HOW ARE YOU"


def test_listed_utterances_that_are_missing_are_named(
    official: Path, lists: Path, tmp_path: Path
) -> None:
    (official / "LibriSpeech/train-clean-100/11/7/11-7-0001.flac").unlink()
    found = prepare(official, tmp_path / "out", lists)
    assert "11-7-0001" not in accents(found["train"])
    said = (tmp_path / "out/train/skipped.txt").read_text()
    assert said.startswith("11-7-0001: is listed, but '")
    lines(lists / "librispeech/train.txt", [f"99-1-{n:04d}" for n in range(9)])
    with pytest.raises(UserError, match=r"lacks 9 of 9 utterances .*; first 99-1-0000"):
        prepare(official, tmp_path / "again", lists)


def test_a_corpus_that_is_not_there_is_named(official: Path, lists: Path, tmp_path: Path) -> None:
    (official / "speechocean762").rename(official / "elsewhere")
    with pytest.raises(UserError, match="has no speechocean762: expected speechocean762"):
        prepare(official, tmp_path / "out", lists)
    found = prepare(official, tmp_path / "out", lists, "--parts", "librispeech commonvoice")
    assert "test_speechocean762" not in found
    with pytest.raises(UserError, match="--parts 'libri': expected some of librispeech"):
        prepare(official, tmp_path / "out", lists, "--parts", "libri")


def test_lists_share_neither_utterances_nor_speakers() -> None:
    for name in CORPORA:
        sets = {path.stem: path.read_text().split() for path in (RECIPE / "lists" / name).iterdir()}
        assert {"train", "dev", "test"} <= sets.keys()
        assert all(ids == sorted(set(ids)) for ids in sets.values())
        # Common Voice's first release names no speakers
        keys = [
            (split, key if name == "commonvoice" else key.split("-")[0])
            for split, ids in sets.items()
            for key in ids
        ]
        assert max(Counter(key for _, key in set(keys)).values()) == 1


@pytest.mark.parametrize("name", ["librispeech_mini", "speechocean762_mini", "commonvoice_accents"])
def test_the_lists_are_of_the_real_corpora(name: str, tmp_path: Path) -> None:
    source = real(name).parent
    (part,) = [one for one in CORPORA if name.startswith(one)]
    found = prepare(source, tmp_path / "out", RECIPE / "lists", "--parts", part)
    for split, rows in found.items():
        own = split if split in ("train", "dev") else f"test{'_other' * split.endswith('_other')}"
        listed = (RECIPE / "lists" / part / f"{own}.txt").read_text().split()
        assert [row.id for row in rows] == listed
        assert not (tmp_path / "out" / split / "skipped.txt").exists()
    if part == "commonvoice":
        assert len(set(accents(found["train"]).values())) == 15


def test_the_same_corpus_gives_the_same_bytes(official: Path, lists: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare(official, tmp_path / name, lists)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_set_is_scored_by_accent_if_all_of_it_has_one(tmp_path: Path) -> None:
    recipe = tmp_path / "egs/accents"
    recipe.mkdir(parents=True)
    shutil.copy(RECIPE / "run.sh", recipe)
    (recipe / "conf").symlink_to(RECIPE / "conf")
    for name in ("utils", "asrtool"):
        (tmp_path / name).symlink_to(ROOT / name)
    texts = ["a-1 THE WORDS", "b-1 OTHER WORDS"]
    for name, labels in (("mixed", ["a-1 us"]), ("all", ["a-1 us", "b-1 england"])):
        lines(recipe / f"data/{name}/text", texts)
        lines(recipe / f"data/{name}/utt2spk", ["a-1 a", "b-1 b"])
        lines(recipe / f"data/{name}/utt2accent", labels)
        lines(recipe / f"exp/toy/decode_greedy/{name}/text", texts)
    (recipe / "exp/toy/config.yaml").write_text("phases:\n  train:\n    seed: 0\n")
    command = ["./run.sh", "--stage", "5", "--tag", "toy", "--test-sets", "mixed all"]
    done = subprocess.run(command, cwd=recipe, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = [
        json.loads((recipe / f"exp/toy/decode_greedy/{name}/score.json").read_text())
        for name in ("mixed", "all")
    ]
    assert ["accent" in score["groups"] for score in scores] == [False, True]
