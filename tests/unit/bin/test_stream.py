"""`asrtool stream`: what is heard piece by piece is what is heard as a whole."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asrtool import experiment
from asrtool.bin import decode, score, stream
from asrtool.config import ConfigError
from asrtool.data import audio
from asrtool.encoders.qifusion import AccentHead
from asrtool.errors import UserError
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.searchers import CtcGreedyConfig, RescoringConfig
from asrtool.streaming import EndConfig, FeatureStream, Stream
from tests import toy_experiment

HOURS = 2


def run(toy: Path, *options: object) -> int:
    try:
        stream.main([str(toy / "exp"), *map(str, options), "--device", "cpu"])
    except SystemExit as ended:
        return ended.code
    return 0


def sounds(toy: Path) -> dict[Path, str]:
    """File -> text, of the test set."""
    rows = (toy / "data" / "test" / "text").read_text().splitlines()
    return {
        toy / "data/test/audio" / f"{row.split()[0]}.wav": row.partition(" ")[2] for row in rows
    }


def recognizer(toy: Path, chunk_ms: float = 160, searcher: object = None, **options) -> Recognizer:
    searcher = searcher or RescoringConfig(weights={"ctc": 0.5, "attention": 0.5})
    return Recognizer.load(
        toy / "exp",
        replace(
            Experiment.open(toy / "exp").decode_config(),
            searcher=searcher,
            chunk_ms=chunk_ms,
            **options,
        ),
    )


@pytest.mark.parametrize(
    "options", [("--chunk-ms", 40), ("--chunk-ms", 160, "--left-chunks", 1), ()]
)
def test_check_proves_that_streaming_changes_nothing(toy_stream, options, capsys):
    assert run(toy_stream, "--check", toy_stream / "data" / "test", "--batch", 5, *options) == 0
    said = capsys.readouterr().err
    assert "12 utterances" in said and "0 utterances with different tokens, 0 with a" in said
    assert "streaming changes nothing" in said


@pytest.mark.parametrize(
    ("module", "what"),
    [(AccentHead, "0 utterances with different tokens"), (FeatureStream, "other results")],
)
def test_check_finds_what_differs(toy_stream, module, what, capsys, monkeypatch):
    """A head that forgets its left context; features that lose a sample at each cut."""
    if module is AccentHead:
        plain = AccentHead.forward
        monkeypatch.setattr(
            AccentHead,
            "forward",
            lambda self, x, lengths, cache: plain(
                self, x, lengths, None if cache is None else torch.zeros_like(cache)
            ),
        )
    else:
        plain = FeatureStream.__call__
        monkeypatch.setattr(
            FeatureStream,
            "__call__",
            lambda self, samples, final=False: plain(self, samples[1:], final),
        )
    assert run(toy_stream, "--check", toy_stream / "data" / "test", "--chunk-ms", 80) == 1
    said = capsys.readouterr().err
    assert what in said and "streaming differs" in said


def test_text_has_times_and_the_accent(toy_stream, capsys):
    files = sounds(toy_stream)
    assert run(toy_stream, *files, "--chunk-ms", 160, "--pause", 9) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text, _ in lines] == list(files.values())
    labels = [
        row.split()[1] for row in (toy_stream / "data/test/utt2accent").read_text().splitlines()
    ]
    heard = [accent.split()[:2] for *_, accent in lines]
    assert sum(pair == ["accent", label] for pair, label in zip(heard, labels, strict=True)) >= 10


def test_json_has_partial_results_the_final_one_and_the_latency(toy_stream, capsys):
    path, text = next(iter(sounds(toy_stream).items()))
    run(toy_stream, path, "--chunk-ms", 160, "--pause", 9, "--format", "json")
    captured = capsys.readouterr()
    *partial, final, end = [json.loads(line) for line in captured.out.splitlines()]
    assert {line["event"] for line in partial} == {"partial"} and len(partial) > 10
    assert (final["event"], final["text"]) == ("final", text)
    assert len(final["times"]) == len(final["tokens"]) and final["times"] == sorted(final["times"])
    assert sum(final["classes"]["accent"].values()) == pytest.approx(1, abs=1e-3)
    assert end["event"] == "end" and end["seconds"] == pytest.approx(
        soundfile.info(path).duration, abs=1e-3
    )
    assert end["rtf"] > 0 and end["work"]["median"] <= end["lag"]["longest"]
    assert "real-time factor" in captured.err


class Pipe:
    """A microphone: gives an odd number of bytes at a time, and remembers how many were taken."""

    def __init__(self, data: bytes) -> None:
        self.data, self.taken = io.BytesIO(data), 0

    def read1(self, size: int) -> bytes:
        part = self.data.read(min(size, 1237))
        self.taken += len(part)
        return part


def test_a_pipe_gives_what_the_file_gives_and_results_come_before_it_ends(
    toy_stream, capsys, monkeypatch
):
    path, text = next(iter(sounds(toy_stream).items()))
    samples, _ = soundfile.read(path, dtype="int16")
    pipe, seen = Pipe(samples.astype("<i2").tobytes()), []
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": pipe}))
    plain = stream.show
    monkeypatch.setattr(
        stream, "show", lambda *given: seen.append((pipe.taken, given[2])) or plain(*given)
    )
    run(toy_stream, "-", "--chunk-ms", 160, "--pause", 9)
    assert capsys.readouterr().out.split("\t")[1] == text
    early = [found for taken, found in seen if taken < len(pipe.data.getvalue()) * 0.8]
    assert any(found.hypothesis.text for found in early)


def test_another_rate_is_resampled_and_says_so(toy_stream, tmp_path, capsys):
    path, text = next(iter(sounds(toy_stream).items()))
    soundfile.write(
        tmp_path / "fast.wav", audio.resample(*soundfile.read(path, dtype="float32"), 16000), 16000
    )
    run(toy_stream, tmp_path / "fast.wav", "--chunk-ms", 160, "--pause", 9)
    captured = capsys.readouterr()
    assert (
        captured.out.split("\t")[1] == text and "resampled from 16000 Hz to 8000 Hz" in captured.err
    )


def broken(folder: Path, samples: np.ndarray, rate: int) -> dict[str, str]:
    """File -> what is wrong with it."""
    found = {}
    for name, cut, why in (
        ("cut.mp3", 0.6, "truncated"),
        ("cut.ogg", 0.9, "truncated, its last Ogg page is incomplete"),
        ("cut.flac", 0.5, "damaged, truncated, or not audio"),
        ("cut.wav", 0.5, "truncated, the header promises"),
    ):
        soundfile.write(folder / name, samples, rate)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(cut * len(data))])
        found[str(folder / name)] = why
    soundfile.write(folder / "empty.wav", samples[:0], rate)
    soundfile.write(folder / "loud.wav", samples * 32768, rate, subtype="FLOAT")
    (folder / "nothing.wav").touch()
    places = {
        "empty.wav": "holds no samples",
        "loud.wav": "samples reach",
        "nothing.wav": "the file is empty",
    }
    return (
        found
        | {str(folder / name): why for name, why in places.items()}
        | {"touch ran|": "no such file"}
    )


@pytest.mark.parametrize("rate", [8000, 16000])
def test_what_cannot_be_read_to_its_end_is_named_and_the_others_go_on(
    toy_stream, tmp_path, capsys, monkeypatch, rate
):
    monkeypatch.chdir(tmp_path)
    path, text = next(iter(sounds(toy_stream).items()))
    samples = audio.resample(soundfile.read(path, dtype="float32")[0], 8000, rate)
    bad = broken(tmp_path, samples, rate)
    assert run(toy_stream, *bad, path, "--chunk-ms", 160, "--pause", 9) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].split("\t")[1] == text
    for name, why in bad.items():
        assert f"{name}: {why}" in captured.err
    assert f"{len(bad)} of {len(bad) + 1} files could not be recognised" in captured.err
    assert not Path("ran").exists()


def test_a_header_that_comes_byte_by_byte_is_seen(toy_stream, capsys, monkeypatch):
    class Slow(Pipe):
        def read1(self, size):
            return super().read1(1)

    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": Slow(b"RIFF\x24\0\0\0WAVEfmt ")}))
    assert run(toy_stream, "-", "--chunk-ms", 160) == 1
    assert "has the header of an audio file" in capsys.readouterr().err


def test_one_file_that_fails_does_not_end_the_others(toy_stream, capsys, monkeypatch):
    path, text = next(iter(sounds(toy_stream).items()))
    plain = stream.read

    def fragile(one, name, seconds):
        if name == "bad":
            raise RuntimeError("out of memory")
        return plain(one, name, seconds)

    monkeypatch.setattr(stream, "read", fragile)
    assert run(toy_stream, "bad", path, "--chunk-ms", 160, "--pause", 9) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].split("\t")[1] == text
    assert "bad: out of memory" in captured.err


@pytest.mark.parametrize("kind", ["mp3", "ogg", "flac", "wav"])
def test_a_file_gives_the_samples_that_it_gives_as_a_whole(toy_stream, tmp_path, kind):
    samples = soundfile.read(next(iter(sounds(toy_stream))), dtype="float32")[0]
    soundfile.write(tmp_path / f"a.{kind}", samples, 8000)
    path, one = str(tmp_path / f"a.{kind}"), Stream(recognizer(toy_stream))
    np.testing.assert_array_equal(
        np.concatenate(list(stream.read(one, path, 0.16))), audio.listen(path)[0]
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "holds no samples"),
        (bytes(1001), "ends in the middle of a sample; expected raw 16-bit samples"),
        (b"RIFF" + bytes(2000), "has the header of an audio file, but raw 16-bit"),
        (b"fLaC" + bytes(2000), "has the header of an audio file"),
        (b"\0\0\0\x1cftypM4A " + bytes(2000), "has the header of an audio file"),
        (b"\x1aE\xdf\xa3" + bytes(2000), "has the header of an audio file"),
        (b"NIST_1A\n   1024\n" + bytes(2000), "has the header of an audio file"),
    ],
)
def test_standard_input_that_is_no_raw_audio_is_refused(toy_stream, capsys, monkeypatch, data, why):
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": Pipe(data)}))
    assert run(toy_stream, "-", "--chunk-ms", 160) == 1
    assert f"standard input: {why}" in capsys.readouterr().err


def test_numbers_of_16_bits_are_scaled_and_others_refused(toy_stream):
    samples = soundfile.read(next(iter(sounds(toy_stream))), dtype="int16")[0]
    found = [
        feed(Stream(recognizer(toy_stream), EndConfig(pause=9)), given)[0].hypothesis.text
        for given in (samples, samples.astype(np.float32) / 32768)
    ]
    assert found[0] == found[1] != ""
    with pytest.raises(audio.AudioError, match="expected values in"):
        feed(Stream(recognizer(toy_stream)), samples.astype(np.float32))


def test_a_result_comes_with_the_last_sample_that_its_chunk_needs(toy_stream):
    one, ends = Stream(recognizer(toy_stream)), []
    for piece in stream.cut([np.zeros(1280, np.float32)] * 4, one):
        if one.accept(piece) is not None:
            ends.append(one._samples)
    shift, length = 80, 200  # of 8 kHz
    assert ends == [1280 * chunks + length - shift for chunks in (1, 2, 3)]


def feed(one: Stream, samples: np.ndarray, size: int = 640) -> list:
    pieces = [samples[at : at + size] for at in range(0, len(samples), size)]
    found = [
        *(one.accept(piece) for piece in pieces),
        one.accept(np.zeros(0, np.float32), final=True),
    ]
    return [result for result in found if result is not None and result.final]


def test_a_pause_ends_a_text_and_times_go_on(toy_stream):
    files = list(sounds(toy_stream).items())[:3]
    quiet = np.random.default_rng(0).normal(0, 0.002, toy_experiment.RATE * 2).astype(np.float32)
    parts = [np.concatenate([soundfile.read(path, dtype="float32")[0], quiet]) for path, _ in files]
    results = feed(Stream(recognizer(toy_stream), EndConfig(pause=1.6)), np.concatenate(parts))
    texts = [result.hypothesis.text for result in results if result.hypothesis.text]
    assert texts == [text for _, text in files]
    for before, after in zip(results, results[1:], strict=False):
        assert before.end <= after.start + 1e-6
    starts = np.cumsum([0, *(len(part) for part in parts)]) / toy_experiment.RATE
    shift = recognizer(toy_stream).model.frame_shift
    spoken = [result for result in results if result.hypothesis.text]
    for result, start, end in zip(spoken, starts, starts[1:], strict=False):
        assert all(start <= position * shift <= end for position in result.hypothesis.positions)


def test_the_page_shows_how_to_stream_from_python(toy_stream, capsys):
    page = (Path(__file__).parents[3] / "docs/using.md").read_text(encoding="utf-8")
    block = page.split("## Streaming")[1].split("```python\n")[1].split("```")[0]
    path, text = next(iter(sounds(toy_stream).items()))
    samples = soundfile.read(path, dtype="float32")[0]
    changed = block.replace('"exp/train_qifusion"', repr(str(toy_stream / "exp")))
    changed = changed.replace("chunk_ms=640", "chunk_ms=160").replace("pause=0.8", "pause=9.0")
    exec(changed, {"pieces": np.array_split(samples, 7)})  # noqa: S102 - what the page prints
    *partial, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"{text} {{'seconds'") and partial[0].startswith("False 0.0 ")


def test_what_is_remembered_does_not_grow(toy_stream):
    one = Stream(
        recognizer(toy_stream, searcher=CtcGreedyConfig(), left_chunks=2), EndConfig(longest=2.0)
    )
    sound = np.concatenate(
        [soundfile.read(path, dtype="float32")[0] for path in sounds(toy_stream)]
    )
    sizes = []
    for _ in range(3):
        for at in range(0, len(sound), 1280):
            one.accept(sound[at : at + 1280])
            sizes.append(remembered(one))
    assert one.latency.seconds > 90
    half = len(sizes) // 2
    # a text may end a chunk later in one round than in another
    assert max(sizes[half:]) <= 1.05 * max(sizes[:half])


def remembered(one: Stream) -> int:
    """Numbers in everything that a stream holds, but for the list of its latencies."""

    def count(value: object) -> int:
        if isinstance(value, torch.Tensor | np.ndarray):
            return value.size if isinstance(value, np.ndarray) else value.numel()
        if isinstance(value, dict):
            return sum(map(count, value.values()))
        if isinstance(value, list | tuple):
            return sum(map(count, value))
        if isinstance(value, int | float):
            return 1
        return sum(map(count, vars(value).values())) if hasattr(value, "__dict__") else 0

    session = one._session
    return count([session._cache, session._state, session._pieces, one._features._rest])


def test_decoding_in_chunks_writes_the_accent_and_scoring_reads_it(toy_stream, tmp_path, capsys):
    decode.main(
        [
            "--exp",
            str(toy_stream / "exp"),
            "--config",
            str(toy_stream / "decode_rescoring.yaml"),
            "--data",
            str(toy_stream / "dump/test"),
            "--out",
            str(tmp_path / "out"),
            "--set",
            "chunk_ms=160 left_chunks=2",
        ]
    )
    line = json.loads((tmp_path / "out/hyps.jsonl").read_text().splitlines()[0])
    assert set(line["classes"]["accent"]) == {"high", "low"}
    assert "chunks of 4 frames, 160 ms" in capsys.readouterr().err
    score.main(
        [
            str(toy_stream / "data/test"),
            str(tmp_path / "out"),
            "--metric",
            "cer",
            "--group-by",
            "accent",
        ]
    )
    found = json.loads((tmp_path / "out/score.json").read_text())
    assert found["recognition"]["accent"]["accuracy"] >= 10 / 12
    assert set(found["recognition"]["accent"]["confusion"]) == {"high", "low"}
    assert found["macro_average"]["accent"]["rate"] == found["total"]["rate"] == 0.0


def test_a_model_that_cannot_stream_says_why(toy):
    with pytest.raises(
        UserError, match="chunk_ms: 640: the encoder cannot stream: it is not causal"
    ):
        run(toy, "--check", toy / "data" / "test")


@pytest.mark.parametrize(("chunk_ms", "near"), [(330, "320 or 360"), (16, "such as 40")])
def test_a_chunk_that_is_no_multiple_of_a_frame_is_refused(toy_stream, chunk_ms, near):
    expected = f"chunk_ms is {chunk_ms} ms, but a frame of this encoder is 40 ms: .*{near}"
    with pytest.raises(UserError, match=expected):
        run(toy_stream, "--check", toy_stream / "data" / "test", "--chunk-ms", chunk_ms)


def test_chunks_are_whole_frames_no_longer_than_in_training_where_nobody_says(toy_stream, capsys):
    run(toy_stream, "--check", toy_stream / "data" / "test")
    said = capsys.readouterr().err
    assert "chunks of 10 frames, 400 ms" in said and "longer than in training" not in said
    run(toy_stream, "--check", toy_stream / "data" / "test", "--chunk-ms", 440)
    expected = "chunks of 440 ms are longer than in training, which had at most 400 ms"
    assert expected in capsys.readouterr().err


def test_options_and_keys_that_counted_frames_name_those_in_milliseconds(
    toy_stream, tmp_path, capsys
):
    assert run(toy_stream, "-", "--chunk", 16) == 2
    assert "--chunk counted frames: give --chunk-ms" in capsys.readouterr().err
    (tmp_path / "decode.yaml").write_text("searcher: {type: ctc_greedy}\nchunk: 16\n")
    with pytest.raises(ConfigError, match="chunk: 16 counts frames.*: use chunk_ms"):
        run(toy_stream, "-", "--config", tmp_path / "decode.yaml")
    (tmp_path / "decode.yaml").write_text("searcher: {type: ctc_greedy}\nchunk: null\n")
    assert experiment.load_decode(tmp_path / "decode.yaml").chunk_ms is None


def test_a_search_of_whole_utterances_is_refused(toy_stream, tmp_path):
    (tmp_path / "decode.yaml").write_text("searcher: {type: joint_beam}\naverage: 1\n")
    with pytest.raises(
        UserError,
        match="joint_beam can only search whole utterances; to stream, use one of .*ctc_greedy",
    ):
        run(
            toy_stream,
            "--check",
            toy_stream / "data" / "test",
            "--config",
            tmp_path / "decode.yaml",
        )


@pytest.mark.parametrize(
    "options", [(), ("-", "--check", "x"), ("-", "--chunk", "2"), ("-", "--chunk-ms", "0")]
)
def test_options_that_exclude_each_other(toy_stream, options):
    assert run(toy_stream, *options) == 2


@pytest.mark.slow
def test_two_hours_through_the_command_end_as_they_began(toy_stream, tmp_path, capsys):
    """The test set again and again: the texts of every round are those of the first, and so are
    their times.
    """
    rate = toy_experiment.RATE
    quiet = np.random.default_rng(0).normal(0, 0.002, 2 * rate).astype(np.float32)
    one = np.concatenate(
        [
            p
            for path in sounds(toy_stream)
            for p in (soundfile.read(path, dtype="float32")[0], quiet)
        ]
    )
    # whole chunks of 160 ms
    one = np.concatenate([one, np.zeros(-len(one) % (rate * 4 // 25), np.float32)])
    length = len(one) / rate
    rounds = int(HOURS * 3600 / length) + 1
    with soundfile.SoundFile(tmp_path / "long.wav", "w", rate, 1) as file:
        for _ in range(rounds):
            file.write(one)
    options = ("--chunk-ms", 160, "--left-chunks", 4, "--pause", 1.6, "--format", "json")
    assert run(toy_stream, tmp_path / "long.wav", *options) == 0
    *lines, end = map(json.loads, capsys.readouterr().out.splitlines())
    texts = list(sounds(toy_stream).values())
    finals = [line for line in lines if line["event"] == "final" and line["text"]]
    assert [line["text"] for line in finals] == texts * rounds
    for number, line in enumerate(finals):
        first = finals[number % len(texts)]["times"]
        assert line["times"] == pytest.approx(
            [time + number // len(texts) * length for time in first], abs=2e-3
        )
    assert end["seconds"] == pytest.approx(rounds * length, abs=1e-3)
