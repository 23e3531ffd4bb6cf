"""What is sent: results as the fields of JSON, and the formats of transcripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from asrtool.align import Word, text_of
from asrtool.align.formats import subtitles
from asrtool.errors import UserError
from asrtool.recognition import Classes, Recognition
from asrtool.streaming import Result

UNKNOWN = "und"  # ISO 639's code of a language that nobody determined
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("word", "segment")
TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


def dump(fields: Mapping) -> str:
    """JSON as it is sent."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def streamed(result: Result, words: bool) -> dict:
    """A partial or final result of a stream; times in seconds of the audio."""
    kind = "final" if result.final else "partial"
    fields = {"type": kind, "start": round(result.start, 3), "end": round(result.end, 3)}
    fields["text"] = result.hypothesis.text
    if result.final:
        if words:
            fields["words"] = None if result.words is None else [_word(w) for w in result.words]
        if result.classes:
            fields["classes"] = _rounded(result.classes)
    return fields


def _word(word: Word, name: str = "text") -> dict:
    times = {"start": round(word.start, 3), "end": round(word.end, 3)}
    return {name: word.text, **times, "confidence": round(word.confidence, 4)}


def _rounded(classes: Classes) -> dict:
    return {
        label: {value: round(share, 4) for value, share in row.items()}
        for label, row in classes.items()
    }


def transcript(result: Recognition, kind: str, granularities: Sequence[str]) -> tuple[str, str]:
    """A transcript in one of FORMATS, and its media type. Raises `UserError` where it needs times
    that the model cannot tell.
    """
    if kind == "json":
        return dump({"text": result.text}), "application/json"
    if kind == "verbose_json":
        return dump(_verbose(result, granularities)), "application/json"
    written = {"text": lambda: result.text + "\n", "srt": result.srt, "vtt": result.vtt}
    return written[kind](), TYPES[kind]


def _verbose(result: Recognition, granularities: Sequence[str]) -> dict:
    """OpenAI's fields, where the model knows them, then ours: confidences and labels."""
    fields = {"task": "transcribe", "language": UNKNOWN, "duration": round(result.seconds, 3)}
    fields["text"] = result.text
    if result.words is None:
        if "word" in granularities:
            raise UserError(
                "timestamp_granularities: word times come from a CTC head; this model has none"
            )
        whole = {"id": 0, "start": 0.0, "end": round(result.seconds, 3), "text": result.text}
        fields["segments"] = [whole] if result.text else []
    else:
        if "word" in granularities:
            fields["words"] = [_word(word, "word") for word in result.words]
        if "segment" in granularities:
            cues = enumerate(subtitles(result.words))
            fields["segments"] = [_segment(number, cue) for number, cue in cues]
    return fields | ({"classes": _rounded(result.classes)} if result.classes else {})


def _segment(number: int, words: Sequence[Word]) -> dict:
    """As subtitles are cut: at pauses."""
    parts = [part for word in words for part in word.parts]
    logs = [math.log(max(part.confidence, 1e-10)) for part in parts]
    span = {"start": round(words[0].start, 3), "end": round(words[-1].end, 3)}
    about = {"id": number, **span, "text": text_of(words)}
    return about | {
        "tokens": [part.token for part in parts],
        "avg_logprob": round(sum(logs) / len(logs), 4),
    }
