"""The layout of MagicData-RAMC: conversations of two speakers.

    MagicData-RAMC/DataPartition/{train,dev,test}.tsv
    MagicData-RAMC/MDT2021S003/{README,SPKINFO,UTTERANCEINFO}.txt
    MagicData-RAMC/MDT2021S003/WAV/CTS-CN-F2F-<date>-<number>.wav
    MagicData-RAMC/MDT2021S003/TXT/CTS-CN-F2F-<date>-<number>.txt

A file of DataPartition has a folder in line 1, then lines `<recording>.wav<TAB><samples>`. The
lines of TXT are `[start,end]<TAB>speaker<TAB>gender,accent<TAB>text`, with times in seconds. Sounds
that are not of the speakers have the speaker G00000000, `无,无`, and the text `[ENS]` or `[MUSIC]`.
`[*]` is unintelligible speech. `[LAUGHTER]` and `[SONANT]` come before the text that they precede,
`[+]` before a text that overlaps with the previous turn. Text has no spaces, and a punctuation mark
at the end. The tab-separated columns of SPKINFO are CHANNEL, SPEAKER_ID, GENDER, AGE, "REGION,CITY"
and DEVICE; those of UTTERANCEINFO are CHANNEL, UTTERANCE_ID, SPEAKER_ID1, SPEAKER_ID2, TOPIC,
VALID, TOTAL (both in seconds) and Environment. Both have a header line. Sorted by name, the
recordings of test come first, then those of train, then those of dev, as in the corpus. There is no
folder KeywordList.

The voices of `test` are in no other set. Yang et al. 2022, "Open source MagicData-RAMC: a rich
annotated Mandarin conversational (RAMC) speech dataset"; openslr.org/123.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from mini_corpus import dialogue
from mini_corpus.acoustics import LIGHT
from mini_corpus.dialogue import Conversation, Talk
from mini_corpus.layout import Layout, joined, write_lines
from mini_corpus.plan import Set, Size, plan
from mini_corpus.render import Job, Times
from mini_corpus.speakers import Speaker

NOBODY = "G00000000"
_TAGS = {
    "speech": "",
    dialogue.OVERLAP: "[+]",
    dialogue.LAUGHTER: "[LAUGHTER]",
    dialogue.SONANT: "[SONANT]",
    dialogue.UNINTELLIGIBLE: "[*]",
    dialogue.NOISE: "[ENS]",
    dialogue.MUSIC: "[MUSIC]",
}
_DAYS = {"test": 15, "train": 16, "dev": 17}
_QUESTION_WORDS = ("谁", "什么", "怎么")

# Region and city of the accents of `accents.READING`.
_HOMES = {
    "standard": "华北,北京",
    "north": "华北,石家庄",
    "northeast": "东北,沈阳",
    "east": "华东,南京",
    "south": "华南,广州",
    "southwest": "西南,成都",
    "northwest": "西北,西安",
}


@dataclass(frozen=True)
class MagicData(Layout):
    """Mandarin conversations."""

    folders = ("MagicData-RAMC",)
    sets = (
        Set("train", "train", LIGHT, first_speaker=2001),
        Set("dev", "dev", LIGHT, first_speaker=3001),
        Set("test", "test", LIGHT, first_speaker=1001, unseen=True),
    )

    def plan(self, size: Size, seed: int) -> list[Conversation]:
        return dialogue.converse(plan(size, self.sets, self.language, seed), seed)

    def jobs(self, units: Sequence[Conversation], root: Path, seed: int) -> list[Job]:
        return [
            Talk(talk, _folder(root) / "WAV" / f"{_recording(talk)}.wav", seed) for talk in units
        ]

    def write_tables(
        self, units: Sequence[Conversation], times: Sequence[Times], root: Path
    ) -> None:
        folder, partition = _folder(root), {part.name: ["MDT2021S003/WAV"] for part in self.sets}
        conversations, speakers = [], {}
        for talk, spoken in zip(units, times, strict=True):
            name = _recording(talk)
            lines = [
                _line(talk, turn, *time) for turn, time in zip(talk.turns, spoken, strict=True)
            ]
            write_lines(folder / "TXT" / f"{name}.txt", lines)
            samples = soundfile.info(folder / "WAV" / f"{name}.wav").frames
            partition[talk.split].append(f"{name}.wav\t{samples}")
            valid = sum(
                end - start
                for turn, (start, end) in zip(talk.turns, spoken, strict=True)
                if turn.text
            )
            people = "\t".join(_name(speaker) for speaker in talk.speakers)
            conversations.append(
                f"C0\t{name}\t{people}\t生活\t{valid:.3f}\t{samples / 16000:.3f}\t室内"
            )
            speakers |= {_name(speaker): speaker for speaker in talk.speakers}
        for split, lines in partition.items():
            write_lines(
                root / "MagicData-RAMC" / "DataPartition" / f"{split}.tsv",
                [lines[0], *sorted(lines[1:])],
            )
        header = "CHANNEL\tUTTERANCE_ID\tSPEAKER_ID1\tSPEAKER_ID2\tTOPIC\tVALID\tTOTAL\tEnvironment"
        write_lines(folder / "UTTERANCEINFO.txt", [header, *sorted(conversations)])
        people = [
            f"C0\t{name}\t{_gender(speaker)}\t{18 + speaker.number * 7 % 40}"
            f"\t{_HOMES[speaker.accent]}\tsynthesiser"
            for name, speaker in sorted(speakers.items())
        ]
        write_lines(
            folder / "SPKINFO.txt",
            ["CHANNEL\tSPEAKER_ID\tGENDER\tAGE\tREGION,CITY\tDEVICE", *people],
        )
        write_lines(
            folder / "README.txt",
            ["A synthesised miniature in the layout of MDT2021S003; see ../README.TXT."],
        )


def _folder(root: Path) -> Path:
    return root / "MagicData-RAMC" / "MDT2021S003"


def _recording(talk: Conversation) -> str:
    """A name; sorted, the sets have the order of the official names: test, train, dev."""
    return f"CTS-CN-F2F-2019-11-{_DAYS[talk.split]}-{talk.number:03d}"


def _name(speaker: Speaker) -> str:
    return f"G{speaker.number:08d}"


def _gender(speaker: Speaker) -> str:
    return {"M": "男", "F": "女"}[speaker.sex]


def _line(talk: Conversation, turn: dialogue.Turn, start: float, end: float) -> str:
    """One line of TXT."""
    name, description = NOBODY, "无,无"
    if turn.speaker is not None:
        speaker = talk.speakers[turn.speaker]
        name, description = _name(speaker), f"{_gender(speaker)},普通话"
    text = _TAGS[turn.kind]
    if turn.text:
        is_question = any(word in turn.text for word in _QUESTION_WORDS)
        text += joined(turn.text) + ("？" if is_question else "。")
    return f"[{start:.3f},{end:.3f}]\t{name}\t{description}\t{text}"
