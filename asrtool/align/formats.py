"""File formats for times: ctm (NIST), TextGrid (Praat), srt and vtt (subtitles)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from asrtool.align.words import Timed, Word, text_of

LINE = 84  # characters of a subtitle: two lines of 42
SUBTITLE_SECONDS = 6.0
PAUSE = 0.8  # seconds without a word that end a subtitle


def ctm(recording: str, parts: Iterable[Timed | Word], start: float = 0.0) -> str:
    """Lines `<recording> 1 <start> <duration> <word> <confidence>`; `start`: of the utterance in
    its recording.

    White space in the name of the recording becomes `_`, as a line must have six fields.
    """
    recording = re.sub(r"\s+", "_", recording, flags=re.ASCII)
    rows = [
        (start + part.start, part.end - part.start, part.text.strip(), part.confidence)
        for part in parts
    ]
    lines = [
        f"{recording} 1 {at:.3f} {length:.3f} {text} {sure:.4f}\n"
        for at, length, text, sure in rows
        if text
    ]
    return "".join(lines)


def textgrid(tiers: Mapping[str, Sequence[Timed | Word]], duration: float) -> str:
    """Praat's long text format; each tier is filled with empty intervals from 0 to the end."""
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {duration:.3f}",
    ]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, parts) in enumerate(tiers.items(), 1):
        intervals = list(_filled(parts, duration))
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
        ]
        lines += [
            "        xmin = 0",
            f"        xmax = {duration:.3f}",
            f"        intervals: size = {len(intervals)}",
        ]
        for index, (start, end, text) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{index}]:", f"            xmin = {start:.3f}"]
            lines += [f"            xmax = {end:.3f}", f'            text = "{quoted}"']
    return "\n".join(lines) + "\n"


def _filled(parts: Sequence[Timed | Word], duration: float) -> Iterable[tuple[float, float, str]]:
    at = 0.0
    for part in parts:
        text, start, end = part.text.strip(), max(part.start, at), part.end
        if not text or end <= start:
            continue
        if start > at:
            yield at, start, ""
        yield start, end, text
        at = end
    if at < duration or not at:
        yield at, duration, ""


def srt(words: Sequence[Word]) -> str:
    """Subtitles of at most two lines, that end at pauses."""
    return "\n".join(
        f"{number}\n{_clock(cue[0].start)} --> {_clock(cue[-1].end)}\n{_two_lines(text_of(cue))}\n"
        for number, cue in enumerate(subtitles(words), 1)
    )


def vtt(words: Sequence[Word]) -> str:
    """The same in WebVTT, as browsers show it."""
    cues = [
        f"\n{_clock(cue[0].start, '.')} --> {_clock(cue[-1].end, '.')}\n"
        f"{_escaped(_two_lines(text_of(cue)))}\n"
        for cue in subtitles(words)
    ]
    return "WEBVTT\n" + "".join(cues)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def subtitles(words: Sequence[Word]) -> list[list[Word]]:
    """The words of each subtitle."""
    cues: list[list[Word]] = []
    for word in words:
        cue = cues[-1] if cues else []
        if (
            not cue
            or word.start - cue[-1].end > PAUSE
            or word.end - cue[0].start > SUBTITLE_SECONDS
            or len(text_of([*cue, word])) > LINE
        ):
            cues.append([])
        cues[-1].append(word)
    return cues


def _two_lines(text: str) -> str:
    """The text, broken at the space nearest to its middle if it is too long for one line."""
    if len(text) <= LINE // 2 or " " not in text:
        return text
    spaces = [index for index, character in enumerate(text) if character == " "]
    middle = min(spaces, key=lambda index: abs(index - len(text) / 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def _clock(seconds: float, point: str = ",") -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
